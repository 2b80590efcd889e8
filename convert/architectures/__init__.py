"""The model families that are converted, one data sheet each, and how a config.json finds its own."""

from __future__ import annotations

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields, short
from .bert import BERT
from .family import Family
from .qwen3 import QWEN3

FAMILIES: tuple[Family, ...] = (BERT, QWEN3)


def family_of(config: Fields) -> Family:
    """The data sheet for a config.json, by ``architectures[0]`` or, where that is missing, ``model_type``.

    Raises:
        UnsupportedCheckpointError: an unknown family, a refused class of a known one, code of the checkpoint's
            own, or weights that are quantized already.
    """
    if config.has("auto_map"):
        raise UnsupportedCheckpointError(
            f"{config.file} has auto_map: the model is defined by code in its own repository, which is not run"
        )
    if config.has("quantization_config"):
        raise UnsupportedCheckpointError(
            f"{config.file} has quantization_config: the weights are quantized already",
            hint="convert the original checkpoint",
        )
    model_type = config.values.get("model_type")
    names = config.values.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    for family in FAMILIES:
        if name is not None and name in family.refused:
            raise UnsupportedCheckpointError(f"{name} is not converted: {family.refused[name]}")
        if name in family.classes and model_type in (None, family.model_type):
            return family
        if name is None and model_type == family.model_type:
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.classes)
    raise UnsupportedCheckpointError(
        f"{config.file}: architecture {short(name)} of model_type {short(model_type)} is not supported",
        hint=f"supported: {supported}",
    )
