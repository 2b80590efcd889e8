"""What the forward passes are made of: weights streamed from a checkpoint, norms, activations, rotation, attention.

Everything is float32 NumPy on packed tokens: the texts stand one behind the other, ``[n_tokens, width]``, and only
attention looks at where one ends. A matrix is read in slices of rows and applied to all tokens of all texts before the
next is read, so each weight is read once and memory is the activations and one slice, however large the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_embed.errors import CheckpointError
from edge_embed.types import Float32Array

from ..checkpoint import Checkpoint, TensorRef

IntArray = npt.NDArray[np.int64]
SLICE_VALUES = 2**21  # values of a matrix that a thread has in memory: 8 MiB of float32
THREADS = min(4, os.cpu_count() or 1)  # that read and multiply slices


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts as the model sees them, packed.

    Attributes:
        ids: token ids of all texts, one behind the other.
        types: token types (segments) of the same length.
        lengths: tokens of each text.
    """

    ids: IntArray
    types: IntArray
    lengths: IntArray

    @classmethod
    def pack(cls, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> Tokens:
        """Pack token ids, and token types where they are not all zero."""
        lengths = np.array([len(ids) for ids in texts], np.int64)
        flat = np.concatenate([np.asarray(ids, np.int64) for ids in texts])
        segments = np.zeros_like(flat) if types is None else np.concatenate([np.asarray(t, np.int64) for t in types])
        return cls(flat, segments, lengths)

    @property
    def positions(self) -> IntArray:
        """0, 1, 2, ... within each text."""
        return np.concatenate([np.arange(n) for n in self.lengths])

    def spans(self) -> Iterator[slice]:
        """Where each text lies."""
        end = 0
        for n in self.lengths.tolist():
            start, end = end, end + n
            yield slice(start, end)


class Parameters:
    """A checkpoint's tensors by their plain names, read when they are used.

    Args:
        checkpoint: the opened folder.
        prefixes: what some checkpoints of the family put before every name and others do not.
        renames: pairs of an older spelling's part of a name and the present one's.
        on_read: called with the number of bytes of each slice of a matrix.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prefixes: Sequence[str] = (),
        renames: Sequence[tuple[str, str]] = (),
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._on_read = on_read
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="reference")
        self._refs: dict[str, TensorRef] = {}
        for name, ref in checkpoint.tensors.items():
            prefix = next((p for p in prefixes if name.startswith(p)), "")
            plain = name[len(prefix) :]
            for old, new in renames:
                plain = plain.replace(old, new)
            self._refs[plain] = ref

    def __contains__(self, name: str) -> bool:
        return name in self._refs

    def vector(self, name: str) -> Float32Array:
        """A bias or a norm's weights."""
        row: Float32Array = self._checkpoint.read_rows(self._ref(name), 0, 1)[0]
        return row

    def rows(self, name: str, ids: IntArray) -> Float32Array:
        """Row ``ids[i]`` of a matrix for each i; only those rows are read."""
        ref = self._ref(name)
        distinct, positions = np.unique(ids, return_inverse=True)
        if len(distinct) and not 0 <= distinct[0] <= distinct[-1] < ref.n_rows:
            raise CheckpointError(f"tensor {ref.name!r} has {ref.n_rows} rows, and row {distinct[-1]} is asked for")
        found = [self._checkpoint.read_rows(ref, int(row), 1)[0] for row in distinct]
        return np.stack(found)[positions.reshape(-1)]

    def linear(self, x: Float32Array, name: str, *, bias: bool) -> Float32Array:
        """``x @ weight.T``, plus the bias where there is one."""
        ref = self._ref(f"{name}.weight")
        if ref.n_cols != x.shape[1]:
            raise CheckpointError(f"tensor {ref.name!r} has rows of {ref.n_cols}, and {x.shape[1]} are multiplied")
        y = np.empty((len(x), ref.n_rows), np.float32)
        step = max(1, SLICE_VALUES // ref.n_cols)

        def multiply(first: int) -> int:
            rows = self._checkpoint.read_rows(ref, first, min(step, ref.n_rows - first))
            np.matmul(x, rows.T, out=y[:, first : first + len(rows)])
            return len(rows)

        for n_rows in self._pool.map(multiply, range(0, ref.n_rows, step)):
            if self._on_read is not None:
                self._on_read(ref.nbytes // ref.n_rows * n_rows)
        return y + self.vector(f"{name}.bias") if bias else y

    def layer_norm(self, x: Float32Array, name: str, epsilon: float, *, bias: bool = True) -> Float32Array:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(epsilon))
        scaled *= self.vector(f"{name}.weight")
        result: Float32Array = scaled + self.vector(f"{name}.bias") if bias else scaled
        return result

    def rms_norm(self, x: Float32Array, name: str, epsilon: float, *, offset: float = 0.0) -> Float32Array:
        """``x`` over its root mean square, over the last axis; ``offset`` is added to the weights (Gemma's are - 1)."""
        scale = self.vector(f"{name}.weight") + np.float32(offset)
        result: Float32Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(epsilon)) * scale
        return result

    def _ref(self, name: str) -> TensorRef:
        if name not in self._refs:
            raise CheckpointError(f"tensor {name!r} is missing")
        return self._refs[name]


def gelu(x: Float32Array) -> Float32Array:
    """The exact one: x times the normal distribution's share below x."""
    return x * (0.5 + 0.5 * _erf(x * np.float32(0.5**0.5)))


def gelu_tanh(x: Float32Array) -> Float32Array:
    """Its approximation by tanh."""
    share: Float32Array = np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + 0.044715 * x * x * x))
    return 0.5 * x * (1.0 + share)


