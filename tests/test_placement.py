"""Where a model is computed: names of devices, refusals, and fall-backs that are said. No GPU is needed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder, Reranker, planning
from edge_embed.engine import backends, bindings, devices, placement, tune
from edge_embed.engine.devices import Gpu, Memory
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.placement import DeviceWarning, Placement, Wanted, place, wanted
from edge_embed.engine.plan import room_of
from edge_embed.engine.probe import ProbeResult
from edge_embed.engine.shape import SEQ_MAX, context_shape
from edge_embed.errors import EngineMemoryError, EngineUnavailableError, InvalidOptionError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info

GB = 10**9
FOUR_B = planning.known_model(planning.catalogue.find("qwen3-embedding-4b"), "q4_k_m")  # type: ignore[arg-type]
CONTEXT = context_shape(FOUR_B, n_tokens=512, n_seq_max=SEQ_MAX, hidden=True)


def gpu(kind: str, number: int = 0, *, free: int = 24 * GB, integrated: bool = False) -> Gpu:
    shares = integrated or kind == "Metal"
    return Gpu(f"{kind}{number}", "a card", kind, 2 * free, free, shares, number, integrated)


CUDA0, CUDA1, VULKAN0, METAL = gpu("CUDA"), gpu("CUDA", 1), gpu("Vulkan"), gpu("Metal")
ALL = [CUDA0, CUDA1, VULKAN0]


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(placement.VARIABLE, raising=False)
    monkeypatch.setattr(devices, "memory", lambda: Memory(32 * GB, 32 * GB))


# Names


@pytest.mark.parametrize(
    ("said", "found", "expected", "falls_back"),
    [
        (None, ALL, [CUDA0, CUDA1], True),
        ("auto", [VULKAN0], [VULKAN0], True),
        ("auto", [], [], True),
        ("auto", [gpu("Vulkan", integrated=True), gpu("Vulkan", 1)], [gpu("Vulkan", 1)], True),
        ("auto", [gpu("CUDA", integrated=True)], [gpu("CUDA", integrated=True)], True),
        ("cpu", ALL, [], True),
        ("cuda", ALL, [CUDA0], False),
        ("cuda:1", ALL, [CUDA1], False),
        (" CUDA:0 , cuda:1 ", ALL, [CUDA0, CUDA1], False),
        ("cuda:1,cuda:0", ALL, [CUDA1, CUDA0], False),
        ("vulkan:0", ALL, [VULKAN0], False),
        ("metal", [METAL], [METAL], False),
        ("metal:0", [METAL], [METAL], False),
        ("cuda:0,cpu", ALL, [CUDA0], True),
    ],
)
def test_names_mean_devices(said: str | None, found: list[Gpu], expected: list[Gpu], falls_back: bool) -> None:
    asked = wanted(said, None, found)
    assert list(asked.gpus) == expected
    assert asked.falls_back == falls_back
    assert asked.device == (",".join(one.device for one in expected) or "cpu")
    assert asked.note == ""


@pytest.mark.parametrize("said", ["cuda:2", "rocm", "cuda:0,cuda:7", "metal", "tpu", "cuda:0:1", "cuda:-1"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(said: str) -> None:
    with pytest.raises(InvalidOptionError, match="only cpu, cuda:0, cuda:1, vulkan:0") as caught:
        wanted(said, None, ALL)
    assert f"{said},cpu" in caught.value.hint


@pytest.mark.parametrize("said", ["auto,cpu", "cpu,cuda:0", "cuda:0,cuda:0", "cpu,cpu"])
def test_words_that_contradict_each_other_are_refused(said: str) -> None:
    with pytest.raises(InvalidOptionError, match="device is"):
        wanted(said, None, ALL)


@pytest.mark.parametrize("device", [0, b"cpu", ["cuda:0"]])
def test_a_device_is_a_name(device: Any) -> None:
    with pytest.raises(InvalidOptionError, match="device is"):
        wanted(device, None, ALL)


def test_a_device_that_may_be_missing_is_said_to_be() -> None:
    asked = wanted("cuda:0,cpu", None, [VULKAN0])
    assert asked.gpus == ()
    placed = place(FOUR_B, CONTEXT, asked)
    assert (placed.device, placed.gpu_layers) == ("cpu", 0)
    assert placed.note == "there is no cuda:0 here, only cpu, vulkan:0: the CPU computes the model"


def test_of_several_devices_those_that_are_here_do_the_work() -> None:
    placed = place(FOUR_B, CONTEXT, wanted("cuda:0,cuda:5,cpu", None, [CUDA0]))
    assert (placed.device, placed.gpu_layers) == ("cuda:0", -1)
    assert placed.note == "there is no cuda:5 here, only cpu, cuda:0: cuda:0 computes the model"


def test_the_variable_stands_in_for_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(placement.VARIABLE, "vulkan:0")
    assert wanted(None, None, ALL).gpus == (VULKAN0,)
    assert wanted("cuda:1", None, ALL).gpus == (CUDA1,)
    assert wanted(None, 0, ALL).gpus == ()
    monkeypatch.setenv(placement.VARIABLE, "")
    assert wanted(None, None, ALL).said == "auto"
    monkeypatch.setenv(placement.VARIABLE, "abacus")
    with pytest.raises(InvalidOptionError, match="EDGE_EMBED_DEVICE is 'abacus'"):
        wanted(None, None, ALL)


@pytest.mark.parametrize(("said", "layers"), [("cpu", 3), ("cpu", -1), ("cuda:0", 0), ("cuda:0,cpu", 0)])
def test_a_device_and_layers_that_contradict_each_other_are_refused(said: str, layers: int) -> None:
    with pytest.raises(InvalidOptionError, match="gpu_layers is"):
        wanted(said, layers, ALL)


def test_the_cpu_with_no_layers_on_a_gpu_is_no_contradiction() -> None:
    assert wanted("cpu", 0, ALL).gpus == ()
    assert wanted("auto", 0, ALL).gpus == ()


# Layers


def test_what_fits_needs_no_word() -> None:
    assert place(FOUR_B, CONTEXT, wanted("cuda:0", None, ALL)) == Placement(Wanted("cuda:0", (CUDA0,), False), -1)
    assert place(FOUR_B, CONTEXT, wanted("auto", None, [])).note == ""


@pytest.mark.parametrize("said", ["auto", "cuda:0", "cuda:0,cpu"])
def test_what_fits_in_part_is_said(said: str) -> None:
    placed = place(FOUR_B, CONTEXT, wanted(said, None, [gpu("CUDA", free=2 * GB)]))
    assert 1 < placed.gpu_layers < FOUR_B.n_layer
    assert placed.device == "cuda:0"
    assert f"cuda:0 takes {placed.gpu_layers - 1} of 36 layers of qwen3-embedding-4b:q4_k_m" in placed.note
    assert "2.00 GB of its memory is free: the CPU computes the others" in placed.note


def test_a_full_gpu_is_left_and_that_is_said() -> None:
    small = [gpu("CUDA", free=100 * 10**6)]
    for said in ("auto", "cuda,cpu"):
        placed = place(FOUR_B, CONTEXT, wanted(said, None, small))
        assert (placed.device, placed.gpus) == ("cpu", ())
        assert "no room for a layer" in placed.note
        assert "the CPU computes the model" in placed.note
    with pytest.raises(EngineMemoryError, match=r"cuda:0 has no room for a layer of .*100 MB") as caught:
        place(FOUR_B, CONTEXT, wanted("cuda:0", None, small))
    assert "cuda:0,cpu" in caught.value.hint


def test_layers_for_a_gpu_that_is_not_there_are_said() -> None:
    assert "gpu_layers is 12" in place(FOUR_B, CONTEXT, wanted("auto", 12, []), 12).note


def test_memory_that_is_the_machines_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's and a Jetson's GPU say that much is free; the CPU's part has to go there, too."""
    for one in (gpu("Metal", free=6 * GB), gpu("CUDA", free=6 * GB, integrated=True)):
        monkeypatch.setattr(devices, "memory", lambda: Memory(8 * GB, 6 * GB))
        assert place(FOUR_B, CONTEXT, wanted(None, None, [one])).gpu_layers == -1
        monkeypatch.setattr(devices, "memory", lambda: Memory(8 * GB, 3_100_000_000))
        assert 0 <= place(FOUR_B, CONTEXT, wanted(None, None, [one])).gpu_layers < 36
        device = room_of([one]).device
        assert device is not None
        assert device.shares_memory


