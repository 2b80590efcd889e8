"""A projection learned on a user's own texts, for models that were not trained to be cut: what it is, what it costs.

Principal components: the axes are turned so that the first ones hold as much as possible of what makes the user's
vectors differ. Arithmetic over vectors and texts alone; ``projection_file`` reads one, ``convert/projection.py``
writes it.

The vector x of a text, made unit length, becomes y = W (x - m), is cut to its first d values and made unit length
again. The rows of W are orthonormal: eigenvectors of the texts' covariance in the order of their eigenvalues. With
m = 0, the default, y in full size is x turned: every cosine stays what it was. Otherwise m is the mean of the texts'
vectors. What all texts have in common then no longer counts, so cosines spread around 0 and other texts become the
nearest, at every size: of the ten documents nearest to SciFact's queries one in five changes in full size, and cuts are
worse as well (benchmarks/LOG.md, with what whitening does).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_embed.errors import (
    InvalidDimensionError,
    InvalidOptionError,
    InvalidTextError,
    NonFiniteError,
    TextTooLongError,
)
from edge_embed.postprocess import finish, project, unit
from edge_embed.types import Dense, Float32Array, Pooling

Float64Array = npt.NDArray[np.float64]

ENOUGH = 5  # texts for each value of a vector, below which the axes are known badly: benchmarks/LOG.md
SAMPLE = 20_000  # texts used unless the caller wants more
MOST_HELD_OUT, SENSIBLE_HELD_OUT = 1_000, 100
NEAREST = 10
_ONE_IN = 10  # texts held out
_STEP = 64  # texts embedded between two signs of progress


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """What is stored.

    Attributes:
        weight: float32 ``[n_out, n_in]``, orthonormal rows, that of the largest variance first.
        mean: float32 ``[n_in]``, taken off before; zeros where nothing is.
        pooling: how the vectors were pooled that it was fit on.
        n_texts: how many there were.
    """

    weight: Float32Array
    mean: Float32Array
    pooling: Pooling
    n_texts: int

    @property
    def n_in(self) -> int:
        return int(self.weight.shape[1])

    @property
    def n_out(self) -> int:
        return int(self.weight.shape[0])

    @property
    def centered(self) -> bool:
        """Whether a mean is taken off."""
        return bool(self.mean.any())

    @property
    def layer(self) -> Dense:
        """The same as a linear layer: W x - W m."""
        bias = -(self.weight.astype(np.float64) @ self.mean.astype(np.float64))
        return Dense(self.weight, bias.astype(np.float32) if self.centered else None, "identity", unit_input=True)


class Moments:
    """Number, mean and covariance of vectors that come in batches; float64, and no vector is kept."""

    def __init__(self, n_in: int) -> None:
        self.n = 0
        self._sum = np.zeros(n_in)
        self._products = np.zeros((n_in, n_in))

    def add(self, vectors: Float32Array) -> None:
        """Count in unit vectors, ``[n, n_in]``."""
        rows = vectors.astype(np.float64)
        self.n += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows

    @property
    def mean(self) -> Float64Array:
        """float64 ``[n_in]``."""
        return self._sum / max(self.n, 1)

    @property
    def covariance(self) -> Float64Array:
        """float64 ``[n_in, n_in]``, divided by n."""
        mean = self.mean
        return self._products / max(self.n, 1) - np.outer(mean, mean)


def check_rows(dimensions: int | None, n_in: int) -> int:
    """How many rows to keep: ``dimensions`` if it is given and possible, else all.

    Raises:
        InvalidDimensionError: not an integer in 1..n_in.
    """
    rows = n_in if dimensions is None else dimensions
    if type(rows) is not int or not 1 <= rows <= n_in:
        raise InvalidDimensionError(
            f"dimensions is {dimensions!r}", hint=f"the model's vectors have {n_in} values: give 1 to {n_in}"
        )
    return rows


def check_texts(n_texts: int, rows: int) -> None:
    """Refuse to find axes that no text can show: n vectors differ in n - 1 directions.

    Raises:
        InvalidOptionError: fewer texts than that.
    """
    if n_texts <= rows:
        raise InvalidOptionError(
            f"{n_texts} distinct texts to fit on cannot show {rows} axes: {rows + 1} are the least, "
            f"{ENOUGH * rows} would be sensible",
            hint="give more texts (blank ones and repeated ones do not count, and some are held out to measure on), "
            "or fewer --dimensions",
        )


def fit(moments: Moments, rows: int, *, pooling: Pooling, center: bool = False) -> Projection:
    """The first principal axes of the vectors that were counted in.

    Args:
        moments: of unit vectors.
        rows: how many axes to keep.
        pooling: how the vectors were pooled.
        center: take the mean off before turning, instead of keeping it.
    """
    _, vectors = np.linalg.eigh(moments.covariance)  # columns, smallest eigenvalue first
    axes = vectors[:, ::-1].T[:rows]
    peaks = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.where(peaks < 0, -1.0, 1.0)  # an axis has two directions, and LAPACKs differ: its peak is positive
    mean = moments.mean if center else np.zeros_like(moments.mean)
    return Projection(np.ascontiguousarray(axes, np.float32), mean.astype(np.float32), pooling, moments.n)


# What it costs


@dataclass(frozen=True, slots=True)
class Quality:
    """How vectors compare with those of full size as the model gives them.

    Attributes:
        drift: by how much the cosine of two texts changes, on average.
        overlap: of each text's ten nearest others (of half of them, where there are fewer than 21), the share that
            stays.
    """

    drift: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one size costs, projected and, to compare, as a plain cut of the model's own vectors."""

    dimensions: int
    projected: Quality
    plain: Quality


