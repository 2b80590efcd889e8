"""A device that fails in the midst of work: the CPU takes over, once and said, or the error is the caller's.

No GPU is needed: the library computes on the CPU, and what stands in for its functions fails while the engine believes
that a GPU has its layers.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.engine import backends, bindings, devices, placement
from edge_embed.engine.devices import Gpu, Memory
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.placement import DeviceWarning
from edge_embed.errors import ComputeError, EngineClosedError, EngineMemoryError, ModelFileError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import Batch, ModelInfo

GB = 10**9
CUDA0 = Gpu("CUDA0", "a card", "CUDA", 48 * GB, 24 * GB, False)
FAILED = -3  # llama.h: any other negative value is an error of a backend


def batch(*lengths: int) -> Batch:
    ids = np.arange(5, 5 + sum(lengths), dtype=np.int32) % 200
    return Batch(ids, np.array(lengths, dtype=np.int32), tuple(range(len(lengths))))


class Card:
    """A GPU whose work fails while ``broken``, in the library's function of that name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.c: Any = bindings.load().c
        self.monkeypatch = monkeypatch
        self.broken = False
        self.loads: list[int] = []
        load = self.c.llama_model_load_from_file

        def loaded(path: bytes, params: Any) -> Any:
            self.loads.append(params.n_gpu_layers)
            return load(path, params)

        monkeypatch.setattr(self.c, "llama_model_load_from_file", loaded)
        monkeypatch.setattr(devices, "gpus", lambda _: [CUDA0])
        no_devices = backends.device_list([])
        monkeypatch.setattr(backends, "device_list", lambda _names: no_devices)
        monkeypatch.setattr(bindings, "last_complaint", lambda: "the device is lost")

    def fails_in(self, name: str, answer: Any) -> None:
        really: Callable[..., Any] = getattr(self.c, name)

        def fails(*arguments: Any) -> Any:
            return answer if self.broken and self.loads[-1] else really(*arguments)

        self.monkeypatch.setattr(self.c, name, fails)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    monkeypatch.delenv(placement.VARIABLE, raising=False)
    monkeypatch.setattr(devices, "memory", lambda: Memory(32 * GB, 32 * GB))
    return Card(monkeypatch)


@pytest.fixture
def info(qwen3_path: Path) -> ModelInfo:
    return read_model_info(read_header(qwen3_path))


@pytest.fixture
def expected(info: ModelInfo) -> Any:
    engine = LlamaEngine(info, n_threads=1, device="cpu")
    rows = engine.decode(batch(7, 3))
    engine.close()
    return rows


@pytest.fixture
def engines() -> Iterator[list[LlamaEngine]]:
    made: list[LlamaEngine] = []
    yield made
    for engine in made:
        engine.close()


def opened(engines: list[LlamaEngine], info: ModelInfo, device: str | None = None) -> LlamaEngine:
    engines.append(LlamaEngine(info, n_threads=1, device=device))
    return engines[-1]


@pytest.fixture
def failing(card: Card, info: ModelInfo, engines: list[LlamaEngine]) -> LlamaEngine:
    """An engine whose card fails from now on."""
    card.fails_in("llama_decode", FAILED)
    engine = opened(engines, info)
    card.broken = True
    return engine


@pytest.mark.parametrize("device", [None, "auto", "cuda:0,cpu"])
def test_the_cpu_takes_over_and_says_so_once(
    info: ModelInfo, expected: Any, card: Card, engines: list[LlamaEngine], device: str | None
) -> None:
    card.fails_in("llama_decode", FAILED)
    engine = opened(engines, info, device)
    assert np.array_equal(engine.decode(batch(7, 3)), expected)
    assert engine.device == "cuda:0"
    card.broken = True
    with pytest.warns(
        DeviceWarning, match=r"cuda:0 failed \(.*code -3: the device is lost\): the CPU computes the"
    ) as w:
        assert np.array_equal(engine.decode(batch(7, 3)), expected)
    assert len(w) == 1
    assert card.loads == [-1, 0]
    assert (engine.device, engine.gpu_layers) == ("cpu", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeviceWarning)
        assert np.array_equal(engine.decode(batch(7, 3)), expected)
        assert engine.decode_tokens(batch(4)).shape == (4, engine.n_embd)
    assert engine.tokenize("a text")


