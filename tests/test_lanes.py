"""Several contexts over one encoder: the same bits, an end for everything, and no more memory than is worth it."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.batching import pack
from edge_embed.engine import lanes
from edge_embed.engine.lane_plan import LANE_BYTES, MOST_LANES, LanePlan, plan_lanes
from edge_embed.engine.lanes import Lane, Lanes
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.memory_model import Need
from edge_embed.errors import EngineClosedError, EngineMemoryError
from edge_embed.types import Batch, Encoding, Float32Array, ModelInfo


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    with Embedder(n_threads=1) as embedder:
        return embedder.info


@pytest.fixture
def engine(info: ModelInfo) -> Iterator[LlamaEngine]:
    found = LlamaEngine(info, n_threads=2)
    yield found
    found.close()


def batch(*lengths: int) -> Batch:
    ids = np.random.default_rng(sum(lengths)).integers(1000, 28000, sum(lengths)).astype(np.int32)
    return Batch(ids, np.array(lengths, dtype=np.int32), tuple(range(len(lengths))))


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "edge-embed-engine"]


# How many


@pytest.mark.parametrize(("n_threads", "n"), [(1, 1), (2, 2), (3, 3), (4, 4), (16, MOST_LANES)])
def test_a_lane_for_each_thread_up_to_a_limit(info: ModelInfo, n_threads: int, n: int) -> None:
    plan = plan_lanes(info, n_threads=n_threads, n_batch=256)
    assert plan.n == n
    assert plan.n_tokens == (512 if n > 1 else 0)
    assert plan.compute + plan.output <= LANE_BYTES
    need = plan.beside(Need(weights=1000, compute=10, output=20))
    assert (need.weights, need.compute) == (1000, 10 + (n - 1) * plan.compute)
    assert need.output == 20 + (n - 1) * plan.output


def test_no_lanes_where_each_would_take_much_memory(info: ModelInfo) -> None:
    """A row of the vocabulary for every token of a batch: 250,002 of them are 256 MB for 256 tokens."""
    assert info.shape is not None
    wide = replace(info, shape=replace(info.shape, n_vocab=250_002))
    assert plan_lanes(wide, n_threads=2, n_batch=256) == LanePlan()
    # ... and of longer texts only as far as it is worth it
    middle = replace(info, n_ctx_train=8192, shape=replace(info.shape, n_vocab=50_368))
    assert plan_lanes(middle, n_threads=2, n_batch=256).n_tokens == 256


def test_no_lanes_for_models_with_a_memory_of_what_they_read(info: ModelInfo) -> None:
    assert plan_lanes(replace(info, architecture="qwen3"), n_threads=2, n_batch=256) == LanePlan()


def test_no_lanes_where_every_text_is_computed_by_itself(info: ModelInfo) -> None:
    engine = LlamaEngine(info, n_threads=2, deterministic=True)
    assert engine.limits.lanes == 1
    engine.close()


# Whose turn


class Nowhere(Lane):
    """A lane without a context."""

    def __init__(self) -> None:
        pass


def turns() -> Lanes:
    found = Lanes(8)
    found.open(LanePlan(4, 512), Nowhere)
    return found


def test_the_lane_with_the_fewest_calls() -> None:
    choice = turns()
    first, second = choice.turn(batch(40, 40)), choice.turn(batch(40, 40))
    with first as (own, n_threads):
        assert (own, n_threads) == (None, 2)
        with second as (further, n_threads):
            assert (further, n_threads) == (choice.further[0], 2)
        with choice.turn(batch(7)) as (again, n_threads):
            assert (again, n_threads) == (choice.further[0], 2)  # one text, but not alone


@pytest.mark.parametrize(("n_threads", "shares"), [(4, [1, 1, 1, 1]), (6, [2, 2, 1, 1]), (14, [4, 4, 3, 3])])
def test_no_thread_is_left_over(n_threads: int, shares: list[int]) -> None:
    choice = Lanes(n_threads)
    choice.open(LanePlan(4, 512), Nowhere)
    with contextlib.ExitStack() as stack:
        assert [stack.enter_context(choice.turn(batch(40, 40)))[1] for _ in range(4)] == shares


def test_what_only_the_first_lane_computes_is_counted() -> None:
    choice = turns()
    with choice.first(), choice.turn(batch(40, 40)) as (lane, n_threads):
        assert (lane, n_threads) == (choice.further[0], 2)


@pytest.mark.parametrize("lengths", [(7,), (512,), (20, 20, 20)])
def test_what_is_alone_and_cannot_be_shared_out_has_all_threads(lengths: tuple[int, ...]) -> None:
    with turns().turn(batch(*lengths)) as (lane, n_threads):
        assert (lane, n_threads) == (None, 8)


def test_a_long_text_is_computed_in_the_first_lane_by_all_threads() -> None:
    choice = turns()
    with choice.turn(batch(40, 40)), choice.turn(batch(513)) as (lane, n_threads):
        assert (lane, n_threads) == (None, 8)


# Vectors


def test_the_same_bits_in_every_lane(engine: LlamaEngine) -> None:
    batches = [batch(*(1 + (7 * i + k) % 25 for k in range(1 + i % 9))) for i in range(60)] + [batch(400), batch(512)]
    alone = [engine._owner.call(lambda one=one: engine._decode_healed(one, 1)) for one in batches]  # type: ignore[misc]
    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(engine.decode, batches))
    assert [rows.tobytes() for rows in together] == [rows.tobytes() for rows in alone]
    assert engine.limits.lanes == 2


def test_through_the_embedder() -> None:
    texts = [f"text {i} " + "of more words " * (i % 30) for i in range(200)]
    with Embedder(n_threads=3, cache=False) as several, Embedder(n_threads=1, cache=False) as one:
        assert several.encode(texts).tobytes() == one.encode(texts).tobytes()


def test_values_that_are_not_finite_are_looked_at_again(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first lane, which computes the texts one by one then."""
    right = engine.decode(batch(9, 9))
    monkeypatch.setattr(Lane, "decode", lambda _self, one, _n: np.full((one.n_seqs, 384), np.nan, dtype=np.float32))
    held = engine._lanes.turn(batch(9, 9))
    with held:
        assert engine.decode(batch(9, 9)).tobytes() == right.tobytes()


