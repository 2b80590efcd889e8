"""``edge-embed index`` and ``search``, over the bundled model and real texts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import COMMAND, run
from tests.search.making import docx_bytes, pdf_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of the project's own texts, and a database of it."""
    folder = tmp_path_factory.mktemp("real") / "folder"
    folder.mkdir()
    for name in ("LICENSE", "edge_embed/batching.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "bees.pdf").write_bytes(pdf_bytes("Honey bees navigate by the position of the sun."))
    (folder / "report.docx").write_bytes(docx_bytes())
    database = folder.parent / "db"
    done = run("index", folder, "--db", database, "--threads", "1")
    assert done.exit_code == 0, done.stderr
    assert "4 files" in done.stdout
    return folder, database


def test_people_see_path_line_heading_score_and_words(
    indexed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, database = indexed
    monkeypatch.chdir(folder)
    done = run("search", "how do insects find their way?", "--db", database, "-k", "2", "--mode", "dense")
    assert done.exit_code == 0, done.stderr
    assert {"bees.pdf, page 1", "report.docx"} == {
        line.split("  ")[2] for line in done.stdout.splitlines() if line[:2].strip()
    }
    assert "Honey bees navigate" in done.stdout


def test_programs_get_json(indexed: tuple[Path, Path]) -> None:
    folder, database = indexed
    for mode in ("hybrid", "dense", "text"):
        done = run("search", "pack texts into batches", "--db", database, "--mode", mode, "--kind", "code", "--json")
        found = json.loads(done.stdout)
        best = found["results"][0]
        assert (found["query"], best["path"]) == ("pack texts into batches", str(folder / "batching.py"))
        assert {"heading", "line", "score", "cosine", "text", "kind"} <= set(best)
        assert all(0 <= start < stop <= len(best["snippet"]["text"]) for start, stop in best["snippet"]["marks"])


def test_the_second_run_embeds_nothing_and_reports_as_json(indexed: tuple[Path, Path]) -> None:
    folder, database = indexed
    report = json.loads(run("index", folder, "--db", database, "--json").stdout)
    assert (4, 0, 0) == (report["n_files"], report["n_updated"], report["n_embedded"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-d", "128", "--short", "0"), "dimensions: 384, now 128"),
        (("--prompt", "x"), 'documents\' prompt: "", now "x"'),
        (("--query-prompt", "x"), "queries' prompt"),
        (("--chunk-tokens", "99", "--overlap", "9"), "tokens of a chunk"),
    ],
)
def test_index_refuses_another_prompt_and_size(indexed: tuple[Path, Path], options: tuple[str, ...], said: str) -> None:
    done = run("index", indexed[0], "--db", indexed[1], *options)
    assert (2, True) == (done.exit_code, said in done.stderr)


@pytest.mark.parametrize(
    ("options", "said"), [(("-d", "128"), "dimensions: 384, now 128"), (("--query-prompt", "x"), "queries' prompt")]
)
def test_search_refuses_another_prompt_and_size(
    indexed: tuple[Path, Path], options: tuple[str, ...], said: str
) -> None:
    done = run("search", "x", "--db", indexed[1], *options)
    assert (2, True) == (done.exit_code, said in done.stderr)


def test_another_model_is_refused(indexed: tuple[Path, Path], bert_path: Path) -> None:
    for command in (("search", "x"), ("index", indexed[0])):
        done = run(*command, "--db", indexed[1], "-m", bert_path)
        assert 2 == done.exit_code
        assert "the model's file is another one" in done.stderr


def test_a_database_remembers_its_model_and_size(bert_path: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("some text")
    made = ("--db", tmp_path / "db")
    assert 0 == run("index", folder, *made, "-m", bert_path, "-d", "16", "--pooling", "cls").exit_code
    (folder / "b.txt").write_text("more")
    assert "1 new or changed" in run("index", folder, *made).stdout
    assert 2 == len(json.loads(run("search", "text", *made, "--json").stdout)["results"])


def test_files_that_are_skipped_are_named_and_the_exit_code_says_so(
    folder: Path, tmp_path: Path, bert_path: Path
) -> None:
    (folder / "good.txt").write_text("text")
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 cut")
    (folder / "big.txt").write_text("x" * 2001)
    done = run("index", folder, "--db", tmp_path / "db", "-m", bert_path, "--max-file-size", "2KB")
    assert 1 == done.exit_code
    assert "1 files" in done.stdout
    assert "bad.pdf: is no sound PDF" in done.stderr
    assert "big.txt: has 2001 bytes; 2000 are read" in done.stderr
    assert "1 done, but some files were skipped" in run("index", "--help").stdout


def test_without_a_database_search_says_how_to_make_one(tmp_path: Path) -> None:
    done = run("search", "x", "--db", tmp_path / "none")
    assert (2, True) == (done.exit_code, "edge-embed index FOLDER" in done.stderr)


def test_where_nobody_says_the_database_lies_in_one_place(
    folder: Path, tmp_path: Path, bert_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.txt").write_text("text")
    monkeypatch.setenv("EDGE_EMBED_DB", str(tmp_path / "here"))
    assert 0 == run("index", folder, "-m", bert_path).exit_code
    assert "a.txt" in run("search", "text").stdout
    assert (tmp_path / "here").is_dir()


def test_watch_follows_changes(folder: Path, tmp_path: Path, bert_path: Path) -> None:
    (folder / "a.txt").write_text("one")
    command = [*COMMAND, "index", str(folder), "--db", str(tmp_path / "db"), "-m", str(bert_path), "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        decoder, buffer = json.JSONDecoder(), ""

        def report() -> dict[str, int]:
            """The next report that the process prints."""
            nonlocal buffer
            assert process.stdout is not None
            while True:
                line = process.stdout.readline()
                assert line, process.stderr.read() if process.stderr else ""
                buffer += line
                if line == "}\n":
                    found, end = decoder.raw_decode(buffer)
                    buffer = buffer[end:].lstrip()
                    return dict(found)

        assert (1, 1) == ((first := report())["n_files"], first["n_embedded"])
        (folder / "b.txt").write_text("two")
        assert (2, 1) == ((second := report())["n_files"], second["n_embedded"])
        (folder / "a.txt").unlink()
        assert (1, 1) == ((third := report())["n_files"], third["n_removed"])
        process.terminate()
        assert 130 == process.wait(30)
