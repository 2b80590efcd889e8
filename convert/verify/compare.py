"""How far a GGUF's tensors, vectors and scores are from what they should be: figures, no judgement.

Knows arrays, files and plans. Knows no limits and runs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from edge_embed.gguf_header import TensorInfo
from edge_embed.types import Float32Array

from ..architectures.family import PlannedTensor
from ..blocks.rows import chunks, decode_rows
from ..checkpoint import Checkpoint
from ..values import read_rows

WORST = 5  # texts that are named


@dataclass(frozen=True, slots=True)
class TensorPair:
    """A tensor as it is planned and as it lies in the file, and the chunks of rows ``(first, count)`` to compare."""

    planned: PlannedTensor
    stored: TensorInfo
    parts: tuple[tuple[int, int], ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the checkpoint that are read."""
        return sum(count for _, count in self.parts) * self.planned.ref.nbytes // max(1, self.planned.ref.n_rows)


@dataclass(frozen=True, slots=True)
class TensorLoss:
    """A tensor, its type and its relative error, root mean square."""

    name: str
    type_name: str
    error: float


@dataclass(frozen=True, slots=True)
class VectorLoss:
    """Vectors beside the reference's.

    Attributes:
        n_texts: texts compared.
        n_tokens: their tokens.
        min_cosine: of the worst text.
        mean_cosine: over all texts.
        overlap: share of each text's 10 nearest others (of half of them, where there are fewer than 21) that stay.
        worst: texts and their cosines, worst first.
    """

    n_texts: int
    n_tokens: int
    min_cosine: float
    mean_cosine: float
    overlap: float
    worst: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ScoreLoss:
    """A reranker's scores, as probabilities, beside the reference's.

    Attributes:
        n_pairs: pairs compared.
        n_tokens: their tokens.
        max_difference: of the worst pair.
        worst: pairs and their differences, worst first.
    """

    n_pairs: int
    n_tokens: int
    max_difference: float
    worst: tuple[tuple[str, float], ...]


def parts_of(tensor: PlannedTensor, most: int | None) -> tuple[tuple[int, int], ...]:
    """The chunks of a tensor's rows, or that many of them from first to last."""
    parts = list(chunks(tensor.ref.n_rows, tensor.ref.n_cols))
    if most is None or len(parts) <= most:
        return tuple(parts)
    return tuple(parts[int(i)] for i in np.linspace(0, len(parts) - 1, most))


def tensor_losses(
    path: Path, checkpoint: Checkpoint, pairs: Sequence[TensorPair], on_read: Callable[[int], None]
) -> list[TensorLoss]:
    """The error of each tensor, a bounded number of chunks in memory at a time."""
    losses = []
    with path.open("rb") as file, ThreadPoolExecutor(max_workers=2, thread_name_prefix="verify") as pool:
        for pair in pairs:
            n_rows = pair.planned.ref.n_rows
            row_bytes = pair.stored.n_bytes // n_rows
            futures: list[Future[tuple[float, float]]] = []
            for first, count in pair.parts:
                file.seek(pair.stored.offset + first * row_bytes)
                data = file.read(count * row_bytes)
                if len(futures) >= 4:
                    futures[-4].result()
                futures.append(pool.submit(_squares, pair, checkpoint, first, count, data))
            sums = np.array([future.result() for future in futures]).sum(axis=0)
            error = float(np.sqrt(sums[0] / sums[1])) if sums[1] else float(sums[0] > 0)
            losses.append(TensorLoss(pair.planned.name, pair.stored.type_name, error))
            on_read(pair.n_bytes)
    return losses


def _squares(pair: TensorPair, checkpoint: Checkpoint, first: int, count: int, data: bytes) -> tuple[float, float]:
    """Sums of squares: of the differences, and of the values."""
    wanted = read_rows(checkpoint, pair.planned, first, count).ravel()
    difference = decode_rows(data, Kind[pair.stored.type_name], pair.planned.ref.n_cols).ravel() - wanted
    return float(difference @ difference), float(wanted @ wanted)


def vector_loss(expected: Float32Array, found: Float32Array, texts: Sequence[str], n_tokens: int) -> VectorLoss:
    """Cosines and neighbours; a vector that is not finite, or zero, has the cosine -1."""
    with np.errstate(invalid="ignore"):
        a, b = (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (expected, found))
    cosines = np.nan_to_num((a * b).sum(axis=1), nan=-1.0)
    return VectorLoss(
        n_texts=len(texts),
        n_tokens=n_tokens,
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        overlap=_overlap(a, b),
        worst=tuple((texts[i], float(cosines[i])) for i in np.argsort(cosines)[:WORST]),
    )


def score_loss(expected: Float32Array, found: Float32Array, pairs: Sequence[str], n_tokens: int) -> ScoreLoss:
    """Differences of logits, as probabilities; one that is not finite differs by 1."""
    a, b = (1.0 / (1.0 + np.exp(-x.astype(np.float64))) for x in (expected, found))
    differences = np.nan_to_num(np.abs(a - b), nan=1.0)
    worst = tuple((pairs[i], float(differences[i])) for i in np.argsort(-differences)[:WORST])
    return ScoreLoss(len(pairs), n_tokens, float(differences.max()), worst)


def _overlap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Share of each row's nearest others that stay among the nearest."""
    k = min(10, (len(a) - 1) // 2)
    if k < 1:
        return 1.0
    nearest = []
    for rows in (a, b):
        similarity = rows @ rows.T
        np.fill_diagonal(similarity, -2.0)
        nearest.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k].tolist())
    return float(np.mean([len(set(p) & set(q)) / k for p, q in zip(*nearest, strict=True)]))
