"""The probe: a crash happens in a child, costs a warning or an error, and is remembered."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.engine import bindings
from edge_embed.engine import probe as probe_module
from edge_embed.engine.findings import key_of
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.probe import ChildResult, ProbeResult, SlowEngineWarning, cached, probe, run_child
from edge_embed.errors import ComputeError, EngineError, EngineUnavailableError, ModelFileError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import Batch, Float32Array, ModelInfo
from tests.tiny_gguf import gguf_bytes, tiny_bert, tiny_decoder


@pytest.fixture
def info(bert_path: Path) -> ModelInfo:
    return read_model_info(read_header(bert_path))


@pytest.fixture
def library() -> Path:
    return bindings.load().library


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Children:
    """Stands in for the child processes: scripted outcomes, and the settings that each was started with."""

    def __init__(self, *outcomes: ChildResult) -> None:
        self.outcomes, self.started, self.devices = list(outcomes), list[bool](), list[str]()

    def __call__(self, _info: ModelInfo, use_extra_bufts: bool, device: str) -> ChildResult:
        self.started.append(use_extra_bufts)
        self.devices.append(device)
        return self.outcomes[len(self.started) - 1]


FINE, CRASH = ChildResult(False), ChildResult(True, "it died of SIGSEGV")


def run_segfault(info: ModelInfo, use_extra_bufts: bool, device: str) -> ChildResult:
    """A real child that really dies, where weights are repacked."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)" if use_extra_bufts else "pass"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    crashed = done.returncode < 0
    return ChildResult(crashed, f"it died of {signal.Signals(-done.returncode).name}" if crashed else "")


def test_a_model_that_runs_keeps_the_fast_kernels(info: ModelInfo, library: Path) -> None:
    children = Children(FINE)
    assert ProbeResult(True) == probe(info, library, run=children)
    assert [True] == children.started


def test_a_crash_falls_back_and_warns_once_with_the_fix(info: ModelInfo, library: Path) -> None:
    with pytest.warns(SlowEngineWarning) as caught:
        result = probe(info, library, run=run_segfault)
    assert ProbeResult(False, "it died of SIGSEGV") == result
    assert 1 == len(caught)
    for part in ("it died of SIGSEGV", "-m edge_embed.engine.build"):
        assert part in str(caught[0].message)


@pytest.mark.parametrize(("flags", "blamed"), [("avx2 amx_tile amx_int8", True), ("avx2 avx512f", False)])
def test_gcc_12_is_blamed_only_where_there_is_amx(
    flags: str, blamed: bool, info: ModelInfo, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "cpu_name_and_flags", lambda: ("some CPU", flags))
    with pytest.warns(SlowEngineWarning) as caught:
        probe(info, library, run=run_segfault)
    assert blamed == ("gcc 12" in str(caught[0].message))


def test_the_outcome_is_remembered_without_a_child_or_a_warning(info: ModelInfo, library: Path) -> None:
    with pytest.warns(SlowEngineWarning):
        first = probe(info, library, run=run_segfault)
    children = Children()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first == probe(info, library, run=children)
    assert [] == children.started
    assert first == cached(info, library)


def test_nothing_is_remembered_of_a_model_that_was_not_tried(info: ModelInfo, library: Path) -> None:
    assert None is cached(info, library)


def test_a_model_that_dies_both_ways_is_refused(info: ModelInfo, library: Path) -> None:
    children = Children(CRASH, CRASH)
    with pytest.raises(ModelFileError, match=r"the engine dies on .*bert\.gguf: it died of SIGSEGV"):
        probe(info, library, run=children)
    assert [True, False] == children.started


def test_a_refusal_is_no_crash_and_has_no_second_try(info: ModelInfo, library: Path) -> None:
    children = Children(ChildResult(False, "tensor x is wrong"))
    with pytest.raises(ModelFileError, match=r"cannot run .*bert.gguf: tensor x is wrong"):
        probe(info, library, run=children)
    assert [True] == children.started


WRONG = ChildResult(False, wrong="vectors differ, 1 - cosine with the CPU's is 0.4")


def test_devices_that_compute_the_same_are_used(info: ModelInfo, library: Path) -> None:
    children = Children(FINE)
    assert ProbeResult(True) == probe(info, library, device="cuda:0", run=children)
    assert ["cuda:0"] == children.devices
    assert ProbeResult(True) == cached(info, library, "cuda:0")
    assert None is cached(info, library)


@pytest.mark.parametrize("outcome", [CRASH, WRONG])
def test_devices_that_crash_or_compute_otherwise_are_not_and_that_is_remembered(
    outcome: ChildResult, info: ModelInfo, library: Path
) -> None:
    children = Children(outcome, FINE)
    expected = ProbeResult(True, device_problem=outcome.error or outcome.wrong)
    assert expected == probe(info, library, device="vulkan:0", run=children)
    assert ["vulkan:0", "cpu"] == children.devices
    assert expected == probe(info, library, device="vulkan:0", run=Children())
    assert ProbeResult(True) == probe(info, library, run=Children())


