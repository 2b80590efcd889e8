"""How many lanes (``lanes.py``) a model gets, and the memory that they take. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edge_embed.engine.memory_model import Need, cpu_compute_bytes, output_bytes
from edge_embed.engine.shape import ROW, SEQ_MAX, context_shape, takes_rows
from edge_embed.types import ModelInfo

MOST_LANES: Final = 4
"""Where there are more threads, lanes have several."""
LANE_BYTES: Final = 100_000_000
"""Most memory of a lane. llama.cpp keeps a row of the whole vocabulary for every token of an encoder's batch, so a
model with 250,002 tokens takes 256 MB for 256 tokens, and gets no lanes; MiniLM takes 37 MB."""


@dataclass(frozen=True, slots=True)
class LanePlan:
    """The lanes of a model.

    Attributes:
        n: how many, the engine's own context included.
        n_tokens: most tokens of a batch in a further one.
        compute, output: memory of a further one in bytes, until longer texts than ``n_batch`` come: intermediate
            results, and rows of results.
    """

    n: int = 1
    n_tokens: int = 0
    compute: int = 0
    output: int = 0

    def beside(self, need: Need) -> Need:
        """What main memory has to hold, with all of them."""
        further = self.n - 1
        return replace(need, compute=need.compute + further * self.compute, output=need.output + further * self.output)


def plan_lanes(info: ModelInfo, *, n_threads: int, n_batch: int, n_seq_max: int = SEQ_MAX) -> LanePlan:
    """How many lanes a model gets on the CPU: where its vectors do not depend on what else is computed.

    Args:
        info: the model.
        n_threads: CPU threads.
        n_batch: tokens of a batch.
        n_seq_max: texts of a batch.
    """
    model = info.shape
    n = min(n_threads, MOST_LANES)
    if n < 2 or model is None or not takes_rows(info):
        return LanePlan()

    def needed(n_tokens: int) -> tuple[int, int]:
        shape = context_shape(info, n_tokens=n_tokens, n_seq_max=n_seq_max, hidden=False)
        return cpu_compute_bytes(model, shape, cached=False), output_bytes(model, shape)

    n_tokens, longest = 0, max(n_batch, info.n_ctx_train)
    while n_tokens < longest and sum(needed(n_tokens + ROW)) <= LANE_BYTES:
        n_tokens += ROW
    return LanePlan(n, n_tokens, *needed(n_batch)) if n_tokens >= n_batch else LanePlan()