def test_the_vectors_of_tokens_come_from_the_cpu_too(card: Card, info: ModelInfo, engines: list[LlamaEngine]) -> None:
    card.fails_in("llama_decode", FAILED)
    engine = opened(engines, info)
    whole = engine.decode_tokens(batch(5))
    card.broken = True
    with pytest.warns(DeviceWarning, match="the CPU computes"):
        assert np.array_equal(engine.decode_tokens(batch(5)), whole)


def test_a_device_that_was_named_is_not_replaced(card: Card, info: ModelInfo, engines: list[LlamaEngine]) -> None:
    card.fails_in("llama_decode", FAILED)
    engine = opened(engines, info, "cuda:0")
    card.broken = True
    with pytest.raises(ComputeError, match="the device is lost") as caught:
        engine.decode(batch(7, 3))
    assert "--device cpu" in caught.value.hint
    assert (engine.device, card.loads) == ("cuda:0", [-1])
    card.broken = False
    assert np.isfinite(engine.decode(batch(7, 3))).all()


def test_an_error_of_the_cpu_is_an_error(card: Card, info: ModelInfo, engines: list[LlamaEngine]) -> None:
    engine = opened(engines, info, "cpu")
    card.monkeypatch.setattr(card.c, "llama_decode", lambda *_: FAILED)
    with pytest.raises(ComputeError, match="code -3"):
        engine.decode(batch(7, 3))
    assert card.loads == [0]


def test_a_context_that_cannot_be_made_is_made_on_the_cpu(
    info: ModelInfo, expected: Any, card: Card, engines: list[LlamaEngine]
) -> None:
    card.fails_in("llama_init_from_model", None)
    card.broken = True
    with pytest.warns(DeviceWarning, match=r"cuda:0 failed \(no memory for a context.*: the CPU computes"):
        engine = opened(engines, info)
    assert card.loads == [-1, 0]
    assert np.array_equal(engine.decode(batch(7, 3)), expected)


def test_another_context_that_cannot_be_made_is_made_on_the_cpu(
    card: Card, info: ModelInfo, engines: list[LlamaEngine]
) -> None:
    """The vectors of tokens need one of their own, as a longer text does."""
    card.fails_in("llama_init_from_model", None)
    engine = opened(engines, info)
    card.broken = True
    with pytest.warns(DeviceWarning, match=r"cuda:0 failed \(no memory for a context of"):
        rows = engine.decode_tokens(batch(5))
    assert np.isfinite(rows).all()
    assert engine.device == "cpu"


def test_where_the_cpu_has_no_room_either_the_device_stays(
    card: Card, failing: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "memory", lambda: Memory(32 * GB, 1000))
    with pytest.raises(ComputeError, match="the device is lost"):
        failing.decode(batch(7, 3))
    assert (failing.device, card.loads) == ("cuda:0", [-1])
    card.broken = False
    assert np.isfinite(failing.decode(batch(7, 3))).all()


def test_what_the_planner_refuses_is_no_fault_of_the_device(
    card: Card, info: ModelInfo, engines: list[LlamaEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(engines, info)
    monkeypatch.setattr(devices, "memory", lambda: Memory(32 * GB, 1000))
    with pytest.raises(EngineMemoryError, match="are available"):
        engine.decode_tokens(batch(5))
    assert (engine.device, card.loads) == ("cuda:0", [-1])


def test_an_engine_that_cannot_be_loaded_again_is_closed(
    card: Card, failing: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card.c, "llama_model_load_from_file", lambda *_: None)
    with pytest.raises(ModelFileError, match="the device is lost"):
        failing.decode(batch(7, 3))
    assert failing.closed
    for call in (lambda: failing.decode(batch(7, 3)), lambda: failing.tokenize("a text")):
        with pytest.raises(EngineClosedError):
            call()


def test_many_threads_see_one_change(info: ModelInfo, expected: Any, card: Card, engines: list[LlamaEngine]) -> None:
    """Calls that waited while the model was loaded anew are answered, and texts are tokenized meanwhile."""
    card.fails_in("llama_decode", FAILED)
    engine = opened(engines, info)
    ids = engine.tokenize("a text of some words")
    card.broken = True
    start, wrong = threading.Barrier(6), []

    def work(number: int) -> None:
        start.wait()
        for _ in range(10):
            if number % 2:
                good = engine.tokenize("a text of some words") == ids
            else:
                good = np.array_equal(engine.decode(batch(7, 3)), expected)
            if not good:
                wrong.append(number)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert card.loads == [-1, 0]
    assert [type(one.message) for one in caught].count(DeviceWarning) == 1