def test_devices_that_were_full_are_tried_again_next_time(info: ModelInfo, library: Path) -> None:
    full = ChildResult(False, "cuda:0 has no room")
    assert "cuda:0 has no room" == probe(info, library, device="cuda:0", run=Children(full, FINE)).device_problem
    assert "" == probe(info, library, device="cuda:0", run=Children(FINE)).device_problem


def test_with_little_memory_nothing_is_repacked_in_the_child_either(info: ModelInfo, library: Path) -> None:
    children = Children(FINE)
    assert ProbeResult(False) == probe(info, library, low_memory=True, run=children)
    assert [False] == children.started
    assert None is cached(info, library)  # with repacked weights it was not tried
    assert ProbeResult(False) == probe(info, library, low_memory=True, run=Children())


def test_a_model_that_is_known_to_run_is_not_tried_again_for_little_memory(info: ModelInfo, library: Path) -> None:
    probe(info, library, run=Children(FINE))
    assert ProbeResult(True) == probe(info, library, low_memory=True, run=Children())


@pytest.mark.parametrize(("outcome", "said"), [(CRASH, "the engine dies on"), (ChildResult(False, "no"), "cannot run")])
def test_with_little_memory_a_failure_is_one(outcome: ChildResult, said: str, info: ModelInfo, library: Path) -> None:
    with pytest.raises(ModelFileError, match=said):
        probe(info, library, low_memory=True, run=Children(outcome))


def test_devices_that_give_no_answer_are_left_and_tried_again_next_time(info: ModelInfo, library: Path) -> None:
    def silent(_info: ModelInfo, _use_extra_bufts: bool, device: str) -> ChildResult:
        if device != "cpu":
            raise EngineUnavailableError("a child process gave no answer within 300 s")
        return FINE

    expected = ProbeResult(True, device_problem="a child process gave no answer within 300 s")
    assert expected == probe(info, library, device="vulkan:0", run=silent)
    assert None is cached(info, library, "vulkan:0")


def test_a_model_that_dies_everywhere_is_refused_whatever_the_device(info: ModelInfo, library: Path) -> None:
    children = Children(CRASH, CRASH, CRASH)
    with pytest.raises(ModelFileError, match="the engine dies on"):
        probe(info, library, device="cuda:0", run=children)
    assert ["cuda:0", "cpu", "cpu"] == children.devices


def test_a_refused_model_is_tried_again_next_time(info: ModelInfo, library: Path) -> None:
    """It may have been a lack of memory."""
    with pytest.raises(ModelFileError):
        probe(info, library, run=Children(CRASH, CRASH))
    assert ProbeResult(True) == probe(info, library, run=Children(FINE))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", '{"a": 1}', '{"a": {"wrong": true}}', '{"a": []}', "\ufffd", "[" * 100_000],
    ids=lambda content: repr(content[:24]),
)
def test_a_corrupt_cache_is_ignored_and_replaced(
    content: str, info: ModelInfo, library: Path, empty_cache: Path
) -> None:
    empty_cache.mkdir()
    (empty_cache / "probe.json").write_text(content)
    assert ProbeResult(True) == probe(info, library, run=Children(FINE))
    assert ProbeResult(True) == probe(info, library, run=Children())


def test_a_cache_of_other_bytes_than_text_is_ignored(info: ModelInfo, library: Path, empty_cache: Path) -> None:
    empty_cache.mkdir()
    (empty_cache / "probe.json").write_bytes(b"\xff\xfe\x00")
    assert ProbeResult(True) == probe(info, library, run=Children(FINE))


def test_a_cache_that_cannot_be_written_only_means_another_try(
    info: ModelInfo, library: Path, empty_cache: Path
) -> None:
    empty_cache.write_text("a file where the folder should be")
    assert ProbeResult(True) == probe(info, library, run=Children(FINE))
    assert ProbeResult(True) == probe(info, library, run=Children(FINE))


def test_a_changed_file_is_tried_again(info: ModelInfo, library: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(info.path).read_bytes())
    info = dataclasses.replace(info, path=str(copy))
    before = key_of(info, library)
    os.utime(copy, ns=(1, 1))
    assert before != key_of(info, library)


def test_another_pooling_is_another_outcome(info: ModelInfo, library: Path) -> None:
    assert key_of(info, library) != key_of(dataclasses.replace(info, pooling="cls"), library)


