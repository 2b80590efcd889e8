"""What one call asks for, and what becomes of the engine's rows: calls that differ in size, precision or prompt can
share the engine's batches, because all of that comes before or after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    dense: Sequence[Dense],
    tokens: Sequence[Float32Array] | None = None,
    cached: BoolArray | None = None,
) -> tuple[EmbedResult, list[int]]:
    """The result of a job, and the positions of its texts without a finite vector.

    Args:
        job: the job.
        rows: float32 ``[n_encodings, n]``, the engine's.
        dense: layers behind the pooling.
        tokens: float32 ``[n_tokens, n]`` for each encoding, where they are asked for.
        cached: bool ``[n_encodings]``, which rows were not computed now; None for none of them.
    """
    vectors = postprocess.project(rows, dense)
    finite: BoolArray = np.asarray(np.isfinite(vectors).all(axis=1))
    if len(job.parts) != len(job.encodings):
        vectors = np.stack([_mean(vectors[first:end], normalize=job.normalize) for first, end in job.parts])
        finite = np.array([finite[first:end].all() for first, end in job.parts], dtype=np.bool_)
    finished = postprocess.finish(vectors, dim=job.dim, normalize=job.normalize, precision=job.precision)
    chosen = np.asarray(job.positions, dtype=np.int64)
    used, original, n_windows = _counts(job)
    known = [False] * len(job.encodings) if cached is None else cached.tolist()
    n_cached = sum(all(known[first:end]) for first, end in job.parts)
    result = EmbedResult(
        vectors=finished[chosen],
        n_tokens=used[chosen],
        n_original=original[chosen],
        usage=Usage(
            n_texts=len(chosen),
            n_computed=len(job.parts) - n_cached,
            n_tokens=int(used[chosen].sum()),
            n_tokens_computed=sum(e.n_tokens for e, ready in zip(job.encodings, known, strict=True) if not ready),
            n_truncated=int((original[chosen] > used[chosen]).sum()),
            n_cached=n_cached,
        ),
        n_windows=n_windows[chosen],
        token_vectors=None if tokens is None else tuple(tokens[i] for i in job.positions),
        token_ids=None if tokens is None else tuple(job.encodings[i].token_ids for i in job.positions),
    )
    return result, np.flatnonzero(~finite[chosen]).tolist()


def pooled(tokens: Sequence[Float32Array], pooling: Pooling, width: int) -> Float32Array:
    """The raw vector of each text from those of its tokens, float32 ``[n, width]``."""
    rows = np.empty((len(tokens), width), dtype=np.float32)
    for row, vectors in zip(rows, tokens, strict=True):
        with np.errstate(all="ignore"):  # what overflows is looked for behind the layers
            row[:] = (
                vectors.mean(axis=0, dtype=np.float64) if pooling == "mean" else vectors[0 if pooling == "cls" else -1]
            )
    return rows


def _counts(job: EmbedJob) -> tuple[Int32Array, Int32Array, Int32Array]:
    """For each distinct text: tokens that the model saw, tokens that there were, windows."""
    used = [sum(encoding.n_tokens for encoding in job.encodings[first:end]) for first, end in job.parts]
    original = [job.encodings[first].n_original for first, _ in job.parts]
    windows = [end - first for first, end in job.parts]
    return np.array(used, np.int32), np.array(original, np.int32), np.array(windows, np.int32)


def _mean(windows: Float32Array, *, normalize: bool) -> Float32Array:
    """The mean of a text's windows, each of unit length where the result will be."""
    if len(windows) == 1:
        return np.asarray(windows[0])
    return np.asarray((postprocess.unit(windows) if normalize else windows).mean(axis=0, dtype=np.float32))
