"""`edge-embed dedupe`, `cluster`, `bitext` and `classify`, over a fake model where vectors do not matter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.testing import FakeEngine, fake_embedder
from tests.commands import run
from tests.corpus.conftest import ENGLISH, FRENCH

TEXTS = ["aaaa", "bbbb", "aaaa", "cccc", "aaab", "bbbb"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


def records(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_dedupe_keeps_the_first_of_its_kind(fake: FakeEngine, lines: Path) -> None:
    result = run("dedupe", "-f", lines, "--threshold", "0.999")
    assert records(result) == [{"index": i, "text": TEXTS[i]} for i in (0, 1, 3, 4)]
    assert "note: 2 of 6 texts are near duplicates" in result.stderr


def test_dedupe_shows_what_of_what(fake: FakeEngine, lines: Path) -> None:
    found = records(run("dedupe", "-f", lines, "--threshold", "0.999", "--duplicates"))
    assert [(d["index"], d["of"], d["original"]) for d in found] == [(2, 0, "aaaa"), (5, 1, "bbbb")]
    assert all(d["cosine"] > 0.999 for d in found)
    table = run("dedupe", "-f", lines, "--threshold", "0.999", "--duplicates", "--table").stdout.splitlines()
    assert table[0].split() == ["cosine", "text", "of"]
    assert len(table) == 3


def test_texts_come_as_embed_takes_them(fake: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,body\n1,x\n2,x\n")
    assert len(records(run("dedupe", "-f", tmp_path / "t.csv", "--field", "body"))) == 1
    assert len(records(run("dedupe", "x", "y", "x", "--threshold", "1"))) == 2
    assert records(run("dedupe", stdin="")) == []
    assert run("dedupe", "-f", tmp_path / "t.csv").exit_code == 2


def test_vectors_that_were_made_before_need_no_model(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "v.npy", fake_embedder().encode(TEXTS))
    monkeypatch.setattr("edge_embed.embedder.Embedder", lambda *_, **__: pytest.fail("the model is opened"))
    found = records(run("dedupe", "-f", lines, "--vectors", tmp_path / "v.npy", "--threshold", "0.999"))
    assert [r["index"] for r in found] == [0, 1, 3, 4]
    np.save(tmp_path / "v.npy", np.ones((3, 4), dtype=np.float32))
    result = run("dedupe", "-f", lines, "--vectors", tmp_path / "v.npy")
    assert (result.exit_code, "3 vectors" in result.stderr) == (2, True)


def test_a_file_is_there_whole_or_not_at_all(fake: FakeEngine, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = run("dedupe", "-f", lines, "-o", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(out.read_text().splitlines()[0]) == {"index": 0, "text": "aaaa"}
    before = out.read_text()
    result = run("dedupe", "-f", lines, "-o", out, "-d", "99")
    assert result.exit_code == 2
    assert out.read_text() == before
    assert run("dedupe", "-f", lines, "-o", tmp_path / "none" / "out.jsonl").exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "texts.txt"]


def test_what_was_cut_is_said(fake: FakeEngine) -> None:
    assert "1 of 2 texts were cut to 512 tokens" in run("dedupe", "x" * 600, "y").stderr


def test_cluster_numbers_texts_and_draws_them(fake: FakeEngine, lines: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "m.html", tmp_path / "m.png"
    result = run("cluster", "-f", lines, "-n", "3", "--map", page, "--map", picture)
    found = records(result)
    assert [r["text"] for r in found] == TEXTS
    assert [r["cluster"] for r in found] == [0, 1, 0, 2, 0, 1]
    assert "6 texts in 3 clusters, silhouette " in result.stderr
    assert "aaab" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = run("cluster", "-f", lines, "-n", "3", "--map", tmp_path / "again.html")
    assert again.stdout == result.stdout
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_cluster_shows_each_by_its_most_typical_texts(fake: FakeEngine, lines: Path) -> None:
    table = run("cluster", "-f", lines, "-n", "3", "--table").stdout.splitlines()
    assert re.match(r" +0 +3 +aaa", table[1])
    assert len(table) == 4


def test_a_map_of_many_texts_shows_some(fake: FakeEngine, lines: Path, tmp_path: Path) -> None:
    result = run("cluster", "-f", lines, "-n", "2", "--map", tmp_path / "m.html", "--map-texts", "4")
    assert "the map shows 4 of 6 texts" in result.stderr
    shown = json.loads(re.findall(r"const data = (.*);\n", (tmp_path / "m.html").read_text())[0])
    assert len(shown["points"]) == 4
    assert all(TEXTS[index] == text for *_, index, text in shown["points"])


def test_what_cannot_be_drawn_is_said_before_the_work(fake: FakeEngine, lines: Path, tmp_path: Path) -> None:
    assert run("cluster", "-f", lines, "--map", tmp_path / "m.svg").exit_code == 2
    assert run("cluster", "-f", lines, "--map", tmp_path / "none" / "m.png").exit_code == 4
    assert fake.batches == []


def test_bitext_pairs_two_files(tmp_path: Path) -> None:
    """With the bundled model and real sentences, those of the second file in another order."""
    order = np.random.default_rng(0).permutation(len(ENGLISH))
    (tmp_path / "fr.txt").write_text("".join(f"{text}\n" for text in FRENCH), encoding="utf-8")
    (tmp_path / "en.jsonl").write_text("".join(f"{json.dumps({'t': ENGLISH[i]})}\n" for i in order))
    np.save(tmp_path / "unused.npy", np.ones(3))
    arguments = ("bitext", tmp_path / "fr.txt", tmp_path / "en.jsonl", "--min-score", "1.2")
    refused = run(*arguments, "--field", "t")
    assert (refused.exit_code, "lines of text" in refused.stderr) == (2, True)
    (tmp_path / "en.txt").write_text("".join(f"{ENGLISH[i]}\n" for i in order), encoding="utf-8")
    result = run("bitext", tmp_path / "fr.txt", tmp_path / "en.txt", "--min-score", "1.2")
    found = records(result)
    assert f"note: {len(found)} pairs of 200 and 200 texts" in result.stderr
    assert all(
        (FRENCH[r["source"]], ENGLISH[order[r["target"]]]) == (r["source_text"], r["target_text"]) for r in found
    )
    right = sum(order[r["target"]] == r["source"] for r in found)
    assert right >= 20
    assert right / len(found) >= 0.9


def test_bitext_takes_one_file_from_a_pipe(fake: FakeEngine, lines: Path) -> None:
    found = records(run("bitext", "-", lines, "--min-score", "0", stdin="cccc\n"))
    assert [(r["source"], r["target"]) for r in found] == [(0, 3)]
    assert run("bitext", "-", "-").exit_code == 2


def test_classify_learns_from_a_file(fake: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("label,text\nA,aaaa\nA,aaab\nB,bbbb\nB,bbba\n")
    result = run("classify", "--examples", tmp_path / "e.csv", "--all-scores", "aaaaa", "bbbbb")
    found = records(result)
    assert [(r["index"], r["label"], r["text"]) for r in found] == [(0, "A", "aaaaa"), (1, "B", "bbbbb")]
    for r in found:
        assert r["score"] == max(r["scores"].values()) > 0.5
        assert sum(r["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert "learned A (2), B (2)" in result.stderr
    table = run("classify", "--examples", tmp_path / "e.csv", "--table", "aaaaa").stdout.splitlines()
    assert table[1].split()[0] == "A"


def test_classify_refuses_what_it_cannot_learn(fake: FakeEngine, tmp_path: Path) -> None:
    examples = tmp_path / "e.csv"
    for content, message in (
        ("text\nx\n", "no column 'label'"),
        ("text,label\nx,\ny,B\n", "a label is empty"),
        ("text,label\nx,A\ny,A\n", "one label"),
    ):
        examples.write_text(content)
        result = run("classify", "--examples", examples, "x")
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_label_with_one_example_is_said(fake: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"text": "a", "label": "A"}\n\n{"text": "b", "label": "B"}\n')
    assert "cannot be checked" in run("classify", "--examples", tmp_path / "e.jsonl", "a").stderr


def test_an_interrupt_leaves_nothing(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_embed.embedder.Embedder", interrupted)
    result = run("cluster", "-f", lines, "-o", tmp_path / "out.jsonl", "--map", tmp_path / "m.html")
    assert result.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]
