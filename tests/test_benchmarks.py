"""What the benchmarks compute with: engines in turn, missing peers, ratios, records. No time is asserted."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks import devices as device_table
from benchmarks import noise, parity06, parity_cases
from benchmarks.datasets import beginning, stretches
from benchmarks.lengths import flop_per_token
from benchmarks.peers import Engine, Row, Variant, available, compare, factor, table
from benchmarks.qwen3 import embedders
from benchmarks.shape06 import Shape06
from edge_embed import Embedder
from edge_embed.engine.devices import Gpu
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from tests.checkpoints import small_bpe_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(json.dumps(small_bpe_tokenizer()))


def row(name: str, seconds: list[float], **more: object) -> Row:
    return Row(Engine(name, "edge-embed", sys.executable, "model"), seconds=seconds, **more)  # type: ignore[arg-type]


def test_engines_take_turns_and_those_that_cannot_are_rows_that_say_why(qwen3_path: Path, qwen3: Embedder) -> None:
    ours = Engine("ours", "edge-embed", sys.executable, str(qwen3_path))
    broken = Engine("broken", "edge-embed", sys.executable, str(qwen3_path), (Variant("", {"no": "such argument"}),))
    absent = available(Engine("absent", "llama-server", sys.executable, "m", (Variant("", {"program": "/no/server"}),)))
    rounds = [{"job": "embed", "texts": ["one", "two"]}, {"job": "each", "texts": ["three", "four"]}]
    rows = compare([ours, broken, absent], rounds, threads=1, trial=rounds[0], check=rounds[0])
    expected = qwen3.encode(["one", "two"])
    assert [2, 0, 0] == [len(found.seconds) for found in rows]
    assert rows[0].results is not None
    assert rows[0].results == pytest.approx(expected, abs=1e-5)
    assert "TypeError" in rows[1].failure
    assert "no program /no/server" == rows[2].failure
    assert rows[0].peak_mb > 10
    printed = table(rows, [2.0, 2.0], "texts/s").splitlines()
    assert ["| broken | missing:", "| absent | missing:"] == [line[:19].rstrip() for line in printed[3:]]


def test_the_settings_that_work_are_chosen_over_those_that_fail(qwen3_path: Path) -> None:
    ways = (
        Variant("n_batch=0", {"arguments": {"n_batch": 0}}),
        Variant("n_batch=64", {"arguments": {"n_batch": 64}}),
    )
    request = {"job": "embed", "texts": ["one", "two"]}
    (found,) = compare(
        [Engine("ours", "edge-embed", sys.executable, str(qwen3_path), ways)],
        [request],
        threads=1,
        trial=request,
        check=request,
    )
    assert ("n_batch=64", "", 1) == (found.best, found.failure, len(found.seconds))


def test_an_interpreter_without_the_module_is_a_reason() -> None:
    engine = Engine("peer", "sentence-transformers", sys.executable, str(Path(__file__)))
    assert "" == available(engine, "json").missing
    assert available(engine, "no_such_module").missing.endswith("has no no_such_module")


def test_ratios_are_of_the_same_round_and_their_median_is_printed() -> None:
    ours, theirs = row("ours", [1.0, 2.0, 10.0]), row("theirs", [3.0, 4.0, 10.0])
    assert "**2.00**, 1.00 to 3.00" == factor(theirs, ours)
    assert "" == factor(row("short", [1.0]), ours)
    printed = table([ours, theirs], [26.0, 26.0, 26.0], "tokens/s").splitlines()
    assert printed[2].startswith("| ours | 6.00 |")
    assert "| ms |" in table([ours], [], "").splitlines()[0]


def test_results_are_compared_as_vectors_or_as_scores() -> None:
    ours = row("ours", [1.0], results=np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32))
    turned = row("turned", [1.0], results=np.array([[3.0, 0.0], [1.0, 1.0]], dtype=np.float32))
    assert "| 0.70711 |" in table([ours, turned], [1.0], "texts/s")
    a, b = (
        row(name, [1.0], results=np.array(s, dtype=np.float32)) for name, s in (("a", [0.5, 0.1]), ("b", [0.5, 0.4]))
    )
    assert "| 0.3000 |" in table([a, b], [1.0], "pairs/s", scores=True)


def test_the_original_is_cut_at_its_end_and_keeps_the_closing_token(tokenizer: Tokenizer) -> None:
    whole = parity_cases.original_ids(parity_cases.Case("the cat and the hat", "bare"), tokenizer)
    cut = parity_cases.original_ids(parity_cases.Case("the cat and the hat", "cut", max_tokens=6), tokenizer)
    assert [*whole[:5], whole[-1]] == cut
    instructed = parity_cases.original_ids(parity_cases.Case("cat", "instructed", "find"), tokenizer)
    assert tokenizer.encode("Instruct: find\nQuery:cat").ids == instructed


def test_a_pair_loses_tokens_of_its_document_only(tokenizer: Tokenizer) -> None:
    whole = parity_cases.original_pair_ids(parity_cases.PairCase("q", "the cat and the hat", "find"), tokenizer)
    limit = len(whole) - 3
    cut = parity_cases.original_pair_ids(parity_cases.PairCase("q", "the cat and the hat", "find", limit), tokenizer)
    n_behind = len(tokenizer.encode(parity_cases.RERANK_SUFFIX, add_special_tokens=False).ids)
    assert limit == len(cut)
    assert [*whole[: limit - n_behind], *whole[-n_behind:]] == cut


def test_a_record_is_read_again_and_not_for_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "record.npz"
    record = parity06.Record.open(path, "these")
    record.vectors[parity06.key_of([1, 2])] = np.array([1.0, 0.5], dtype=np.float32)
    record.log_odds[parity06.key_of([3])] = -0.25
    record.save()
    again = parity06.Record.open(path, "these")
    assert [1.0, 0.5] == again.vectors[parity06.key_of(np.array([1, 2]))].tolist()  # type: ignore[arg-type]
    assert {parity06.key_of([3]): -0.25} == again.log_odds
    with pytest.raises(SystemExit, match="other weights"):
        parity06.Record.open(path, "those")


def test_texts_are_cut_at_tokens(tokenizer: Tokenizer) -> None:
    text = "the cat and the hat in the house"
    n = len(tokenizer.encode(text, add_special_tokens=False).ids)
    pieces = stretches(tokenizer, text, n // 3)
    assert 3 <= len(pieces)
    assert text.startswith("".join(pieces))
    assert pieces[0] == beginning(tokenizer, text, n // 3)
    assert text == beginning(tokenizer, text, n + 5)


def test_vectors_of_shuffled_calls_come_back_in_order() -> None:
    def run(texts: list[str]) -> np.ndarray:
        return np.array([[float(text), 0.0] for text in texts], dtype=np.float32)

    texts = [str(i) for i in range(40)]
    assert run(texts).tolist() == noise.in_calls(run, texts).tolist() == noise.alone(run, texts).tolist()


def test_arithmetic_of_a_text_grows_with_what_it_looks_back_to(qwen3_path: Path) -> None:
    header = read_header(qwen3_path)
    arch = header.metadata["general.architecture"]
    layers, heads = header.metadata[f"{arch}.block_count"], header.metadata[f"{arch}.attention.head_count"]
    width = header.metadata[f"{arch}.attention.key_length"]
    assert 2 * layers * heads * width * 100 == flop_per_token(header, 200) - flop_per_token(header, 100)


def test_a_device_is_held_against_the_processor_and_its_plan(
    qwen3_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The memory that goes and comes back while the job runs is what was taken at the worst moment."""
    free = iter([8 * 10**9, *[7 * 10**9] * 3, 6 * 10**9])
    last = [0]

    def gpu(_device: str) -> Gpu:
        last[0] = next(free, last[0])
        return Gpu("CUDA0", "a card", "CUDA", 12 * 10**9, last[0], False)

    rows = {"texts": np.eye(2, 4), "each": np.eye(2, 4), "queries": np.eye(2, 4)}
    other = {**rows, "queries": np.array([[0.6, 0.8, 0, 0], [0, 1, 0, 0]])}

    def run(_path: Path, device: str, _work: object, _folder: Path) -> tuple[dict[str, object], dict[str, object]]:
        assert device == "cuda:0,cpu"
        while last[0] > 6 * 10**9:
            time.sleep(0.01)
        return {"gpu_layers": 3, "notes": ["one", "two"]}, other

    monkeypatch.setattr(device_table, "_gpu", gpu)
    monkeypatch.setattr(device_table, "_run", run)
    device_table.row(qwen3_path, "cuda:0", {"tokens": 700}, tmp_path, rows)
    cells = [cell.strip() for cell in capsys.readouterr().out.split("|")]
    assert ["8.00 GB", "3"] == cells[2:4]
    assert "2,000 MB" == cells[5]
    planned = float(cells[4].removesuffix(" MB").replace(",", ""))
    assert planned > 500  # what CUDA's libraries take is part of it
    assert f"{100 * (planned / 2000 - 1):+.1f} %" == cells[6]
    assert ["0.600000", "1.000000", "one; two"] == cells[7:10]


