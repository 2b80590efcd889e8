"""Where a model would be computed: what ``show`` says of it before it is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edge_embed.engine import bindings, devices, placement, tune
from edge_embed.engine.devices import Gpu, Memory
from edge_embed.engine.outlook import outlook
from edge_embed.engine.probe import PROBED, ProbeResult, _key
from edge_embed.errors import EngineMemoryError, EngineUnavailableError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import ModelInfo
from tests.commands import run

GB = 10**9
CUDA0 = Gpu("CUDA0", "a card", "CUDA", 48 * GB, 24 * GB, False)


@pytest.fixture(autouse=True)
def a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(placement.VARIABLE, raising=False)
    monkeypatch.setattr(devices, "memory", lambda: Memory(32 * GB, 32 * GB))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda _: [CUDA0])


@pytest.fixture
def info(qwen3_path: Path) -> ModelInfo:
    return read_model_info(read_header(qwen3_path))


def test_without_a_gpu_it_is_the_cpu(info: ModelInfo) -> None:
    assert (outlook(info).device, outlook(info).note) == ("cpu", "")


def test_a_gpu_with_room_is_taken(info: ModelInfo, card: None) -> None:
    assert (outlook(info).device, outlook(info).note) == ("cuda:0", "")


def test_a_gpu_that_is_known_not_to_compute_the_model_is_not(
    info: ModelInfo, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = _key(info, bindings.load().library, "cuda:0")
    PROBED.put(key, ProbeResult(True, device_problem="vectors differ"))
    placed = outlook(info)
    assert placed.device == "cpu"
    assert placed.note == f"cuda:0 does not compute {info.name}: vectors differ: the CPU computes the model"
    monkeypatch.setenv(placement.VARIABLE, "cuda:0")
    with pytest.raises(EngineUnavailableError, match="vectors differ"):
        outlook(info)


def test_what_was_chosen_by_measuring_is_taken(info: ModelInfo, card: None) -> None:
    settings = dataclasses.replace(tune.untuned(info, use_extra_bufts=True), device="cpu")
    assert tune.keep(info, tune.Choice(settings, "mixed", 1.5, True, []))
    assert outlook(info).device == "cpu"
    assert "device cpu" in tune.summary(info)


def test_what_does_not_fit_is_an_error(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory", lambda: Memory(32 * GB, 1000))
    with pytest.raises(EngineMemoryError, match="are available"):
        outlook(info)


def test_show_names_the_device(qwen3_path: Path, card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(run("show", qwen3_path, "--json").stdout)
    assert (found["device"], found["device_note"]) == ("cuda:0", None)
    assert [line.split() for line in run("show", qwen3_path).stdout.splitlines() if line.startswith("device")] == [
        ["device", "cuda:0"]
    ]
    monkeypatch.setattr(devices, "gpus", lambda _: [dataclasses.replace(CUDA0, free=1000)])
    found = json.loads(run("show", qwen3_path, "--json").stdout)
    assert found["device"] == "cpu"
    assert "no room for a layer" in found["device_note"]


def test_show_says_why_nothing_would_compute_it(qwen3_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(placement.VARIABLE, "cuda:7")
    result = run("show", qwen3_path, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["device"] is None
    assert "there is no cuda:7" in found["device_note"]
