"""Batches through an engine that computes several of them at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from edge_embed.batching import pack
from edge_embed.cancellation import Cancellation
from edge_embed.errors import CallCancelledError
from edge_embed.types import Batch, Encoding, Engine, EngineLimits, Float32Array

WORTH_A_LANE: Final = 64
"""Tokens. No batch is made smaller than that so that each lane has one, and a smaller one gets all threads."""


def packed(encodings: Sequence[Encoding], limits: EngineLimits) -> Iterator[Batch]:
    """Batches for an engine: as many as it computes at a time, where there would be fewer.

    Args:
        encodings: texts, in any order; each batch names the places of its own in ``indices``.
        limits: the engine's.

    Raises:
        As ``batching.pack``.
    """
    n_batch = limits.n_batch
    lengths = [encoding.n_tokens for encoding in encodings]
    if limits.lanes > 1 and WORTH_A_LANE < sum(lengths) <= limits.lanes * n_batch:
        equal, longest = max(WORTH_A_LANE, -(-sum(lengths) // limits.lanes)), max(lengths)
        for n_tokens in (equal, equal + longest // 2, equal + longest):  # texts are whole: some may be left over
            n_tokens = min(n_tokens, n_batch)
            batches = list(pack(encodings, n_batch=n_tokens, n_seq_max=limits.n_seq_max))
            if len(batches) <= limits.lanes or n_tokens == n_batch:
                return iter(batches)
    return pack(encodings, n_batch=n_batch, n_seq_max=limits.n_seq_max, share=limits.shares_prefixes)


def decode_all(
    engine: Engine, batches: Iterable[Batch], stop: Cancellation | None = None
) -> Iterator[tuple[Batch, Float32Array]]:
    """Batches with their rows, float32 ``[n_seqs, n_embd]``, in their order. What one raises, or ``stop``, ends all.

    Args:
        engine: computes ``limits.lanes`` of them at a time; of one with several, all batches are made first.
        batches: read as they are computed, where the engine has one lane.
        stop: ends those under way.

    Raises:
        As ``Engine.decode``.
    """
    if engine.limits.lanes == 1:
        for batch in batches:
            yield batch, engine.decode(batch, stop)
        return
    every = list(batches)
    if len(every) < 2:
        for batch in every:
            yield batch, engine.decode(batch, stop)
        return
    lanes = _Lanes(engine, every)
    with stop.interrupting(lanes.halt.cancel) if stop is not None else contextlib.nullcontext(), lanes:
        for index, batch in enumerate(every):
            try:
                rows = lanes.rows(index)
            except CallCancelledError:
                if stop is not None:
                    stop.check()  # says why
                raise
            yield batch, rows


class _Lanes:
    """A thread for each lane, while the block lasts; each takes the next batch that nobody has."""

    def __init__(self, engine: Engine, batches: Sequence[Batch]) -> None:
        self.halt = Cancellation()
        self._engine = engine
        self._waiting = iter(enumerate(batches))
        self._rows: dict[int, Float32Array] = {}
        self._error: BaseException | None = None
        self._lock = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name="edge-embed-lane", daemon=True)
            for _ in range(min(engine.limits.lanes, len(batches)))
        ]

    def __enter__(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # no more threads, or an interrupt: those that run must not go through everything
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.halt.cancel()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def rows(self, index: int) -> Float32Array:
        """Of a batch, once. Raises what any batch raised."""
        with self._lock:
            self._lock.wait_for(lambda: index in self._rows or self._error is not None)
            if index not in self._rows:
                assert self._error is not None
                raise self._error
            return self._rows.pop(index)

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    index, batch = next(self._waiting, (-1, None))
                if batch is None:
                    return
                self.halt.check()
                rows = self._engine.decode(batch, self.halt)
                with self._lock:
                    self._rows[index] = rows
                    self._lock.notify_all()
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
                self._lock.notify_all()
