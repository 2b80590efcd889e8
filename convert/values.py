"""The values of a planned tensor, as llama.cpp wants them: read from the checkpoint, shifted, rows reordered.

Knows weights and plans. Knows no families and no types of the GGUF.
"""

from __future__ import annotations

import numpy as np

from edge_embed.types import Float32Array

from .architectures.family import PlannedTensor
from .checkpoint import Weights


def read_rows(weights: Weights, tensor: PlannedTensor, first: int, count: int) -> Float32Array:
    """Rows ``first .. first+count`` of the tensor in the GGUF, float32 ``[count, n_cols]``.

    Raises:
        CheckpointError: as ``Weights.read_rows``.
    """
    if tensor.values is not None:
        rows: Float32Array = tensor.values.reshape(tensor.ref.n_rows, tensor.ref.n_cols)[first : first + count]
    elif tensor.n_heads:
        rows = _reordered(weights, tensor, first, count)
    else:
        rows = weights.read_rows(tensor.ref, first, count)
    return rows + np.float32(tensor.plus) if tensor.plus else rows


def rotary_row(row: int, size: int) -> int:
    """Where row ``row`` of a head of ``size`` rows lies in the checkpoint.

    Checkpoints rotate value i of a head with value i + size/2, llama.cpp's llama rotates neighbours: so the halves are
    interleaved.
    """
    return row // 2 + (row % 2) * (size // 2)


def _reordered(weights: Weights, tensor: PlannedTensor, first: int, count: int) -> Float32Array:
    """Whole heads are read, so that a chunk may begin and end inside of one."""
    size = tensor.ref.n_rows // tensor.n_heads
    begin, end = first // size * size, -(-(first + count) // size) * size
    rows = weights.read_rows(tensor.ref, begin, end - begin)
    order = [row // size * size + rotary_row(row % size, size) - begin for row in range(first, first + count)]
    return rows[order]
