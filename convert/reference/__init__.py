"""The original models' forward passes in NumPy float32: what ``verify`` holds a GGUF against.

Short enough to be compared with the paper, written from the checkpoint alone (config.json, safetensors) and tested
against transformers. Speed is no aim; bounded memory is: see ``ops``. Knows nothing of the GGUF, of the data sheets
in ``architectures/`` and of the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_embed.errors import UnsupportedCheckpointError
from edge_embed.types import Float32Array, Pooling

from ..checkpoint import Checkpoint, Fields, short
from . import decoders, encoders, heads
from .ops import Parameters, Tokens

OnRead = Callable[[int], None] | None
Forward = Callable[[Parameters, Fields, Tokens], Float32Array]


@dataclass(frozen=True, slots=True)
class _Family:
    """A forward pass, and how the names of its tensors vary."""

    forward: Forward
    prefixes: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()


_BERT_RENAMES = ((".gamma", ".weight"), (".beta", ".bias"))  # as TensorFlow spelt LayerNorm
_DECODER = ("model.",)

# config.json's model_type -> its family
FAMILIES: dict[str, _Family] = {
    "bert": _Family(encoders.bert, ("bert.",), _BERT_RENAMES),
    "roberta": _Family(encoders.roberta, ("roberta.",), _BERT_RENAMES),
    "xlm-roberta": _Family(encoders.roberta, ("roberta.",), _BERT_RENAMES),
    "camembert": _Family(encoders.roberta, ("roberta.",), _BERT_RENAMES),
    "distilbert": _Family(encoders.distilbert, ("distilbert.",)),
    "modernbert": _Family(encoders.modernbert, ("model.",)),
    "nomic_bert": _Family(encoders.nomic_bert, ("nomic_bert.", "bert."), encoders.NOMIC_RENAMES),
    "qwen3": _Family(decoders.qwen3, _DECODER),
    "qwen2": _Family(decoders.qwen2, _DECODER),
    "llama": _Family(decoders.llama, _DECODER),
    "mistral": _Family(decoders.llama, _DECODER),
    "gemma3_text": _Family(decoders.gemma3, _DECODER),
}

__all__ = ["FAMILIES", "Tokens", "hidden_states", "label_scores", "vectors", "word_scores"]


def hidden_states(checkpoint: Checkpoint, tokens: Tokens) -> Float32Array:
    """The last layer's hidden states, behind the final norm where there is one, ``[n_tokens, n_embd]``.

    Raises:
        UnsupportedCheckpointError: a family, or an option of one, that the reference does not compute.
        CheckpointError: a tensor is missing or cannot be read.
    """
    return _run(checkpoint, tokens, None)[1]


def vectors(
    checkpoint: Checkpoint,
    tokens: Tokens,
    *,
    pooling: Pooling,
    normalize: bool,
    modules: Path | None = None,
    on_read: OnRead = None,
) -> Float32Array:
    """One vector for each text, as sentence-transformers would give it.

    Args:
        checkpoint: the transformer.
        tokens: the texts.
        pooling: how hidden states become one vector.
        normalize: whether it is made unit length.
        modules: the folder of modules.json, whose Dense modules come behind the pooling.
        on_read: called with the number of bytes of each slice of a matrix, for a progress bar.
    """
    _, hidden = _run(checkpoint, tokens, on_read)
    pooled = heads.pool(hidden, tokens, pooling)
    if modules is not None:
        pooled = heads.dense_modules(pooled, modules)
    return heads.normalized(pooled) if normalize else pooled


def label_scores(checkpoint: Checkpoint, tokens: Tokens, *, on_read: OnRead = None) -> Float32Array:
    """A sequence classifier's scores ``[n_texts, n_labels]``, before any sigmoid or softmax."""
    parameters, hidden = _run(checkpoint, tokens, on_read)
    return heads.classifier_logits(parameters, checkpoint.config, hidden, tokens)


def word_scores(checkpoint: Checkpoint, tokens: Tokens, ids: Sequence[int], *, on_read: OnRead = None) -> Float32Array:
    """A language model's scores of a few words as the next token ``[n_texts, len(ids)]``: "yes" and "no"."""
    parameters, hidden = _run(checkpoint, tokens, on_read)
    return heads.vocabulary_logits(parameters, hidden, tokens, ids)


def _run(checkpoint: Checkpoint, tokens: Tokens, on_read: OnRead) -> tuple[Parameters, Float32Array]:
    kind = checkpoint.config.values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UnsupportedCheckpointError(
            f"{checkpoint.config.file}: there is no reference for model_type {short(kind)}",
            hint=f"there is one for {', '.join(FAMILIES)}",
        )
    parameters = Parameters(checkpoint, family.prefixes, family.renames, on_read)
    return parameters, family.forward(parameters, checkpoint.config, tokens)
