"""Rows of float32 into the bytes of a type and back, in chunks, on threads.

Knows numbers and types. Knows nothing of checkpoints, files and names beyond what messages say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from edge_embed.errors import CheckpointError
from edge_embed.types import Float32Array

from ..checkpoint import widen
from . import ggml
from .types import EXACT

# The largest finite value; a larger float32 would be rounded to infinity.
_LARGEST = {Kind.F16: 65504.0, Kind.BF16: float.fromhex("0x1.fep127")}
# No block type reaches so far (Q6_K: 65504 * 128 * 32 = 2.7e8). The K-quants' searches cube the values, and write
# zeros where that overflows.
_LARGEST_IN_BLOCK = 1e9
CHUNK_VALUES = 2**20  # values per job: 4 MiB of float32, small against a model and large against a call's cost


def tensor_bytes(kind: Kind, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of that type and row-major shape."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def encode_rows(values: Float32Array, kind: Kind, where: str, importance: Float32Array | None = None) -> bytes:
    """Finite float32 ``[n_rows, n_cols]`` as little-endian bytes of that type, rounded to nearest even.

    Args:
        values: the rows, C-contiguous.
        kind: one that the rows divide into.
        where: the file and the tensor, for messages.
        importance: float32 ``[n_cols]`` from an importance matrix, used by block types.

    Raises:
        CheckpointError: a value or a block's scale does not fit the type.
    """
    if kind == Kind.F32:
        return values.astype("<f4", copy=False).tobytes()
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST.get(kind, _LARGEST_IN_BLOCK):
        raise CheckpointError(
            f"{where} has a value of magnitude {largest:g}, which {kind.name} cannot hold",
            hint="convert to bf16 or f32, which reach further",
        )
    if kind == Kind.BF16:
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2").tobytes()
    if kind == Kind.F16:
        return values.astype("<f2").tobytes()
    data = ggml.quantize(values, kind, importance)
    if data is None:
        raise CheckpointError(
            f"{where} has blocks whose scale overflows the float16 of {kind.name}",
            hint="convert to bf16 or f32, which reach further",
        )
    return data


def decode_rows(data: bytes | bytearray, kind: Kind, n_cols: int) -> Float32Array:
    """Bytes of whole rows of that type as float32 ``[n_rows, n_cols]``.

    Raises:
        EngineUnavailableError: ggml's library is needed, and missing or unknown.
    """
    return widen(data, kind.name).reshape(-1, n_cols) if kind in EXACT else ggml.dequantize(data, kind, n_cols)


def chunks(n_rows: int, n_cols: int) -> Iterator[tuple[int, int]]:
    """``(first, count)`` of chunks of whole rows, about ``CHUNK_VALUES`` values each."""
    count = max(1, CHUNK_VALUES // max(1, n_cols))
    for first in range(0, n_rows, count):
        yield first, min(count, n_rows - first)


def in_order(jobs: Iterable[Callable[[], bytes]], threads: int) -> Generator[bytes, None, None]:
    """Run jobs on threads and yield their results in the jobs' order, with a bounded number in flight.

    The first exception in that order is raised; jobs not yet begun are dropped.
    """
    waiting: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="quantize")
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