def test_the_vectors_of_a_device_are_those_of_a_process(qwen3_path: Path, tmp_path: Path) -> None:
    texts = ["cat", "a cat and a dog"]
    work = {"texts": texts, "queries": ["dog"], "long": "cat " * 300, "tokens": 200}
    said, rows = device_table._run(qwen3_path, "cpu", work, tmp_path)
    assert {"gpu_layers": 0, "notes": []} == said
    with Embedder(qwen3_path, device="cpu") as model:
        expected = model.encode(texts)
        long = model.encode(["cat " * 300], max_tokens=200)
    assert device_table.cosine(rows["texts"], expected) == pytest.approx(1, abs=1e-5)
    assert device_table.cosine(rows["each"], expected) == pytest.approx(1, abs=1e-5)
    assert device_table.cosine(rows["long"], long) == pytest.approx(1, abs=1e-5)
    assert rows["queries"].shape == (1, 32)


def test_a_job_that_fails_is_a_row_and_others_are_measured(
    qwen3_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run on the device is not measured, since one more process tries the model in it."""
    (tmp_path / "scifact").mkdir()
    ran: list[tuple[str, str]] = []
    broken = tmp_path / "broken.gguf"
    rows = {"texts": np.eye(2, 4), "each": np.eye(2, 4)}

    def run(path: Path, device: str, _work: object, _folder: Path) -> tuple[dict[str, object], dict[str, object]]:
        ran.append((path.stem, device))
        if path == broken and device != "cpu":
            raise device_table.JobError("a | b")
        return {"gpu_layers": 0, "notes": []}, rows

    monkeypatch.setattr(device_table, "beir", lambda _: ({"a": "cat"}, {"b": "dog"}, {}))
    monkeypatch.setattr(device_table, "_gpu", lambda _: Gpu("CUDA0", "a card", "CUDA", 12 * 10**9, 8 * 10**9, False))
    monkeypatch.setattr(device_table, "_run", run)
    monkeypatch.setattr(sys, "argv", ["devices", str(broken), str(qwen3_path), "--data", str(tmp_path)])
    device_table.main()
    good = qwen3_path.stem
    assert ran == [
        ("broken", "cpu"), ("broken", "cuda:0,cpu"), (good, "cpu"), (good, "cuda:0,cpu"),
        ("broken", "cuda:0,cpu"), (good, "cuda:0,cpu"),
    ]  # fmt: skip
    *_, head, _line, first, second, measured = capsys.readouterr().out.splitlines()
    assert first == second == f"| broken |{' |' * 7} failed: a / b |"
    assert measured.startswith(f"| {good} | 8.00 GB | 0 |")
    assert {line.count("|") for line in (head, first, measured)} == {10}


def test_a_job_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(device_table.JobError, match=r"exit code 1 on cpu: .*there is no model file"):
        device_table._run(
            tmp_path / "none.gguf", "cpu", {"texts": [], "queries": [], "long": "", "tokens": 8}, tmp_path
        )


def test_a_text_is_planned_as_long_as_the_model_takes_it(qwen3_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_table, "_gpu", lambda _: Gpu("CUDA0", "a card", "CUDA", 12 * 10**9, 8 * 10**9, False))
    most = read_model_info(read_header(qwen3_path)).max_tokens
    short, whole, longer = (device_table._planned(qwen3_path, "cuda:0", -1, n) for n in (8, most, 4 * most))
    assert short < whole == longer


def test_a_worker_finds_what_is_named_from_here(
    qwen3_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It runs in another folder; `make bench` names everything from the checkout."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").symlink_to(qwen3_path)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    request = {"job": "embed", "texts": ["one"]}
    engine = available(Engine("ours", "edge-embed", "./python", "model.gguf"))
    (found,) = compare([engine], [request], threads=1, trial=request, check=request)
    assert ("", 1) == (found.failure, len(found.seconds))


def test_on_a_device_peers_that_compute_something_else_are_rows_that_say_so(tmp_path: Path, qwen3_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "config.json").write_text('{"hidden_size": 7}')
    options = argparse.Namespace(
        model=str(qwen3_path), device="cuda:0", type="q8_0", also=[], openvino=None, one_way=False,
        llama_server=sys.executable, stock_python=sys.executable, peer_python=sys.executable,
    )  # fmt: skip
    ours, server, *others = embedders(options, Shape06(tmp_path))
    assert ours.variants[0].settings == {"arguments": {"device": "cuda:0"}}
    assert all("-ngl" in way.settings["flags"] for way in server.variants)
    assert ["it is the processor's", "no checkpoint", "no checkpoint"] == [other.missing for other in others]


def test_the_machines_own_memory_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a device has no other, every program would be without."""
    monkeypatch.setattr(device_table, "_gpu", lambda _: Gpu("OPENVINO0", "", "OPENVINO", 10**9, 10**9, True))
    monkeypatch.setattr(device_table, "left_with", lambda *_: pytest.fail("it is taken"))
    monkeypatch.setattr(sys, "argv", ["devices", "m.gguf", "--data", str(tmp_path), "--free", "1"])
    with pytest.raises(SystemExit, match="has the machine's memory"):
        device_table.main()
