"""At load: how many layers the GPU takes, and a refusal where main memory clearly does not suffice."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from edge_embed.engine import backends, bindings, devices
from edge_embed.engine.memory_model import DEVICES, gpu_need, host_need
from edge_embed.engine.plan import Room, gb, layer_counts
from edge_embed.engine.prefixes import KEPT_TOKENS
from edge_embed.engine.shape import ROW, ContextShape, has_memory, shares_prefixes
from edge_embed.errors import EngineMemoryError
from edge_embed.types import ModelInfo

NO_CHECK: Final = "EDGE_EMBED_NO_MEMORY_CHECK"
_SURE: Final = 0.9  # predictions are within a tenth, so this much of one is needed at least


def gpu_layers_here(info: ModelInfo, context: ContextShape) -> int:
    """How many layers the engine should put on this machine's GPUs: -1 for all, 0 where there is no GPU."""
    here = devices.gpus(backends.registry())
    device = DEVICES.get(here[0].kind) if here else None
    if info.shape is None or device is None:  # of another kind of device nothing is known: it gets all of them
        return -1 if here else 0
    room = Room(None, sum(gpu.free for gpu in here), device, len(here))
    for layers in layer_counts(info.shape, room, None):
        need = gpu_need(
            info.shape,
            context,
            cached=has_memory(info),
            gpu_layers=layers,
            device=device,
            n_gpus=room.n_gpus,
        )
        if need.total <= room.vram:
            return -1 if layers > info.shape.n_layer else layers
    return 0


def place_layers(info: ModelInfo, context: ContextShape, asked: int | None) -> int:
    """How many layers go to GPUs, for a model that is about to be loaded; -1 for all of them.

    Args:
        info: the model.
        context: its first context.
        asked: what the caller wants, -1 for all; as many as fit by default.

    Raises:
        EngineMemoryError: main memory clearly does not suffice.
    """
    supported = bindings.load().c.llama_supports_gpu_offload()
    layers = (gpu_layers_here(info, context) if asked is None else asked) if supported else 0
    check_fits(info, context, gpu_layers=layers)
    return layers


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
    shares = shares_prefixes(info, hidden=not context.pooled) and not context.every_token
    kept = KEPT_TOKENS if shares else 0  # cells that are no text's own
    least = n_longest = 0
    for n_ctx in range(context.n_ctx - ROW, kept, -ROW):
        n_ubatch = n_ctx if context.n_ubatch == context.n_ctx else min(n_ctx, context.n_ubatch)
        least = needed(replace(context, n_ctx=n_ctx, n_ubatch=n_ubatch))
        if least <= available:
            n_longest = n_ctx - kept
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
