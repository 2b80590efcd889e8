"""Tuning: the fastest settings win, unless their vectors differ; the choice is kept whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder, types
from edge_embed.cli import tune as tune_command
from edge_embed.engine import bindings, trial, tune, tuner, tuning_texts
from edge_embed.engine.search import Coordinate, Found, Measured, Search
from edge_embed.engine.trial import Call, CandidateFailedError, Trial, Work, deviation
from edge_embed.engine.tune import Choice, Settings
from edge_embed.errors import EngineUnavailableError, InvalidOptionError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import Encoding, ModelInfo
from tests.commands import run

REFERENCE = Settings(
    library="", gpu_layers=-1, use_extra_bufts=True, n_threads=2, n_batch=384, n_ubatch=512, share_prefixes=True
)
VECTORS = np.eye(3, dtype=np.float32)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def info(bert_path: Path) -> ModelInfo:
    return read_model_info(read_header(bert_path))


@pytest.fixture
def decoder(qwen3_path: Path) -> ModelInfo:
    return read_model_info(read_header(qwen3_path))


# What is tried, on which texts


def names(planned: tuner.Plan) -> list[str]:
    return [coordinate.name for coordinate in planned.coordinates]


def test_decoders_have_more_to_choose_than_encoders(info: ModelInfo, decoder: ModelInfo) -> None:
    assert {"n_ubatch", "share_prefixes"} == set(names(tuner.plan(decoder, "mixed"))) - set(
        names(tuner.plan(info, "mixed"))
    )


def test_batches_are_not_tried_on_single_queries(info: ModelInfo, decoder: ModelInfo) -> None:
    for model in (info, decoder):
        assert {"n_batch", "n_ubatch"}.isdisjoint(names(tuner.plan(model, "queries")))


def test_kernels_that_crash_are_not_tried(info: ModelInfo) -> None:
    planned = tuner.plan(info, "mixed", use_extra_bufts=False)
    assert not planned.reference.use_extra_bufts
    assert "use_extra_bufts" not in names(planned)


def test_a_folder_of_libraries_is_one_more_engine(info: ModelInfo) -> None:
    folder = bindings.load().library.parent
    planned = tuner.plan(info, "mixed", libraries=[folder])
    assert ("", str(folder.resolve())) == planned.coordinates[0].values
    assert "gpu_layers" in names(planned)


def test_engines_that_were_built_beside_are_considered(info: ModelInfo, empty_cache: Path) -> None:
    for name in ("openvino", "half.tmp"):
        (empty_cache / "engines" / name).mkdir(parents=True)
    assert ("", str(empty_cache / "engines" / "openvino")) == tuner.plan(info, "mixed").coordinates[0].values


def test_a_folder_without_libraries_is_refused(info: ModelInfo, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="no libllama"):
        tuner.plan(info, "mixed", libraries=[tmp_path])


def test_no_texts_are_refused(info: ModelInfo) -> None:
    with pytest.raises(InvalidOptionError, match="no texts"):
        tuner.plan(info, "mixed", texts=["", ""])


def test_batches_that_the_texts_do_not_fill_are_left_out() -> None:
    threads = Coordinate("n_threads", (1, 2, 4, 8), ordered=True)
    whole = [Coordinate("n_batch", (128, 512, 1024), ordered=True), threads]
    left = tuner._worth_trying(whole, {"queries": 40, "documents": 600})
    assert [(128, 512), threads.values] == [coordinate.values for coordinate in left]


def test_built_in_documents_begin_differently_and_vary_in_length() -> None:
    work = tuning_texts.work("mixed", None, pairs=False)
    (documents,) = work.parts["documents"]
    assert len({text[:4] for text in documents.texts}) == len(documents.texts)
    assert max(map(len, documents.texts)) > 4 * min(map(len, documents.texts))
    assert all(len(call.texts) == 1 and call.role == "query" for call in work.parts["queries"])


def test_own_texts_are_used_once_each_and_the_shortest_stand_for_queries() -> None:
    own = ["a long text about bees", "bees", "bees", "wax", "honey from heather"]
    work = tuning_texts.work("mixed", own, pairs=False)
    assert [("wax",)] == [call.texts for call in work.parts["queries"]]
    assert ("a long text about bees", "bees", "wax", "honey from heather") == work.parts["documents"][0].texts
    assert {"queries"} == set(tuning_texts.work("queries", own, pairs=False).parts)


def test_a_reranker_compares_each_query_with_a_few_documents() -> None:
    calls = tuning_texts.work("queries", None, pairs=True).parts["queries"]
    assert all(call.query and len(call.texts) == 5 for call in calls[:-1])


def test_the_first_texts_of_work_are_cut_out_of_its_calls() -> None:
    work = Work({"a": (Call(("1", "2"), "query"), Call(("3", "4"), "query"), Call(("5",), "query"))})
    assert [("1", "2"), ("3",)] == [call.texts for call in work.first({"a": 3}).parts["a"]]


# A candidate's process


SMALL = Work({"queries": (Call(("a cat",), "query"),), "documents": (Call(("a dog sleeps", "the bank"), "document"),)})


@pytest.mark.parametrize("path", ["bert_path", "qwen3_path"])
def test_a_child_computes_what_an_embedder_does(path: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(path)
    info = read_model_info(read_header(file))
    candidate = Trial(info, tune.untuned(info, use_extra_bufts=True), SMALL)
    try:
        loaded = candidate.load()
        vectors, alone = candidate.vectors(), candidate.vectors(alone=True)
        seconds = candidate.run()
        candidate.limit({"queries": 1, "documents": 1})
        assert (2, info.n_embd) == candidate.vectors().shape
    finally:
        candidate.rest()
    with Embedder(file, n_threads=1) as embedder:
        expected = np.concatenate(
            [embedder.encode_query(["a cat"]), embedder.encode_document(["a dog sleeps", "the bank"])]
        )
        assert [len(embedder.tokenize("a cat").token_ids)] == list(loaded.n_tokens["queries"])
    assert deviation(info, expected, vectors) < 1e-4
    assert deviation(info, expected, alone) < 1e-4
    assert {"queries", "documents"} == set(seconds)
    assert min(seconds.values()) > 0


def test_a_turn_has_texts_that_the_last_one_had_not_and_keeps_the_prompt() -> None:
    """Otherwise an engine that keeps beginnings in memory finds there what it is timed for."""
    texts = [[7, 7, 1, 5, 9], [7, 7, 1, 6, 9], [7, 7, 4, 9]]
    calls = [[Encoding(np.array(t, np.int32), len(t)) for t in texts[:2]], [Encoding(np.array(texts[2], np.int32), 4)]]
    for turn in (1, 2):
        varied = [encoding.token_ids.tolist() for call in trial.unseen(calls, turn, 100) for encoding in call]
        assert [[7, 7, 1 + turn, 5, 9], [7, 7, 1 + turn, 6, 9], [7, 7, 4 + turn, 9]] == varied
    assert texts == [encoding.token_ids.tolist() for call in calls for encoding in call]
    alone = trial.unseen([[Encoding(np.array([3], np.int32), 1)]], 98, 100)
    assert [1] == alone[0][0].token_ids.tolist()


def test_a_child_that_dies_is_a_failed_candidate(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_embed.engine.child._PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(CandidateFailedError, match="it died of SIGSEGV"):
        Trial(info, REFERENCE, SMALL).load()


def test_a_library_that_does_not_load_is_a_failed_candidate(info: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / bindings.load().library.name).write_bytes(b"no library")
    with pytest.raises(CandidateFailedError, match="cannot be"):
        Trial(info, dataclasses.replace(REFERENCE, library=str(tmp_path)), SMALL).load()


def test_where_not_even_the_untuned_settings_run_there_is_no_choice(
    info: ModelInfo, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    with Embedder(info.path):  # its probe is done
        pass
    monkeypatch.setattr("edge_embed.engine.child._PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(EngineUnavailableError, match="SIGSEGV"):
        tuner.tune(info, "mixed", budget=1.0, say=lambda _: None)
    assert not (empty_cache / "tune.json").exists()


# What is kept, and how it reaches the engine


def chosen(**changed: object) -> Choice:
    return Choice(dataclasses.replace(REFERENCE, **changed), "mixed", 1.5, True, [])  # type: ignore[arg-type]


def test_a_choice_is_kept_and_forgotten(info: ModelInfo) -> None:
    assert None is tune.choice(info)
    assert tune.keep(info, chosen(n_batch=100))
    assert chosen(n_batch=100) == tune.choice(info)
    assert None is tune.choice(dataclasses.replace(info, pooling="cls"))
    assert tune.forget(info)
    assert not tune.forget(info)
    assert None is tune.choice(info)


def test_a_machine_with_other_cores_is_another_machine(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.keep(info, chosen())
    monkeypatch.setattr(tune, "default_threads", lambda: 96)
    assert None is tune.choice(info)


def test_an_engine_is_made_with_what_was_chosen_unless_the_caller_says_otherwise(
    bert_path: Path, info: ModelInfo
) -> None:
    tune.keep(info, chosen(n_batch=100, n_threads=1))
    with Embedder(bert_path) as embedder:
        assert 100 == embedder.backend.engine.limits.n_batch
        assert 1 == embedder.backend.engine.n_threads  # type: ignore[attr-defined]
        assert (32,) == embedder.encode("a cat").shape
    with Embedder(bert_path, n_batch=200, n_threads=2) as embedder:
        assert 200 == embedder.backend.engine.limits.n_batch
        assert 2 == embedder.backend.engine.n_threads  # type: ignore[attr-defined]


def test_sharing_can_be_chosen_away(qwen3_path: Path, decoder: ModelInfo) -> None:
    tune.keep(decoder, chosen(share_prefixes=False))
    with Embedder(qwen3_path) as embedder:
        assert not embedder.backend.engine.limits.shares_prefixes


def test_kernels_that_the_probe_has_found_to_crash_stay_off(
    bert_path: Path, info: ModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    class Recorder:
        def __init__(self, _info: ModelInfo, **options: object) -> None:
            asked.update(options)
            raise EngineUnavailableError("enough")

    tune.keep(info, chosen(use_extra_bufts=True, n_batch=100))
    monkeypatch.setattr("edge_embed.engine.llama.LlamaEngine", Recorder)
    monkeypatch.setattr("edge_embed.engine.probe.probe", lambda *_: tune_probe(False))
    with pytest.raises(EngineUnavailableError, match="enough"):
        Embedder(bert_path)
    assert (False, 100) == (asked["use_extra_bufts"], asked["n_batch"])


def tune_probe(use_extra_bufts: bool) -> object:
    from edge_embed.engine.probe import ProbeResult

    return ProbeResult(use_extra_bufts)


@pytest.fixture
def other_library(tmp_path: Path) -> Path:
    """A folder with copies of the libraries."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in bindings.load().library.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_another_library_is_left_where_one_is_loaded_already(info: ModelInfo, other_library: Path) -> None:
    tune.keep(info, chosen(library=str(other_library), n_batch=100))
    assert {"n_threads": 3} == tune.arguments(info, {"n_threads": 3, "n_batch": None})


