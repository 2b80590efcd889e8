"""The model families that are converted, one data sheet each, and how a config.json finds its own."""

from __future__ import annotations

import re
from typing import Any

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields, short
from .bert import BERT, BERT_CROSS
from .distilbert import DISTILBERT
from .family import Family
from .gemma3 import GEMMA3
from .llama import LLAMA, MISTRAL
from .modernbert import MODERN_BERT, MODERN_BERT_CROSS
from .nomic_bert import NOMIC_BERT
from .qwen2 import QWEN2
from .qwen3 import QWEN3, QWEN3_CROSS
from .roberta import CAMEMBERT, ROBERTA, ROBERTA_CROSS, XLM_ROBERTA, XLM_ROBERTA_CROSS

FAMILIES: tuple[Family, ...] = (
    QWEN3,
    QWEN3_CROSS,
    QWEN2,
    GEMMA3,
    LLAMA,
    MISTRAL,
    BERT,
    BERT_CROSS,
    XLM_ROBERTA,
    XLM_ROBERTA_CROSS,
    ROBERTA,
    ROBERTA_CROSS,
    CAMEMBERT,
    DISTILBERT,
    MODERN_BERT,
    MODERN_BERT_CROSS,
    NOMIC_BERT,
)

# Families that people embed with and that are not converted: model_type -> why.
_REFUSED = {
    "albert": "its layers share weights and its embeddings have a width of their own, which llama.cpp's bert has not",
    "deberta": "llama.cpp does not compute disentangled attention",
    "deberta-v2": "llama.cpp does not compute disentangled attention",
    "electra": "its embeddings have a width of their own, which llama.cpp's bert has not",
    "mpnet": "llama.cpp's bert has no relative position bias",
    "t5": "llama.cpp's encoder-decoders give no embeddings that were compared with the original's",
    "xlm-roberta-xl": "it normalizes before attention, and llama.cpp's bert behind it",
}


def family_of(config: Fields) -> Family:
    """The data sheet for a config.json, by ``architectures[0]`` or, where that is missing, ``model_type``.

    Raises:
        UnsupportedCheckpointError: an unknown family, a refused class of a known one, code of the checkpoint's
            own, or weights that are quantized already.
    """
    if config.has("quantization_config"):
        raise UnsupportedCheckpointError(
            f"{config.file} has quantization_config: the weights are quantized already",
            hint="convert the original checkpoint",
        )
    family = _matching(config)
    if config.has("auto_map") and not _is_known_code(config, family):
        raise UnsupportedCheckpointError(
            f"{config.file} has auto_map: the model is defined by code in its own repository, which is not run"
        )
    if family is not None:
        return family
    model_type, name = _names(config)
    if isinstance(model_type, str) and model_type in _REFUSED:
        raise UnsupportedCheckpointError(f"{short(model_type)} models are not converted: {_REFUSED[model_type]}")
    supported = ", ".join(name for family in FAMILIES for name in family.classes)
    raise UnsupportedCheckpointError(
        f"{config.file}: architecture {short(name)} of model_type {short(model_type)} is not supported",
        hint=f"supported: {supported}",
    )


def _names(config: Fields) -> tuple[Any, str | None]:
    """``model_type`` and the first of ``architectures``."""
    names = config.values.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    return config.values.get("model_type"), name


def _matching(config: Fields) -> Family | None:
    model_type, name = _names(config)
    for family in FAMILIES:
        if name is not None and name in family.refused:
            raise UnsupportedCheckpointError(f"{name} is not converted: {family.refused[name]}")
        if name in family.classes and model_type in (None, family.model_type):
            return family
        if name is None and model_type == family.model_type:
            return family
    return None


def _is_known_code(config: Fields, family: Family | None) -> bool:
    """Whether ``auto_map`` names just the code that the family's sheet stands for; it is not run either."""
    value = config.mapping("auto_map").values.get("AutoModel")
    known = family.own_code if family is not None else None
    return known is not None and isinstance(value, str) and re.fullmatch(known, value) is not None