# The engine


class Loads:
    """Stands in for loading a model, which fails wherever a device is named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: list[Gpu], complaint: str) -> None:
        c = bindings.load().c
        self.layers: list[int] = []
        self.really, self.complaint = c.llama_model_load_from_file, complaint
        monkeypatch.setattr(c, "llama_model_load_from_file", self)
        monkeypatch.setattr(devices, "gpus", lambda _: found)
        monkeypatch.setattr(backends, "device_list", self.device_list)
        monkeypatch.setattr(bindings, "last_complaint", lambda: self.complaint)
        self.list = backends.device_list

    def device_list(self, names: list[str]) -> Any:
        self.names = names
        return REAL_LIST([])

    def __call__(self, path: bytes, params: Any) -> Any:
        self.layers.append(params.n_gpu_layers)
        return None if params.n_gpu_layers else self.really(path, params)


REAL_LIST = backends.device_list


def test_a_gpu_that_cannot_load_is_left_and_that_is_said(monkeypatch: pytest.MonkeyPatch, qwen3_path: Path) -> None:
    loads = Loads(monkeypatch, [CUDA0], "unable to allocate CUDA0 buffer")
    info = read_model_info(read_header(qwen3_path))
    with pytest.warns(DeviceWarning, match=r"cuda:0 failed \(.*unable to allocate CUDA0 buffer\): the CPU computes"):
        engine = LlamaEngine(info, n_threads=1)
    assert loads.layers == [-1, 0]
    assert (engine.device, engine.gpu_layers) == ("cpu", 0)
    engine.close()


def test_a_gpu_that_was_named_and_cannot_load_is_an_error(monkeypatch: pytest.MonkeyPatch, qwen3_path: Path) -> None:
    loads = Loads(monkeypatch, [CUDA0], "unable to allocate CUDA0 buffer")
    info = read_model_info(read_header(qwen3_path))
    with pytest.raises(EngineMemoryError, match=r"cuda:0 has no room for tiny.*unable to allocate") as caught:
        LlamaEngine(info, n_threads=1, device="cuda:0")
    assert loads.layers == [-1]
    assert loads.names == ["CUDA0"]
    assert "cuda:0,cpu" in caught.value.hint


def test_here_is_a_cpu_and_what_it_computes_is_the_same_under_any_name(qwen3_path: Path) -> None:
    vectors = []
    for device in (None, "auto", "cpu"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeviceWarning)
            with Embedder(qwen3_path, n_threads=1, device=device) as embedder:
                assert embedder.device == "cpu"
                vectors.append(embedder.encode("a text"))
    assert np.array_equal(vectors[0], vectors[1])
    assert np.array_equal(vectors[0], vectors[2])


def test_a_missing_device_reaches_the_caller(qwen3_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="there is no cuda:5"):
        Embedder(qwen3_path, device="cuda:5")
    with pytest.warns(DeviceWarning, match="there is no cuda:5 here"), Embedder(qwen3_path, device="cuda:5,cpu") as one:
        assert one.device == "cpu"


def test_a_reranker_has_the_same_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny_gguf import gguf_bytes, tiny_bert

    path = tmp_path / "bert.gguf"
    path.write_bytes(gguf_bytes(*tiny_bert()))
    monkeypatch.setattr("edge_embed.reranker.require_scores", lambda info: info)
    with pytest.raises(InvalidOptionError, match="there is no vulkan:3"):
        Reranker(path, device="vulkan:3")


def test_a_device_that_is_gone_is_an_error() -> None:
    with pytest.raises(EngineUnavailableError, match="CUDA9"):
        REAL_LIST(["CUDA9"])
    assert list(REAL_LIST([])) == [None]
    assert REAL_LIST(["CPU"])[0]


# What the probe and tuned settings have to do with it


@pytest.mark.parametrize(("device", "refused"), [(None, False), ("cuda:0", True), ("cuda:0,cpu", False)])
def test_devices_that_the_probe_refuses_are_left(
    device: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch, qwen3_path: Path
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda _: [CUDA0])
    asked: list[str] = []

    def probe(_info: object, _library: object, *, device: str, low_memory: bool) -> ProbeResult:
        asked.append(device)
        return ProbeResult(True, device_problem="it died of SIGSEGV")

    monkeypatch.setattr("edge_embed.engine.probe.probe", probe)
    if refused:
        with pytest.raises(EngineUnavailableError, match=r"cuda:0 does not compute tiny.*SIGSEGV") as caught:
            Embedder(qwen3_path, device=device)
        assert "cuda:0,cpu" in caught.value.hint
    else:
        with pytest.warns(DeviceWarning, match="SIGSEGV: the CPU does"):
            embedder = Embedder(qwen3_path, device=device)
        assert embedder.device == "cpu"
        embedder.close()
    assert asked == ["cuda:0"]


def test_settings_that_were_measured_give_way_to_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tune.Settings("", "cpu", True, 3, 128, 256, True)
    choice = tune.Choice(settings, "mixed", 1.5, True, [])
    monkeypatch.setattr(tune, "choice", lambda _: choice)
    assert tune.arguments(FOUR_B, {"device": None})["device"] == "cpu"
    assert "device" not in tune.arguments(FOUR_B, {"gpu_layers": 12})
    measured = tune.arguments(FOUR_B, {"device": "cuda:0"})
    assert (measured["device"], measured["n_threads"]) == ("cuda:0", 3)
    assert tune.arguments(FOUR_B, {"low_memory": True}) == {"low_memory": True}
    monkeypatch.setattr(tune, "choice", lambda _: replace(choice, settings=replace(settings, device="cuda:1")))
    assert tune.arguments(FOUR_B, {})["device"] == "cuda:1,cpu"  # a card that is gone is no error then
    monkeypatch.setattr(tune, "choice", lambda _: replace(choice, settings=replace(settings, library="/else/where")))
    assert tune.arguments(FOUR_B, {"device": "cuda:0"}) == {"device": "cuda:0"}
    monkeypatch.setenv(placement.VARIABLE, "vulkan")
    assert tune.arguments(FOUR_B, {}) == {}


def test_a_plan_is_for_the_devices_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda _: [gpu("CUDA", free=2 * GB), gpu("CUDA", 1)])

    def planned(device: str | None) -> tuple[str, int, int]:
        found = planning.plan("qwen3-embedding-4b", ftype="q4_k_m", device=device).plan
        return found.device, found.gpu_layers, found.room.vram

    assert planned("cpu") == ("CPU", 0, 0)
    assert planned("cuda:1") == ("CUDA", 37, 24 * GB)
    device, layers, vram = planned("cuda:0")
    assert (device, vram) == ("CUDA", 2 * GB)
    assert 1 < layers < 37
    assert planned(None)[2] == 26 * GB
    with pytest.raises(InvalidOptionError, match="device is about this machine"):
        planning.plan("qwen3-embedding-4b", ftype="q4_k_m", device="cpu", vram=4 * GB)