def test_another_library_is_not_taken_for_an_adapter(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bindings.load().library.parent
    tune.keep(info, chosen(library=str(folder), n_batch=100))
    assert 100 == tune.arguments(info, {})["n_batch"]
    lora = types.Lora("x.gguf")
    assert {"lora": lora} == tune.arguments(info, {"lora": lora})


def test_another_library_that_was_changed_since_is_not_used(info: ModelInfo, other_library: Path) -> None:
    tune.keep(info, chosen(library=str(other_library)))
    assert tune.choice(info) is not None
    library = bindings.library_file(other_library, "llama")
    os.utime(library, ns=(1, 1))
    assert None is tune.choice(info)
    library.unlink()
    assert None is tune.choice(info)


def test_a_process_loads_the_library_that_was_chosen(info: ModelInfo, other_library: Path, empty_cache: Path) -> None:
    tune.keep(info, chosen(library=str(other_library), n_batch=100))
    program = (
        "import sys; from edge_embed import Embedder; from edge_embed.engine import bindings\n"
        "e = Embedder(sys.argv[1]); print(bindings.load().library, e.backend.engine.limits.n_batch, len(e.encode('a')))"
    )
    environment = {**os.environ, "EDGE_EMBED_CACHE": str(empty_cache)}
    done = subprocess.run(
        [sys.executable, "-c", program, info.path], env=environment, capture_output=True, text=True, check=True
    )
    library = other_library / bindings.load().library.name
    assert f"{library} 100 32\n" == done.stdout


def test_a_library_that_was_chosen_and_does_not_load_any_more_is_left(
    info: ModelInfo, tmp_path: Path, empty_cache: Path
) -> None:
    """OpenVINO, say, was removed, and with it what the chosen build is linked to."""
    (tmp_path / bindings.load().library.name).write_bytes(b"no library")
    tune.keep(info, chosen(library=str(tmp_path), n_batch=100))
    program = (
        "import sys; from edge_embed import Embedder; from edge_embed.engine import bindings\n"
        "e = Embedder(sys.argv[1]); print(bindings.load().library, len(e.encode('a')))"
    )
    environment = {**os.environ, "EDGE_EMBED_CACHE": str(empty_cache)}
    done = subprocess.run(
        [sys.executable, "-c", program, info.path], env=environment, capture_output=True, text=True, check=True
    )
    assert f"{bindings.load().library} 32\n" == done.stdout
    assert f"the libraries in {tmp_path}, which `edge-embed tune` chose, are not used" in done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry["settings"].update(n_batch=0),
        lambda entry: entry["settings"].update(n_threads="2"),
        lambda entry: entry["settings"].update(share_prefixes=1),
        lambda entry: entry["settings"].update(unheard_of=1),
        lambda entry: entry["settings"].pop("n_ubatch"),
        lambda entry: entry.update(profile="none"),
        lambda entry: entry.pop("files"),
        lambda entry: entry.update(settings=[]),
    ],
)
def test_a_damaged_choice_is_none(
    damage: Callable[[dict[str, object]], object], info: ModelInfo, empty_cache: Path
) -> None:
    tune.keep(info, chosen())
    found = json.loads((empty_cache / "tune.json").read_text())
    for entry in found.values():
        damage(entry)
    (empty_cache / "tune.json").write_text(json.dumps(found))
    assert None is tune.choice(info)