def test_the_cache_keeps_the_newest_outcomes(info: ModelInfo, library: Path, empty_cache: Path) -> None:
    empty_cache.mkdir()
    old = {f"{n:03}": {"use_extra_bufts": True, "reason": ""} for n in range(200)}
    (empty_cache / "probe.json").write_text(json.dumps(old))
    probe(info, library, run=Children(FINE))
    kept = list(json.loads((empty_cache / "probe.json").read_text()))
    assert ["001", key_of(info, library)] == [kept[0], kept[-1]]
    assert ["probe.json"] == [path.name for path in empty_cache.iterdir()]


# The real child


@pytest.mark.parametrize("use_extra_bufts", [True, False])
def test_a_child_runs_a_model(info: ModelInfo, use_extra_bufts: bool) -> None:
    assert ChildResult(False) == run_child(info, use_extra_bufts)


def test_a_child_reports_what_the_engine_refuses_and_why(info: ModelInfo, tmp_path: Path) -> None:
    metadata, tensors = tiny_bert()
    del tensors["blk.1.attn_q.weight"]
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, tensors))
    result = run_child(dataclasses.replace(info, path=str(tmp_path / "x.gguf")), True)
    assert not result.crashed
    assert "attn_q" in result.error


def as_child(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Child processes run this instead."""
    monkeypatch.setattr("edge_embed.engine.child._PROGRAM", program)


def test_a_child_that_dies_is_reported_by_signal(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert ChildResult(True, "it died of SIGILL") == run_child(info, True)


@pytest.mark.parametrize("said", ["", "no JSON", "[]"])
def test_a_child_without_an_answer_says_nothing_about_the_model(
    said: str, info: ModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_child(monkeypatch, f"print({said!r})")
    with pytest.raises(EngineUnavailableError, match="ended with code 0: no reason given"):
        run_child(info, True)


def test_the_last_line_of_a_childs_complaints_is_the_reason(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "import sys; sys.stderr.write('first\\nno room for a process\\n'); sys.exit(3)")
    with pytest.raises(EngineUnavailableError, match="ended with code 3: no room for a process"):
        run_child(info, True)


def test_a_child_that_hangs_says_nothing_about_the_model(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    as_child(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(probe_module, "timeout_of", lambda _: 0.2)
    with pytest.raises(EngineUnavailableError, match="no answer within 0 s"):
        run_child(info, True)


def test_a_child_that_cannot_be_started_is_an_engine_error(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError, match="no child process could be started"):
        run_child(info, True)


def test_a_child_has_ended_when_its_parent_goes_on(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that gave no answer: nothing is left that computes."""
    started = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self)

    as_child(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(probe_module, "timeout_of", lambda _: 0.2)
    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(EngineUnavailableError):
        run_child(info, True)
    assert [-signal.SIGKILL] == [process.returncode for process in started]


def test_an_embedder_probes_a_new_file_and_only_once(
    bert_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(bert_path.read_bytes())
    children = Children(FINE)
    monkeypatch.setattr(probe_module, "run_child", children)
    for _ in range(2):
        with Embedder(copy) as embedder:
            assert (32,) == embedder.encode("cat").shape
    assert [True] == children.started


def test_a_file_that_kills_the_child_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary dimensions that differ from the head's width abort the library, once our own check is out of the way."""
    metadata, tensors = tiny_decoder()
    metadata["qwen3.rope.dimension_count"] = np.uint32(8)
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes(metadata, tensors))
    unchecked = "edge_embed.soundness._check_rotation"
    monkeypatch.setattr(unchecked, lambda *_: None)
    # The child has our sys.path, and imports `resource` before it reads the file.
    (tmp_path / "resource.py").write_text(
        f"import edge_embed.soundness\n{unchecked} = lambda *_: None\nraise ImportError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelFileError, match=r"x\.gguf: it died of SIGABRT"):
        Embedder(path)


def test_a_device_that_computes_short_texts_alone_is_found_out(
    qwen3_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's first graphs were right, and the first that the KV cache had to grow for ended in an error."""

    class Card(LlamaEngine):
        def __init__(self, info: ModelInfo, *, device: str, **settings: Any) -> None:
            super().__init__(info, device="cpu", **settings)
            self.named = device

        @property
        def device(self) -> str:
            return self.named

        def decode(self, batch: Batch, **more: Any) -> Float32Array:
            if self.named != "cpu" and batch.n_tokens > 256:
                raise ComputeError("Shape inference failed")
            return super().decode(batch, **more)

    monkeypatch.setattr("edge_embed.engine.llama.LlamaEngine", Card)
    request = {"path": str(qwen3_path), "pooling": "last", "use_extra_bufts": True, "device": "openvino:0"}
    with pytest.raises(ComputeError):
        probe_module._tried(request)
    assert {"error": ""} == probe_module._tried({**request, "device": "cpu"})
