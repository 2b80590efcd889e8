"""What other types cost a model: its matrices replaced in memory, and its vectors compared with its own.

Each replaced matrix has the bytes that a file would have, and the engine multiplies them with the kernels of their
type. So the loss includes the rounding of the activations, which many kernels do to 8 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.gguf_header import TensorInfo
from edge_embed.types import Float32Array

from ..blocks.rows import chunks, decode_rows, encode_rows, in_order, tensor_bytes
from ..blocks.types import is_quantizable
from ..calibrate.observed import ObservedModel
from ..gguf_source import GGUFSource, kind_of

Losses = npt.NDArray[np.float64]
"""1 - cosine to the unquantized vector, of each text in each framing."""

NEIGHBOURS = 10
_KEEP_BYTES = 2**29  # of encoded matrices: all types of a small model, none of a large one
_SAMPLE_ROWS = 256
_FITS_ALL = 65504.0  # float16's largest: no scale of a block is larger than the values that it is for


@dataclass(frozen=True, slots=True)
class Figures:
    """How close vectors are to the unquantized ones.

    Attributes:
        mean_cosine: over the texts.
        min_cosine: of the worst text.
        overlap: of each text's ten nearest others, the share that stays among them, on average.
    """

    mean_cosine: float
    min_cosine: float
    overlap: float


class MeasuredModel:
    """A model in memory whose matrices can be given other types; ``close()`` (or ``with``) frees it.

    Attributes:
        matrices: those that can be replaced, in the file's order; known once texts were computed.
        reference: unit vectors of these texts in every framing, ``[n_framings * n, d]``.
    """

    def __init__(
        self,
        source: GGUFSource,
        weights: Mapping[str, Float32Array],
        *,
        threads: int = 2,
        engine_threads: int | None = None,
    ) -> None:
        """Load it.

        Args:
            source: an F32, F16 or BF16 file.
            weights: importance of the columns, by tensor.
            threads: how many threads quantize.
            engine_threads: how many compute; the usable physical cores by default.

        Raises:
            ModelError, EngineError: the model cannot be run.
        """
        from edge_embed.engine.observe import WeightObserver

        self._source, self._weights, self._threads = source, weights, threads
        self._texts: Sequence[str] = ()
        self._observer = WeightObserver()
        self._kept: dict[tuple[str, Kind], bytes] = {}
        self._kept_bytes = 0
        self._model = ObservedModel(source.path, self._observer, mmap=False, threads=engine_threads)
        self._largest: dict[str, float] = {}
        self._now: dict[str, Kind] = {}  # the types that matrices were given
        self.matrices: tuple[TensorInfo, ...] = ()

    def measure_on(self, texts: Sequence[str]) -> None:
        """Compute the texts' own vectors, which losses are then taken from; all matrices must be as in the file.

        Raises:
            EngineError, InputError: a text cannot be computed.
            UnsupportedCheckpointError: a matrix is used in a way that is not known here.
        """
        self._texts = texts
        self.reference, _ = self._model.vectors(texts)
        candidates = [t for t in self._source.tensors if is_quantizable(t.name, t.shape[::-1])]
        self.matrices = tuple(t for t in candidates if t.name in self._observer.names)
        if not self.matrices:
            raise UnsupportedCheckpointError(
                f"{self._source.path}: no matrix was seen in the model's graph "
                f"(expected {', '.join(t.name for t in candidates[:3])}, ...)"
            )

    def tokens_per_text(self, texts: Sequence[str]) -> float:
        """Tokens that are computed for a text, on average: all framings and their prompts included."""
        return self._model.count_tokens(texts) / len(texts)

    @property
    def framings(self) -> tuple[str, ...]:
        return self._model.framings

    def candidates(self, tensor: TensorInfo) -> tuple[Kind, ...]:
        """The types that a matrix may get: those of llama.cpp's mixes that its rows divide into, largest first."""
        exact = Kind.BF16 if kind_of(tensor) == Kind.BF16 else Kind.F16
        if tensor.shape[0] % 256 == 0:
            return (exact, Kind.Q8_0, Kind.Q6_K, Kind.Q5_K, Kind.Q4_K, Kind.IQ4_XS, Kind.Q3_K)
        if tensor.shape[0] % 32 == 0:
            return (exact, Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_1, Kind.IQ4_NL, Kind.Q4_0)
        return (exact,)

    def replace(self, tensor: TensorInfo, kind: Kind) -> None:
        """Give a matrix that type.

        Raises:
            CheckpointError: a value does not fit it; the matrix must then be replaced again.
        """
        if self._now.get(tensor.name) == kind:
            return
        self._now.pop(tensor.name, None)
        with contextlib.closing(self._encoded(tensor, kind)) as parts:
            self._observer.replace(tensor.name, int(kind), GGML_QUANT_SIZES[kind], parts)
        self._now[tensor.name] = kind

    def fits(self, tensor: TensorInfo, kind: Kind) -> bool:
        """Whether every value of the matrix fits the type; it may have that type afterwards."""
        if tensor.name not in self._largest:
            largest = (float(np.abs(self._source.rows(tensor, *part)).max(initial=0.0)) for part in self._parts(tensor))
            self._largest[tensor.name] = max(largest, default=0.0)
        if self._largest[tensor.name] <= _FITS_ALL:
            return True
        try:
            self.replace(tensor, kind)
        except CheckpointError:
            return False
        return True

    def restore(self, tensor: TensorInfo) -> None:
        """Give a matrix its own values back."""
        self.replace(tensor, kind_of(tensor))

    def losses(self) -> Losses:
        """1 - cosine of each text's vector, as the matrices are now, to its own."""
        return self._compare(self._vectors())

    def figures(self) -> Figures:
        """How close the vectors are, as the matrices are now."""
        return compare(self.reference, self._vectors())

    def error_of(self, tensor: TensorInfo, kind: Kind) -> float:
        """Mean squared error of a sample of the matrix's rows in that type, weighed by the columns' importance."""
        n_rows = max(1, tensor.n_bytes // tensor_bytes(kind_of(tensor), (tensor.shape[0],)))
        step = max(1, n_rows // _SAMPLE_ROWS)
        rows = np.concatenate([self._source.rows(tensor, row, 1) for row in range(0, n_rows, step)])
        importance = self._weights.get(tensor.name)
        data = encode_rows(rows, kind, tensor.name, importance)
        back = decode_rows(data, kind, tensor.shape[0])
        squares = (back - rows).astype(np.float64) ** 2
        return float((squares if importance is None else squares * importance).mean())

    def close(self) -> None:
        self._model.close()

    def __enter__(self) -> MeasuredModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _vectors(self) -> Float32Array:
        return self._model.vectors(self._texts)[0]

    def _compare(self, vectors: Float32Array) -> Losses:
        losses: Losses = 1.0 - (vectors.astype(np.float64) * self.reference).sum(axis=1)
        return losses

    def _parts(self, tensor: TensorInfo) -> Iterator[tuple[int, int]]:
        """``(first, count)`` of chunks of its rows."""
        return chunks(tensor.n_bytes // tensor_bytes(kind_of(tensor), (tensor.shape[0],)), tensor.shape[0])

    def _encoded(self, tensor: TensorInfo, kind: Kind) -> Generator[bytes, None, None]:
        """The matrix in that type, part by part: whole matrices of a large model would double its memory."""
        if kind == kind_of(tensor):
            for first, count in self._parts(tensor):
                yield self._source.bytes_of(tensor, first, count)
            return
        kept = self._kept.get((tensor.name, kind))
        if kept is not None:
            yield kept
            return

        def encode(first: int, count: int) -> bytes:
            rows = self._source.rows(tensor, first, count)
            return encode_rows(rows, kind, f"{self._source.path}: {tensor.name}", self._weights.get(tensor.name))

        size = tensor_bytes(kind, tensor.shape[::-1])
        keep: list[bytes] | None = [] if self._kept_bytes + size <= _KEEP_BYTES else None
        jobs: list[Callable[[], bytes]] = [partial(encode, *part) for part in self._parts(tensor)]
        with contextlib.closing(in_order(jobs, self._threads)) as parts:
            for part in parts:
                if keep is not None:
                    keep.append(part)
                yield part
        if keep is not None:
            self._kept[tensor.name, kind] = b"".join(keep)
            self._kept_bytes += size


def compare(reference: Float32Array, vectors: Float32Array) -> Figures:
    """How close unit vectors are to the reference's, and whether neighbours stay neighbours."""
    cosine = (vectors.astype(np.float64) * reference).sum(axis=1)
    count = min(NEIGHBOURS, len(reference) - 1)
    if count < 1:
        return Figures(float(cosine.mean()), float(cosine.min()), 1.0)
    near, far = (_neighbours(v, count) for v in (reference, vectors))
    shared = [len(set(a) & set(b)) / count for a, b in zip(near.tolist(), far.tolist(), strict=True)]
    return Figures(float(cosine.mean()), float(cosine.min()), float(np.mean(shared)))


def _neighbours(vectors: Float32Array, count: int) -> npt.NDArray[np.int64]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: npt.NDArray[np.int64] = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return nearest
