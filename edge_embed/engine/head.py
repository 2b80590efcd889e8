"""The two rows of a causal reranker's head, read from the file and multiplied here.

llama.cpp has its own way (``rank`` pooling), but that way needs a context in embedding mode, which multiplies every
token by the whole output matrix first. Two rows by one hidden state are nothing, so the engine stops the graph at the
hidden state and this does the rest, in float32.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_embed.errors import ModelFileError
from edge_embed.types import AnyArray, Float32Array, ModelInfo

# type -> (values, bytes) of a block. What else a head may be stored as is left to llama.cpp.
_BLOCKS: Final = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34)}


def read_head(info: ModelInfo) -> Float32Array | None:
    """The rows as float32 ``[n_labels, n_embd]``, or None where they are of a type that is not read here.

    Raises:
        ModelFileError: the file has shrunk since its header was read, or the rows are not finite.
    """
    rerank = info.rerank
    if rerank is None or rerank.head_type not in _BLOCKS:
        return None
    values, size = _BLOCKS[rerank.head_type]
    n_bytes = len(rerank.labels) * info.n_embd // values * size
    try:
        data = np.fromfile(info.path, np.uint8, n_bytes, offset=rerank.head_offset)
    except OSError as error:
        raise ModelFileError(f"{info.path} cannot be read: {error.strerror or error}") from error
    if len(data) != n_bytes:
        raise ModelFileError(f"{info.path} ends inside its head", hint="download or convert it again")
    rows = _decoded(data, rerank.head_type).reshape(len(rerank.labels), info.n_embd)
    if not np.isfinite(rows).all():
        raise ModelFileError(f"{info.path}: the head (cls.output.weight) has values that are not finite")
    return rows


def logits(rows: Float32Array, head: Float32Array) -> Float32Array:
    """The head's outputs for hidden states ``[n, n_embd]``, float32 ``[n, n_labels]``; what overflows is infinite."""
    with np.errstate(all="ignore"):
        result: Float32Array = rows @ head.T
    return result


def _decoded(data: AnyArray, type_name: str) -> Float32Array:
    if type_name == "F32":
        return data.view("<f4").astype(np.float32)
    if type_name == "F16":
        return data.view("<f2").astype(np.float32)
    if type_name == "BF16":  # the upper half of a float32
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = data.reshape(-1, 34)  # Q8_0: a float16 scale and 32 signed bytes
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return scales * blocks[:, 2:].view(np.int8).astype(np.float32)
