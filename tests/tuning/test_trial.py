"""A candidate's process: it computes what an Embedder does, and its death is a verdict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.cancellation import Cancellation
from edge_embed.engine import bindings, trial, tune, tuner
from edge_embed.engine.trial import Call, CandidateFailedError, Trial, Work, deviation
from edge_embed.errors import ComputeError, EngineUnavailableError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.testing import FakeEngine
from edge_embed.types import Batch, Encoding, Float32Array, ModelInfo
from tests.tuning.choices import REFERENCE

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


def test_a_device_that_fails_in_the_midst_of_work_is_not_timed() -> None:
    """The engine goes on with the CPU, whose time is not the device's."""

    class Leaves(FakeEngine):
        device, placement = "cuda:0", SimpleNamespace(note="cuda:0 failed (lost): the CPU computes the model")

        def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
            self.device = "cpu"
            return super().decode(batch, stop)

    worker = trial._Worker()
    worker._engine, worker._device = Leaves(), "cuda:0"  # type: ignore[assignment]
    with pytest.raises(ComputeError, match="cuda:0 failed"):
        worker._rows([Encoding(np.array([3, 4], np.int32), 2)])


def test_a_child_that_dies_is_a_failed_candidate(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_embed.engine.child._PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(CandidateFailedError, match="it died of SIGSEGV"):
        Trial(info, REFERENCE, SMALL).load()


def test_a_library_that_does_not_load_is_a_failed_candidate(
    info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other one takes its place, not even the one that the user's environment names."""
    monkeypatch.setenv("EDGE_EMBED_ENGINE", "packaged")
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