def silu(x: Float32Array) -> Float32Array:
    """``x * sigmoid(x)``."""
    return x * sigmoid(x)


def sigmoid(x: Float32Array) -> Float32Array:
    """``1 / (1 + exp(-x))``, by tanh, which overflows nowhere."""
    result: Float32Array = np.tanh(0.5 * x)
    return 0.5 * (1.0 + result)


def _erf(x: Float32Array) -> Float32Array:
    """Abramowitz and Stegun, 7.1.26: within 1.5e-7, which is float32's own resolution near 1."""
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    result: Float32Array = np.copysign(1.0 - series * np.exp(-x * x), x)
    return result


def rotate(x: Float32Array, positions: IntArray, theta: float, factors: Float32Array | None = None) -> Float32Array:
    """Rotary positions over ``[n_tokens, heads, head_dim]``: value i turns with value i + head_dim / 2.

    Args:
        x: queries or keys.
        positions: of each token.
        theta: the base of the frequencies.
        factors: what each frequency is divided by, where a scaling of positions asks for it.
    """
    half = x.shape[2] // 2
    frequencies = (1.0 / theta ** (np.arange(half, dtype=np.float32) / np.float32(half))).astype(np.float32)
    if factors is not None:
        frequencies = frequencies / factors
    angles = (positions[:, None].astype(np.float32) * frequencies)[:, None, :]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=2)


def attention(
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    tokens: Tokens,
    *,
    causal: bool,
    window: int | None = None,
    scale: float | None = None,
) -> Float32Array:
    """Scaled dot products within each text; query heads share key heads evenly.

    Args:
        q: ``[n_tokens, heads, head_dim]``.
        k: ``[n_tokens, kv_heads, head_dim]``; so is ``v``.
        v: the values.
        tokens: where each text ends.
        causal: whether a token sees only itself and what stands before it.
        window: the farthest that it sees, in tokens.
        scale: of the dot products; ``head_dim ** -0.5`` by default.

    Returns:
        ``[n_tokens, heads * head_dim]``.
    """
    n_heads, head_dim = q.shape[1:]
    if k.shape[1] != n_heads:
        k, v = (np.repeat(x, n_heads // k.shape[1], axis=1) for x in (k, v))
    factor = np.float32(head_dim**-0.5 if scale is None else scale)
    out = np.empty((len(q), n_heads * head_dim), np.float32)
    for span in tokens.spans():
        n = span.stop - span.start
        distance = np.arange(n)[:, None] - np.arange(n)  # of a key before its query
        hidden = (distance < 0) if causal else np.zeros((n, n), bool)
        if window is not None:
            hidden = hidden | (np.abs(distance) > window)
        queries, keys, values = (np.ascontiguousarray(x[span].transpose(1, 0, 2)) for x in (q, k, v))
        scores = queries @ keys.transpose(0, 2, 1) * factor  # [n_heads, n, n]
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        out[span] = (weights @ values).transpose(1, 0, 2).reshape(n, -1)
    return out


def heads(x: Float32Array, head_dim: int) -> Float32Array:
    """``[n_tokens, n]`` as ``[n_tokens, n / head_dim, head_dim]``."""
    return x.reshape(len(x), -1, head_dim)
