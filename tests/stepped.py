"""An engine that computes when it is told to, so that what happens meanwhile can be tested without waiting for time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edge_embed.batching import sequences
from edge_embed.cancellation import Cancellation
from edge_embed.errors import ComputeError
from edge_embed.testing import FakeEngine
from edge_embed.types import Batch, EngineLimits, Float32Array

PATIENCE = 30.0  # seconds after which a test that hangs has failed


class SteppedEngine(FakeEngine):
    """A FakeEngine whose every batch waits for ``step()``, until ``run_freely()``.

    Args:
        guilty: a token id that makes a batch fail.
        shares_prefixes: whether batches may have shared tokens.
        lanes: batches that are computed at the same time.
    """

    def __init__(
        self,
        *,
        n_batch: int = 8,
        n_seq_max: int = 8,
        guilty: int | None = None,
        shares_prefixes: bool = False,
        lanes: int = 1,
        error: Callable[[], BaseException] = lambda: ComputeError("a guilty text"),
    ) -> None:
        super().__init__(n_batch=n_batch, n_seq_max=n_seq_max, lanes=lanes)
        self._stepped_limits = replace(super().limits, shares_prefixes=shares_prefixes)
        self.guilty, self.error = guilty, error
        self.computed: list[tuple[int, ...]] = []  # token ids of every text that was computed, in that order
        self.batch_texts: list[list[tuple[int, ...]]] = []  # the same, batch by batch
        self.began = threading.Semaphore(0)  # a batch has begun
        self._may_go = threading.Semaphore(0)
        self._free = False

    @property
    def limits(self) -> EngineLimits:
        """As told."""
        return self._stepped_limits

    def wait_until_busy(self) -> None:
        """A batch has begun that was not waited for before."""
        assert self.began.acquire(timeout=PATIENCE), "no batch has begun"

    def step(self, n: int = 1) -> None:
        """Let the batch under way be computed, or the next one; or ``n`` of them."""
        self._may_go.release(n)

    def run_freely(self) -> None:
        """Nothing waits any more."""
        self._free = True
        self._may_go.release(1000)

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """Waits; then as FakeEngine, shared tokens counted for each text."""
        texts = [tuple(ids.tolist()) for ids in sequences(batch)]
        self.batch_texts.append(texts)
        self.began.release()
        if not self._free:
            assert stop is not None
            with stop.interrupting(self._may_go.release):
                assert self._may_go.acquire(timeout=PATIENCE), "a batch was never let go"
        if stop is not None:
            stop.check()
        if self.guilty is not None and any(self.guilty in text for text in texts):
            raise self.error()
        self.computed += texts
        return np.stack([row_of(text) for text in texts])

    def decode_tokens(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """A row for each token, as FakeEngine."""
        self.decode(batch, stop)
        rows: Float32Array = np.eye(self.n_embd, dtype=np.float32)[batch.token_ids % self.n_embd]
        return rows


def row_of(text: tuple[int, ...], n_embd: int = 16) -> Float32Array:
    """What the engine gives for a text: how often each token id occurs, modulo the size."""
    return np.bincount(np.array(text) % n_embd, minlength=n_embd).astype(np.float32)
