"""What one call asks for, and what becomes of the engine's rows: calls that differ in size, precision or prompt can
share the engine's batches, because all of that comes before or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from edge_embed import postprocess
from edge_embed.types import (
    BoolArray,
    Dense,
    EmbedResult,
    Encoding,
    Float32Array,
    Int32Array,
    Pooling,
    Precision,
    Usage,
)

Input = TypeVar("Input", bound=Hashable)
Parts = Sequence[tuple[int, int]]
"""For each distinct input, the first of its encodings and one behind the last."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbedJob:
    """The texts of one call as the model will see them, and what its vectors are to be.

    Attributes:
        encodings: of the distinct texts, one after another; of a text that is cut into windows, each window.
        parts: for each distinct text, the first of its encodings and one behind the last.
        positions: for each text of the call, which distinct text it is.
        dim: values kept of each vector.
        normalize: whether vectors are made unit length.
        precision: what each value becomes.
        tokens: whether each token's vector is asked for, too.
    """

    encodings: tuple[Encoding, ...]
    parts: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]
    dim: int
    normalize: bool
    precision: Precision
    tokens: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class RerankJob:
    """The pairs of one call as the model will see them.

    Attributes:
        encodings: of the distinct pairs.
        positions: for each pair of the call, which of them is its own.
    """

    encodings: tuple[Encoding, ...]
    positions: tuple[int, ...]

    @property
    def parts(self) -> Parts:
        """For each distinct pair, its encoding."""
        return [(i, i + 1) for i in range(len(self.encodings))]


def distinct(
    inputs: Iterable[Input], encode: Callable[[Input, int], list[Encoding]]
) -> tuple[list[Encoding], list[tuple[int, int]], list[int]]:
    """Encodings of the distinct inputs, which of them are each one's, and for each input which one it is.

    Args:
        inputs: texts or pairs.
        encode: an input and its position to its encodings; called once for equal ones.
    """
    seen: dict[Input, int] = {}
    encodings: list[Encoding] = []
    parts: list[tuple[int, int]] = []
    positions: list[int] = []
    for index, given in enumerate(inputs):
        if given not in seen:
            seen[given] = len(parts)
            found = encode(given, index)
            parts.append((len(encodings), len(encodings) + len(found)))
            encodings += found
        positions.append(seen[given])
    return encodings, parts, positions


def usage(
    encodings: Sequence[Encoding], parts: Parts, positions: Sequence[int], cached: BoolArray
) -> tuple[Int32Array, Int32Array, Usage]:
    """Tokens used and tokens before truncation of each input, int32 ``[n]``, and the totals.

    Args:
        encodings: of the distinct inputs.
        parts: which of them are each distinct input's.
        positions: for each input, which distinct one it is.
        cached: bool ``[n_encodings]``, which of them were not run.
    """
    lengths = np.array([encoding.n_tokens for encoding in encodings], dtype=np.int32)
    used = np.array([lengths[first:end].sum() for first, end in parts], dtype=np.int32)
    original = np.array([encodings[first].n_original for first, _ in parts], dtype=np.int32)
    chosen = np.asarray(positions, dtype=np.int64)
    n_tokens, n_original = used[chosen], original[chosen]
    n_cached = sum(bool(cached[first:end].all()) for first, end in parts)
    totals = Usage(
        n_texts=len(chosen),
        n_computed=len(parts) - n_cached,
        n_tokens=int(n_tokens.sum()),
        n_tokens_computed=int(lengths[~cached].sum()),
        n_truncated=int((n_original > n_tokens).sum()),
        n_cached=n_cached,
    )
    return n_tokens, n_original, totals


def merged(jobs: Sequence[EmbedJob]) -> tuple[list[Encoding], list[list[int]]]:
    """The distinct encodings of several jobs, and for each job where its own are among them."""
    seen: dict[tuple[int, bytes], int] = {}
    encodings: list[Encoding] = []
    places: list[list[int]] = []
    for job in jobs:
        own = []
        for encoding in job.encodings:
            key = (encoding.n_first, encoding.token_ids.tobytes())
            if key not in seen:
                seen[key] = len(encodings)
                encodings.append(encoding)
            own.append(seen[key])
        places.append(own)
    return encodings, places


def finish(
    job: EmbedJob,
    rows: Float32Array,
    cached: BoolArray,
    dense: Sequence[Dense],
    tokens: Sequence[Float32Array] | None = None,
) -> tuple[EmbedResult, list[int]]:
    """The result of a job, and the positions of its texts without a finite vector.

    Args:
        job: the job.
        rows: float32 ``[n_encodings, n]``, the engine's.
        cached: bool ``[n_encodings]``, which rows were not computed now.
        dense: layers behind the pooling.
        tokens: float32 ``[n_tokens, n]`` for each encoding, where they are asked for.
    """
    vectors = postprocess.project(rows, dense)
    finite: BoolArray = np.asarray(np.isfinite(vectors).all(axis=1))
    if len(job.parts) != len(job.encodings):
        vectors = np.stack([_mean(vectors[first:end], normalize=job.normalize) for first, end in job.parts])
        finite = np.array([finite[first:end].all() for first, end in job.parts], dtype=np.bool_)
    finished = postprocess.finish(vectors, dim=job.dim, normalize=job.normalize, precision=job.precision)
    chosen = np.asarray(job.positions, dtype=np.int64)
    n_tokens, n_original, totals = usage(job.encodings, job.parts, job.positions, cached)
    result = EmbedResult(
        vectors=finished[chosen],
        n_tokens=n_tokens,
        n_original=n_original,
        usage=totals,
        n_windows=np.array([end - first for first, end in job.parts], dtype=np.int32)[chosen],
        token_vectors=None if tokens is None else tuple(tokens[i] for i in job.positions),
        token_ids=None if tokens is None else tuple(job.encodings[i].token_ids for i in job.positions),
    )
    return result, np.flatnonzero(~finite[chosen]).tolist()


def pooled(tokens: Sequence[Float32Array], pooling: Pooling, width: int) -> Float32Array:
    """The raw vector of each text from those of its tokens, float32 ``[n, width]``."""
    rows = np.empty((len(tokens), width), dtype=np.float32)
    with np.errstate(all="ignore"):  # what overflows is looked for behind the layers
        for row, vectors in zip(rows, tokens, strict=True):
            if pooling == "mean":
                row[:] = vectors.mean(axis=0, dtype=np.float64)
            else:
                row[:] = vectors[0 if pooling == "cls" else -1]
    return rows


def _mean(windows: Float32Array, *, normalize: bool) -> Float32Array:
    """The mean of a text's windows, each of unit length where the result will be."""
    if len(windows) == 1:
        return np.asarray(windows[0])
    return np.asarray((postprocess.unit(windows) if normalize else windows).mean(axis=0, dtype=np.float32))
