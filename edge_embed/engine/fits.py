"""A refusal where main memory clearly does not suffice, before a model is loaded or a context is made."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from edge_embed.engine import devices
from edge_embed.engine.memory_model import host_need
from edge_embed.engine.plan import gb
from edge_embed.engine.shape import ROW, ContextShape, has_memory
from edge_embed.errors import EngineMemoryError
from edge_embed.types import ModelInfo

NO_CHECK: Final = "EDGE_EMBED_NO_MEMORY_CHECK"
_SURE: Final = 0.9  # predictions are within a tenth, so this much of one is needed at least


def check_fits(
    info: ModelInfo,
    context: ContextShape,
    *,
    gpu_layers: int = 0,
    loaded: bool = False,
    available: int | None = None,
) -> None:
    """Refuse a context that clearly does not fit into main memory, before llama.cpp tries.

    It would be given the memory, and the system would end the process, or another one, once it is written to. Nothing
    is checked where the environment variable EDGE_EMBED_NO_MEMORY_CHECK is 1, or where the system does not say what is
    left.

    Args:
        info: the model.
        context: the context that is wanted.
        gpu_layers: layers on a GPU, the output counted; -1 for all.
        loaded: whether the weights are in memory already.
        available: bytes that can be had; asked of the system by default.

    Raises:
        EngineMemoryError: with what is needed, what is there, and how long a text may be.
    """
    if info.shape is None or os.environ.get(NO_CHECK) == "1":
        return
    available = devices.memory().available if available is None else available
    if available is None:
        return
    model, cached = info.shape, has_memory(info)
    layers = model.n_layer + 1 if gpu_layers < 0 else gpu_layers

    def needed(shape: ContextShape) -> int:
        need = host_need(model, shape, cached=cached, gpu_layers=layers)
        return need.kv + need.compute + need.output if loaded else need.firm

    if _SURE * needed(context) <= available:
        return
    least = n_longest = 0
    for n_ctx in range(context.n_ctx - ROW, context.n_kept, -ROW):
        n_ubatch = n_ctx if context.n_ubatch == context.n_ctx else min(n_ctx, context.n_ubatch)
        least = needed(replace(context, n_ctx=n_ctx, n_ubatch=n_ubatch))
        if least <= available:
            n_longest = n_ctx - context.n_kept
            break
    what = f"a context of {context.n_ctx:,} tokens" + ("" if loaded else f" and {gb(model.weights_bytes)} of weights")
    raise EngineMemoryError(
        f"{what} takes about {gb(needed(context))} of memory, and {gb(available)} are available",
        hint=(
            f"{n_longest:,} tokens would fit: lower max_tokens or n_batch (--max-tokens, --batch-tokens)"
            if n_longest
            else f"even the smallest takes {gb(least or needed(context))}: use a smaller model or type, or free memory"
        )
        + f"; {NO_CHECK}=1 tries all the same",
    )
