"""Batches that are computed at the same time come back in their order, and end together."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed.batching import pack
from edge_embed.cancellation import Cancellation
from edge_embed.errors import CallCancelledError, ComputeError, DeadlineExceededError
from edge_embed.testing import FakeEngine
from edge_embed.together import WORTH_A_LANE, decode_all, packed
from edge_embed.types import Batch, Encoding, EngineLimits, Float32Array
from tests.stepped import PATIENCE, row_of


def texts(lengths: Sequence[int]) -> list[Encoding]:
    return [Encoding(np.full(n, i % 200, dtype=np.int32), n) for i, n in enumerate(lengths)]


class Meeting(FakeEngine):
    """Computes nothing before as many batches are under way as it has lanes."""

    def __init__(self, lanes: int) -> None:
        super().__init__(lanes=lanes)
        self.barrier = threading.Barrier(lanes, timeout=PATIENCE)

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        self.barrier.wait()
        return super().decode(batch, stop)


class Waiting(FakeEngine):
    """Computes nothing before it is stopped. The batch with token 1 fails, if that is asked for."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(lanes=2)
        self.fails = fails
        self.began = threading.Semaphore(0)
        self.stopped = 0

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        assert stop is not None
        self.began.release()
        if self.fails and 1 in batch.token_ids:
            raise ComputeError("a guilty text")
        ended = threading.Event()
        with stop.interrupting(ended.set):
            assert ended.wait(PATIENCE), "nobody stopped it"
        self.stopped += 1
        stop.check()
        raise AssertionError


@pytest.mark.parametrize("lanes", [2, 3])
def test_as_many_at_a_time_as_there_are_lanes(lanes: int) -> None:
    engine = Meeting(lanes)
    batches = list(pack(texts([40] * 6), n_batch=64, n_seq_max=8))
    assert [batch.indices for batch, _ in decode_all(engine, batches)] == [(i,) for i in range(6)]


@given(lengths=st.lists(st.integers(1, 60), max_size=40), lanes=st.integers(1, 4))
def test_rows_come_in_the_order_of_their_batches(lengths: list[int], lanes: int) -> None:
    engine = FakeEngine(lanes=lanes)
    encodings = texts(lengths)
    found: dict[int, list[float]] = {}
    for batch, rows in decode_all(engine, packed(encodings, engine.limits)):
        found.update(zip(batch.indices, rows.tolist(), strict=True))
    assert found == {i: row_of(tuple(one.token_ids.tolist())).tolist() for i, one in enumerate(encodings)}


def test_an_error_ends_the_others_and_is_raised() -> None:
    engine = Waiting(fails=True)
    with pytest.raises(ComputeError, match="guilty"):
        list(decode_all(engine, pack(texts([40] * 4), n_batch=64, n_seq_max=8)))
    assert engine.stopped <= 1  # the one that was under way, if it was; nothing was begun after that
    assert not [thread for thread in threading.enumerate() if thread.name == "edge-embed-lane"]


def test_what_stops_the_call_stops_every_lane_and_says_why() -> None:
    engine, stop = Waiting(), Cancellation()

    def cancel() -> None:
        for _ in range(2):
            assert engine.began.acquire(timeout=PATIENCE)
        stop.cancel()

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(CallCancelledError):
        list(decode_all(engine, pack(texts([40] * 4), n_batch=64, n_seq_max=8), stop))
    other.join()
    assert engine.stopped == 2
    with pytest.raises(DeadlineExceededError, match=r"longer than 0\.05 s"):
        list(decode_all(Waiting(), pack(texts([40] * 4), n_batch=64, n_seq_max=8), Cancellation(0.05)))


def test_nobody_who_stops_listening_leaves_work_behind() -> None:
    engine = FakeEngine(lanes=2)
    rows = decode_all(engine, pack(texts([60] * 50), n_batch=64, n_seq_max=8))
    next(rows)
    rows.close()  # type: ignore[attr-defined]  # a generator
    assert not [thread for thread in threading.enumerate() if thread.name == "edge-embed-lane"]


@pytest.mark.parametrize(
    ("lengths", "lanes", "n"),
    [
        ([30] * 10, 1, 2),  # 300 tokens: as full as they may be
        ([30] * 10, 2, 2),
        ([30] * 10, 4, 4),
        ([20] * 4, 4, 2),  # of so few tokens not four: two of 40, not below WORTH_A_LANE with one text more
        ([200], 4, 1),
        ([3] * 3, 4, 1),
        ([], 4, 0),
    ],
)
def test_little_is_shared_out_among_the_lanes(lengths: list[int], lanes: int, n: int) -> None:
    limits = EngineLimits(n_batch=256, n_seq_max=64, n_ctx_max=512, n_vocab=300, lanes=lanes)
    batches = list(packed(texts(lengths), limits))
    assert len(batches) == n
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
    if n > 1:
        assert all(batch.n_tokens + max(lengths) > WORTH_A_LANE for batch in batches[:-1])


@pytest.mark.parametrize(
    ("lengths", "sizes"), [([50] * 4, [2, 2]), ([100, 100], [1, 1]), ([30] * 10, [5, 5]), ([40] * 3, [2, 1])]
)
def test_equal_texts_are_shared_out_equally(lengths: list[int], sizes: list[int]) -> None:
    limits = EngineLimits(n_batch=256, n_seq_max=64, n_ctx_max=512, n_vocab=300, lanes=2)
    assert [batch.n_seqs for batch in packed(texts(lengths), limits)] == sizes


def test_a_lane_that_cannot_be_started_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would go through everything otherwise, with nobody to listen."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def no_more(thread: threading.Thread) -> None:
        if len(started) == 1:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    engine = Waiting()
    monkeypatch.setattr(threading.Thread, "start", no_more)
    with pytest.raises(RuntimeError, match="new thread"):
        next(decode_all(engine, pack(texts([40] * 4), n_batch=64, n_seq_max=8)))
    assert not started[0].is_alive()


def test_much_is_packed_as_without_lanes() -> None:
    limits = EngineLimits(n_batch=256, n_seq_max=64, n_ctx_max=512, n_vocab=300, lanes=2)
    lengths = [1 + 7 * i % 90 for i in range(300)]
    whole = pack(texts(lengths), n_batch=256, n_seq_max=64)
    assert [batch.indices for batch in packed(texts(lengths), limits)] == [batch.indices for batch in whole]