def test_an_interrupt_while_the_cache_is_written_leaves_the_old_one(
    info: ModelInfo, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune.keep(info, chosen())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge_embed.engine.findings.json.dump", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune.keep(info, chosen(n_batch=100))
    assert chosen() == tune.choice(info)
    assert ["tune.json"] == [path.name for path in empty_cache.iterdir()]


# The whole, with real processes


@pytest.fixture
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "BATCHES", {False: (384, 512), True: (512,)})
    monkeypatch.setattr(tuner, "UBATCHES", (512,))
    monkeypatch.setattr(tuner, "default_threads", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def test_a_model_is_tuned_and_the_choice_is_used(bert_path: Path, info: ModelInfo, few_batches: None) -> None:
    result = run("tune", bert_path, "--json", "--budget", "120")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (True, True) == (report["complete"], report["kept"])
    assert ["reference"] == [m["verdict"] for m in report["measured"] if not m["changed"]]
    tried = {name for measured in report["measured"] for name in measured["changed"]}
    assert {"use_extra_bufts", "n_batch"} <= tried
    assert all(m["deviation"] <= report["allowed_deviation"] for m in report["measured"] if m["changed"])
    assert min(report["tokens"].values()) > 0
    assert all(f"{name} " in result.stderr for name in tried)
    known = tune.choice(info)
    assert known is not None
    assert report["settings"] == dataclasses.asdict(known.settings)
    assert "forgotten" in run("tune", bert_path, "--forget").stdout
    assert "nothing was chosen" in run("tune", bert_path, "--forget").stdout
    assert None is tune.choice(info)


def test_the_table_says_what_was_tried_and_chosen(monkeypatch: pytest.MonkeyPatch, bert_path: Path) -> None:
    best = dataclasses.replace(REFERENCE, n_batch=512)
    rates = {"documents": 1234.0}
    found = Found(
        best, 1.25, False, False, 1e-3,
        (
            Measured({}, REFERENCE, "reference", tokens_per_second=rates),
            Measured({"n_batch": 512}, best, "faster", "", 1.3, rates, 2e-5),
            Measured({"use_extra_bufts": False}, REFERENCE, "failed", "it died of SIGILL"),
            Measured({"n_threads": 1}, dataclasses.replace(best, n_threads=1), "faster", "", 1.1, rates, 0.0),
        ),
    )  # fmt: skip
    planned = tuner.plan(read_model_info(read_header(bert_path)), "documents")
    outcome = tuner.Outcome(planned, found, {"documents": 9}, {"documents": 999}, True, True)
    monkeypatch.setattr(tuner, "tune", lambda *_, **__: outcome)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert "busy" not in run("tune", bert_path).stderr
    monkeypatch.setattr(os, "getloadavg", lambda: (96.5, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    result = run("tune", bert_path, "--profile", "documents")
    assert "a load of 96.5 on 64 CPUs" in result.stderr
    lines = result.stdout.splitlines()
    assert ["n_batch", "512", "1,234", "1.30", "2.0e-05", "chosen"] == lines[2].split()
    assert lines[3].endswith("failed: it died of SIGILL")
    assert lines[4].endswith("faster, but not in the end")
    assert "1.25 times as fast as untuned" in result.stdout
    assert "not everything was tried" in result.stderr


def test_where_the_time_was_too_short_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, bert_path: Path, info: ModelInfo, few_batches: None
) -> None:
    monkeypatch.setattr(tuner, "Search", lambda start, judge, _, say: Search(start, judge, 0.0, say))
    result = run("tune", bert_path)
    assert result.exit_code == 0, result.stderr
    assert "nothing was decided, and nothing kept" in result.stdout
    assert "give more time with --budget" in result.stderr
    assert None is tune.choice(info)


def test_a_dry_run_starts_nothing(bert_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(trial, "Child", refuse)
    monkeypatch.setattr("edge_embed.engine.probe.Child", refuse)
    result = run("tune", bert_path, "--dry-run")
    assert (0, "") == (result.exit_code, result.stderr)
    assert "try:  use_extra_bufts off" in result.stdout
    plan = json.loads(run("tune", bert_path, "--dry-run", "--json").stdout)
    assert [True, False] == plan["coordinates"]["use_extra_bufts"]
    assert not empty_cache.exists()


def test_show_and_doctor_say_whether_a_model_is_tuned(bert_path: Path, info: ModelInfo) -> None:
    assert "tuned" not in run("show", bert_path).stdout
    assert json.loads(run("show", bert_path, "--json").stdout)["tuned"] is None
    assert "untuned; `edge-embed tune`" in run("doctor", bert_path).stdout
    tune.keep(info, chosen(n_batch=100))
    said = "for mixed, 1.50 times as fast as untuned: use_extra_bufts on, n_threads 2, n_batch 100, n_ubatch 512"
    assert said in run("show", bert_path).stdout
    assert said in json.loads(run("show", bert_path, "--json").stdout)["tuned"]
    assert f"settings   tuned {said}" in run("doctor", bert_path).stdout


def test_options_of_a_file_need_one(bert_path: Path) -> None:
    assert 2 == run("tune", bert_path, "--field", "body").exit_code


def test_the_command_knows_the_profiles() -> None:
    assert tune.PROFILES == tune_command.PROFILES


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to a process there")
def test_an_interrupt_ends_it_and_its_children(bert_path: Path, empty_cache: Path) -> None:
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from edge_embed.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "tune", str(bert_path)],
        env={**os.environ, "EDGE_EMBED_CACHE": str(empty_cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        try:
            said = iter(process.stderr.readline, "")
            assert any(line.startswith("untuned: ") for line in said)  # a busy machine is said before
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            mine = children.read_text().split() if children.exists() else []
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert 130 == process.returncode
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    if (empty_cache / "tune.json").exists():
        assert json.loads((empty_cache / "tune.json").read_text())
    assert [] == [path.name for path in empty_cache.glob("tune.json?*")]
