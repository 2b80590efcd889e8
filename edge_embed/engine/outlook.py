"""Where a model would be computed if it was opened now; nothing is loaded but the library, and nothing is tried."""

from __future__ import annotations

from edge_embed.engine import bindings, tune
from edge_embed.engine.placement import Placement, give_up, here, place, wanted
from edge_embed.engine.probe import cached
from edge_embed.engine.shape import context_shape, has_memory, sizes
from edge_embed.types import ModelInfo


def outlook(info: ModelInfo) -> Placement:
    """The devices and layers that ``open_model`` would choose without options, by what is known of them already.

    Args:
        info: the model.

    Raises:
        EngineUnavailableError: the library is missing, or a device that was named is known not to compute the model.
        EngineMemoryError: it does not fit.
        InvalidOptionError: EDGE_EMBED_DEVICE names a device that is not here.
    """
    arguments = tune.arguments(info, {})
    library = bindings.load().library
    asked = wanted(arguments.get("device"), None, here())
    known = cached(info, library, asked.device) if asked.gpus else None
    if known is not None and known.device_problem:
        asked = give_up(asked, info, known.device_problem)
    usual = sizes(info, low_memory=False)
    context = context_shape(
        info,
        n_tokens=arguments.get("n_batch", usual.n_batch),
        n_seq_max=usual.n_seq_max,
        n_ubatch=arguments.get("n_ubatch", usual.n_ubatch),
        hidden=has_memory(info),
        share=usual.share,
    )
    return place(info, context, asked)
