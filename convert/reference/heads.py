"""From hidden states to a vector or a score: pooling, the Dense modules behind it, and rerankers' heads.

Written from sentence-transformers' modules and from the classification heads of transformers' models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edge_embed.errors import UnsupportedCheckpointError
from edge_embed.types import Float32Array, Pooling

from ..checkpoint import Checkpoint, Fields, is_inner_path, read_json_list
from .encoders import activation, epsilon
from .ops import Parameters, Tokens, gelu, sigmoid, silu

_DENSE_ACTIVATIONS: dict[str, Callable[[Float32Array], Float32Array]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": gelu,
    "Sigmoid": sigmoid,
    "SiLU": silu,
}


def pool(hidden: Float32Array, tokens: Tokens, pooling: Pooling) -> Float32Array:
    """One row for each text."""
    texts = [hidden[span] for span in tokens.spans()]
    if pooling == "mean":
        return np.stack([text.mean(axis=0) for text in texts])
    if pooling in ("cls", "last"):
        return np.stack([text[0 if pooling == "cls" else -1] for text in texts])
    raise UnsupportedCheckpointError(f"pooling {pooling!r} gives no vector")


def dense_modules(vectors: Float32Array, folder: Path) -> Float32Array:
    """Vectors behind the Dense modules that modules.json lists, in its order."""
    if not (folder / "modules.json").is_file():
        return vectors
    for entry in read_json_list(folder, "modules.json"):
        path = str(entry.get("path", ""))
        if not str(entry.get("type")).endswith(".Dense") or not is_inner_path(path):
            continue
        with Checkpoint(folder / path) as module:
            bias = module.config.boolean("bias", default=True)
            name = module.config.string("activation_function", default="Tanh").rpartition(".")[2]
            if name not in _DENSE_ACTIVATIONS:
                raise UnsupportedCheckpointError(f"{path}: activation {name!r} is not computed by the reference")
            vectors = _DENSE_ACTIVATIONS[name](Parameters(module).linear(vectors, "linear", bias=bias))
    return vectors


def normalized(vectors: Float32Array) -> Float32Array:
    """Each row at unit length; zeros stay zeros."""
    norms: Float32Array = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    norms[norms == 0] = 1.0
    return vectors / norms


def classifier_logits(w: Parameters, c: Fields, hidden: Float32Array, tokens: Tokens) -> Float32Array:
    """The labels' scores of a sequence classifier ``[n_texts, n_labels]``, before any sigmoid or softmax."""
    kind = c.string("model_type")
    if kind == "bert":
        x = np.tanh(w.linear(pool(hidden, tokens, "cls"), "pooler.dense", bias=True))
        return w.linear(x, "classifier", bias=True)
    if kind in ("roberta", "xlm-roberta"):
        x = np.tanh(w.linear(pool(hidden, tokens, "cls"), "classifier.dense", bias=True))
        return w.linear(x, "classifier.out_proj", bias=True)
    if kind == "modernbert":
        first = pool(hidden, tokens, "mean" if c.string("classifier_pooling", default="cls") == "mean" else "cls")
        act = activation(c, "classifier_activation", "gelu")
        x = act(w.linear(first, "head.dense", bias=c.boolean("classifier_bias", default=False)))
        norm_bias = c.boolean("norm_bias", default=False)
        x = w.layer_norm(x, "head.norm", epsilon(c, 1e-5, "norm_eps"), bias=norm_bias)
        return w.linear(x, "classifier", bias=True)
    if kind in ("qwen2", "qwen3", "llama", "mistral"):
        return w.linear(pool(hidden, tokens, "last"), "score", bias=False)
    raise UnsupportedCheckpointError(f"the reference has no classification head for model_type {kind!r}")


def vocabulary_logits(w: Parameters, hidden: Float32Array, tokens: Tokens, ids: Sequence[int]) -> Float32Array:
    """The scores of a few words as the next token ``[n_texts, len(ids)]``."""
    name = "lm_head.weight" if "lm_head.weight" in w else "embed_tokens.weight"  # tied embeddings
    return pool(hidden, tokens, "last") @ w.rows(name, np.asarray(ids, np.int64)).T