def test_where_there_is_no_memory_for_a_lane_the_first_one_computes(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(*_: object, **__: object) -> None:
        tried.append(1)
        raise EngineMemoryError("none")

    right = engine.decode(batch(9, 9))
    monkeypatch.setattr(lanes, "check_fits", refuse)
    with engine._lanes.turn(batch(9, 9)):
        assert engine.decode(batch(9, 9)).tobytes() == right.tobytes()
    assert tried == [1]


def test_a_text_that_needs_the_lanes_memory_gets_it(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine.decode(batch(500))
    with engine._lanes.turn(batch(9, 9)):
        engine.decode(batch(9, 9))
    assert engine._lanes.further[0]._capacity
    whole = engine._decode_healed

    def only_alone(one: Batch, n_threads: int) -> Float32Array:
        if engine._lanes.further[0]._capacity:
            raise EngineMemoryError("none")
        return whole(one, n_threads)

    monkeypatch.setattr(engine, "_decode_healed", only_alone)
    assert engine.decode(batch(500)).tobytes() == right.tobytes()
    monkeypatch.setattr(engine, "_decode_healed", lambda *_: (_ for _ in ()).throw(EngineMemoryError("none at all")))
    with pytest.raises(EngineMemoryError, match="none at all"):
        engine.decode(batch(500))


def test_longer_texts_make_a_larger_context(engine: LlamaEngine) -> None:
    def in_second_lane(one: Batch) -> Float32Array:
        with engine._lanes.turn(batch(9, 9)):
            return engine.decode(one)

    short, long = batch(30), batch(500)
    expected = engine.decode(short), engine.decode(long)
    found = in_second_lane(short), in_second_lane(long)
    assert [rows.tobytes() for rows in found] == [rows.tobytes() for rows in expected]
    assert engine._lanes.further[0]._capacity == 512
    engine.forget()
    assert engine._lanes.further[0]._capacity == 0
    assert in_second_lane(short).tobytes() == expected[0].tobytes()


# The end


def test_closing_ends_every_thread_and_refuses_what_comes_later(info: ModelInfo) -> None:
    before = len(engine_threads())
    engine = LlamaEngine(info, n_threads=3)
    assert len(engine_threads()) == before + 3
    encodings = [Encoding(np.full(50, 2000 + i, dtype=np.int32), 50) for i in range(60)]
    refused = []

    def ask() -> None:
        try:
            for one in pack(encodings, n_batch=256, n_seq_max=64):
                engine.decode(one)
        except EngineClosedError as error:
            refused.append(error)

    others = [threading.Thread(target=ask) for _ in range(6)]
    for other in others:
        other.start()
    engine.close()
    for other in others:
        other.join()
    assert refused
    assert len(engine_threads()) == before


def test_an_engine_that_nobody_knows_any_more_is_freed(info: ModelInfo) -> None:
    before = len(engine_threads())
    engine = LlamaEngine(info, n_threads=2)
    with engine._lanes.turn(batch(9, 9)):
        engine.decode(batch(9, 9))  # in the second lane
    del engine
    gc.collect()
    until = time.monotonic() + 30
    while len(engine_threads()) > before and time.monotonic() < until:
        time.sleep(0.01)
    assert len(engine_threads()) == before
