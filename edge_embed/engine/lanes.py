"""Lanes: further contexts over an encoder's weights, so that several batches are computed at the same time.

The threads of one context wait for each other after every operation, some hundred times a batch, and where one of them
has to share its core (with the thread of a server's connections, say) all wait for it. Contexts with a thread or two of
their own do not: two lanes of one thread are faster than one of two, whatever else runs.

A lane takes what batches of short texts take, and it is made when it is first needed. Long texts, and what is alone,
are computed by all threads in the engine's own context, which is the first lane.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from edge_embed.engine import bindings
from edge_embed.engine.contexts import make_context
from edge_embed.engine.fits import check_fits
from edge_embed.engine.graph import CBatch, output_rows, run
from edge_embed.engine.lane_plan import LanePlan
from edge_embed.engine.owner import AbortFlag, Handles, Owner
from edge_embed.engine.pooling import in_company, pooled
from edge_embed.engine.shape import context_shape
from edge_embed.errors import ComputeError
from edge_embed.together import WORTH_A_LANE
from edge_embed.types import Batch, Float32Array, Lora, ModelInfo


class Lane:
    """A context beside the engine's own, and the thread that owns it.

    It must not know the engine, which is freed when nobody knows it.

    Args:
        lib: the bindings.
        info: the model.
        handles: its C objects.
        lora: the adapter among them.
        n_seq_max: most texts of a batch.
    """

    def __init__(
        self, lib: bindings.Bindings, info: ModelInfo, handles: Handles, lora: Lora | None, n_seq_max: int
    ) -> None:
        self._lib, self._info, self._handles, self._lora, self._n_seq_max = lib, info, handles, lora, n_seq_max
        self._abort = AbortFlag(lib.c)
        self.owner = Owner(self._abort)
        self._context: Any = None
        self._capacity = 0

    def decode(self, batch: Batch, n_threads: int) -> Float32Array:
        """Pooled vectors, float32 ``[n_seqs, n_embd]``, as they come. To be called on the owner's thread.

        Raises:
            EngineMemoryError: there is no memory for the context.
            CallCancelledError, ComputeError: as ``graph.run``.
        """
        whole = in_company(batch)
        self._fit(whole.n_tokens, n_threads)
        self._lib.c.llama_set_n_threads(self._context, n_threads, n_threads)
        run(self._lib, self._context, CBatch(self._lib.c, whole, [0] * whole.n_seqs, None, last_only=False))
        rows = output_rows(self._lib, self._context, batch.n_tokens, self._info.n_hidden)
        if len(rows) != batch.n_tokens:
            raise ComputeError(f"the engine gave {len(rows)} vectors for {batch.n_tokens} tokens")
        return pooled(rows, batch.lengths, self._info.pooling)

    def _fit(self, n_tokens: int, n_threads: int) -> None:
        if n_tokens <= self._capacity:
            return
        shape = context_shape(self._info, n_tokens=n_tokens, n_seq_max=self._n_seq_max, hidden=False)
        check_fits(self._info, shape, loaded=True)
        self._free()
        self._context = make_context(
            self._lib, self._info, self._handles, shape, self._abort, n_threads=n_threads, lora=self._lora
        )
        self._capacity = shape.n_ctx

    def _free(self) -> None:
        if self._context:
            self._lib.c.llama_free(self._context)
        self._context, self._capacity = None, 0

    def forget(self) -> bool:
        """Give the context back; the next batch makes another. False where there was none."""
        had_one = self._context is not None
        self.owner.call(self._free)
        return had_one

    def close(self) -> None:
        """End the thread, after what it was given."""
        self.owner.close(self._free)


class Lanes:
    """Which lane computes a batch, and with how many threads. Without further ones, the engine's own context.

    Args:
        n_threads: of all lanes together.

    Attributes:
        further: the lanes beside the engine's own context.
    """

    def __init__(self, n_threads: int) -> None:
        self.further: list[Lane] = []
        self._most, self._all, self._shares = 0, n_threads, [n_threads]
        self._lock = threading.Lock()
        self._calls = [0]  # of each lane, under way and waiting

    def open(self, plan: LanePlan, make: Callable[[], Lane]) -> None:
        """Have further lanes, as planned."""
        self.further += [make() for _ in range(plan.n - 1)]
        share, left = divmod(self._all, plan.n)
        self._most, self._shares = plan.n_tokens, [share + (lane < left) for lane in range(plan.n)]
        self._calls = [0] * plan.n

    @contextlib.contextmanager
    def turn(self, batch: Batch) -> Iterator[tuple[Lane | None, int]]:
        """The lane with the fewest calls, None for the engine's own, and threads, while the batch is computed."""
        short = batch.n_tokens <= self._most
        with self._lock:
            lane = min(range(len(self._calls)), key=self._calls.__getitem__) if short else 0
            alone = not any(self._calls) and (batch.n_seqs == 1 or batch.n_tokens < WORTH_A_LANE)
            self._calls[lane] += 1
        try:
            yield self.further[lane - 1] if lane else None, self._shares[lane] if short and not alone else self._all
        finally:
            with self._lock:
                self._calls[lane] -= 1

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The engine's own context is at work, while the block lasts."""
        with self._lock:
            self._calls[0] += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls[0] -= 1

    def forget(self) -> bool:
        """Give the further lanes' memory back; whether they had any."""
        return sum(lane.forget() for lane in self.further) > 0