def costs(vectors: Float32Array, projection: Projection) -> tuple[Cost, ...]:
    """What sizes up to all rows cost on vectors that the projection was not fit on, smallest first.

    Args:
        vectors: float32 ``[n, n_in]``, of different texts; of fewer than three nothing can be said.
        projection: what is measured.
    """
    if len(vectors) < 3:
        return ()
    whole = _Neighbours(unit(vectors))
    turned = project(vectors, [projection.layer])
    return tuple(
        Cost(size, whole.quality(_cut(turned, size)), whole.quality(_cut(vectors, size)))
        for size in report_sizes(projection.n_out)
    )


def report_sizes(rows: int) -> list[int]:
    """Powers of two from 16 (from 1 where there are fewer rows) below all rows, and all."""
    powers = [1 << exponent for exponent in range(20)]
    return [size for size in powers if size < rows and (size >= 16 or rows <= 16)] + [rows]


class _Neighbours:
    """Cosines of rows, and the rows nearest to each."""

    def __init__(self, rows: Float32Array) -> None:
        self._cosines = _cosines(rows)
        self._k = min(NEAREST, (len(rows) - 1) // 2)
        self._nearest = _nearest(self._cosines, self._k)

    def quality(self, rows: Float32Array) -> Quality:
        """Other unit vectors of the same texts beside these."""
        cosines = _cosines(rows)
        pairs = np.triu_indices(len(rows), 1)
        nearest = _nearest(cosines, self._k)
        kept = [len(set(a) & set(b)) / self._k for a, b in zip(self._nearest, nearest, strict=True)]
        return Quality(float(np.abs(cosines - self._cosines)[pairs].mean()), float(np.mean(kept)))


def _cosines(rows: Float32Array) -> Float64Array:
    wide = rows.astype(np.float64)
    result: Float64Array = wide @ wide.T
    return result


def _nearest(cosines: Float64Array, k: int) -> list[list[int]]:
    others = cosines.copy()
    np.fill_diagonal(others, -2.0)
    found: list[list[int]] = np.argsort(-others, axis=1, kind="stable")[:, :k].tolist()
    return found


def _cut(vectors: Float32Array, size: int) -> Float32Array:
    return finish(vectors, dim=size, normalize=True, precision="float32")


# The texts


@dataclass(frozen=True, slots=True)
class Sample:
    """Distinct texts, in an order that does not depend on how they came.

    Attributes:
        to_fit: those that the axes are found on.
        held_out: those that it is measured on: one in ten, at most a thousand.
        n_read: texts that there were, blank and repeated ones included.
        whole: whether every distinct text is among these.
    """

    to_fit: tuple[str, ...]
    held_out: tuple[str, ...]
    n_read: int
    whole: bool

    def __len__(self) -> int:
        return len(self.to_fit) + len(self.held_out)


def choose(texts: Iterable[str], limit: int = SAMPLE) -> Sample:
    """At most so many of the texts, by the digest of their content, and which of them are held out.

    The same texts in another order, or some of them twice, give the same sample. Only the chosen ones are in memory.
    """
    kept: dict[int, str] = {}
    largest: list[int] = []  # a heap of their negated digests
    n_read, whole = 0, True
    for text in texts:
        n_read += 1
        digest = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], "big")
        if not text.strip() or digest in kept:
            continue
        if len(kept) >= limit:
            whole = False
            if digest > -largest[0]:
                continue
            del kept[-heapq.heappop(largest)]
        kept[digest] = text
        heapq.heappush(largest, -digest)
    ordered = sorted(kept)
    held = set([digest for digest in ordered if digest % _ONE_IN == 0][:MOST_HELD_OUT])
    return Sample(
        tuple(kept[digest] for digest in ordered if digest not in held),
        tuple(kept[digest] for digest in ordered if digest in held),
        n_read,
        whole,
    )


def learn(
    sample: Sample,
    embed: Callable[[Sequence[str]], Float32Array],
    n_in: int,
    *,
    pooling: Pooling,
    dimensions: int | None = None,
    center: bool = False,
    advance: Callable[[int], None] | None = None,
) -> tuple[Projection, tuple[Cost, ...]]:
    """A projection fit on one part of the texts, and what it costs on the other.

    Args:
        sample: the texts.
        embed: gives their vectors, float32 ``[n, n_in]``.
        n_in: size of the model's vectors.
        pooling: how the model pools them.
        dimensions: rows to keep; all by default.
        center: as for ``fit``.
        advance: told how many more texts are done.

    Raises:
        InvalidDimensionError: ``dimensions`` outside 1..n_in.
        InvalidOptionError: too few texts.
        InvalidTextError: a text that is longer than allowed, or that the model overflows on.
        EdgeEmbedError: what else ``embed`` raises.
    """
    rows = check_rows(dimensions, n_in)
    check_texts(len(sample.to_fit), rows)
    moments = Moments(n_in)
    held = [np.empty((0, n_in), np.float32)]
    for texts, take in ((sample.to_fit, moments.add), (sample.held_out, held.append)):
        for first in range(0, len(texts), _STEP):
            step = texts[first : first + _STEP]
            take(unit(_embedded(embed, step)))
            if advance is not None:
                advance(len(step))
    projection = fit(moments, rows, pooling=pooling, center=center)
    return projection, costs(np.concatenate(held), projection)


def _embedded(embed: Callable[[Sequence[str]], Float32Array], texts: Sequence[str]) -> Float32Array:
    """Vectors; a text is named by how it begins, because its position in the input is not known any more."""
    try:
        return embed(texts)
    except TextTooLongError as error:
        n_tokens = f"has {error.n_tokens} tokens, and the limit is {error.limit}"
        raise InvalidTextError(f"the text {_beginning(texts[error.index])} {n_tokens}", hint=error.hint) from None
    except NonFiniteError as error:
        raise InvalidTextError(
            f"the model has no finite vector for the text {_beginning(texts[error.indices[0]])}",
            hint="the weights overflow on it: leave it out, or use a BF16 or F32 file of the model",
        ) from None


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
