"""From raw pooled vectors to what the caller asked for: cut (MRL), normalize, change precision.

Pure NumPy on whole matrices. The order is fixed: the cut comes first, so that a cut vector has unit length again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_embed.errors import InvalidDimensionError, InvalidOptionError
from edge_embed.types import PRECISIONS, AnyArray, Dense, Float32Array, Precision, is_one_of

_FLOAT16_MAX = 65504.0


def check_dim(truncate_dim: int | None, n_embd: int, precision: Precision = "float32") -> int:
    """The width to cut to: ``truncate_dim`` if it is given and possible, else the model's own.

    Raises:
        InvalidDimensionError: not an integer in 1..n_embd, or, for packed bits, not a multiple of 8.
        InvalidOptionError: unknown precision.
    """
    if not is_one_of(precision, PRECISIONS):
        raise InvalidOptionError(f"unknown precision {precision!r}", hint=f"one of {', '.join(PRECISIONS)}")
    dim = n_embd if truncate_dim is None else truncate_dim
    if type(dim) is not int or not 1 <= dim <= n_embd:
        raise InvalidDimensionError(
            f"truncate_dim is {truncate_dim!r}",
            hint=f"the model's vectors have {n_embd} values: give 1 to {n_embd}",
        )
    if precision in ("binary", "ubinary") and dim % 8:
        raise InvalidDimensionError(
            f"{precision} packs eight values into a byte, and {dim} values do not fill whole bytes",
            hint="choose a truncate_dim that is a multiple of 8",
        )
    return dim


def project(vectors: Float32Array, layers: Sequence[Dense]) -> Float32Array:
    """Raw pooled vectors ``[n, n_in]`` through Dense layers, in order; what is not finite stays so."""
    with np.errstate(all="ignore"):  # what overflows is looked for by the caller
        for layer in layers:
            if layer.unit_input:
                vectors = unit(vectors)
            vectors = vectors @ layer.weight.T
            if layer.bias is not None:
                vectors = vectors + layer.bias
            if layer.activation == "tanh":
                vectors = np.tanh(vectors)
    return vectors


def unit(vectors: Float32Array) -> Float32Array:
    """Rows of unit length, float32, by norms in float64, where no square overflows. A row of zeros stays zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    result: Float32Array = (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)
    return result


def finish(vectors: Float32Array, *, dim: int, normalize: bool, precision: Precision) -> AnyArray:
    """Cut, normalize and convert.

    Args:
        vectors: float32 ``[n, n_embd]``, raw pooled vectors; NaN rows stay NaN (float) or become 0 (integers).
        dim: values kept of each, from ``check_dim``.
        normalize: whether each row is divided by its L2 norm. A row of zeros stays zero.
        precision: ``float32``, ``float16``: as they are. ``int8``: each row scaled by its own largest absolute
            value to -127..127, so that cosines are kept (compare by cosine, not by dot product); ``uint8``: the same
            shifted by 128. ``ubinary``: a bit for each positive value, eight to a byte, first value in the highest
            bit; ``binary``: the same bytes minus 128 as int8 (both as sentence-transformers packs them).

    Returns:
        ``[n, dim]``, or ``[n, dim // 8]`` for packed bits.

    Raises:
        InvalidOptionError: float16 of vectors that were not normalized and are too large for it.
    """
    result = vectors[:, :dim]
    result = unit(result) if normalize else result.astype(np.float32)  # a copy: the engine's memory is not shown
    if precision == "float32":
        return result
    if precision == "float16":
        if np.abs(result).max(initial=0.0, where=np.isfinite(result)) > _FLOAT16_MAX:
            raise InvalidOptionError(
                "values beyond 65504 do not fit into float16", hint="normalize the vectors, or choose float32"
            )
        return result.astype(np.float16)
    if precision in ("int8", "uint8"):
        result = np.nan_to_num(result)
        peak = np.abs(result).max(axis=1, keepdims=True, initial=0.0)
        levels = np.rint(result * (127.0 / np.where(peak > 0, peak, 1.0))).astype(np.int16)
        return levels.astype(np.int8) if precision == "int8" else (levels + 128).astype(np.uint8)
    bits = np.packbits(result > 0, axis=1)
    return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def similarity(a: AnyArray, b: AnyArray) -> Float32Array:
    """Cosine of each row of ``a`` with each row of ``b``.

    Args:
        a: float32, float16 or int8 ``[n, d]`` (or ``[d]``), unit length or not. Not packed bits.
        b: ``[m, d]`` (or ``[d]``).

    Returns:
        float32 ``[n, m]``; 0 where a row is all zeros.

    Raises:
        InvalidDimensionError: the widths differ, or not one or two axes.
        InvalidOptionError: uint8 vectors, whose zero is not where a cosine expects it.
    """
    if np.uint8 in (getattr(a, "dtype", None), getattr(b, "dtype", None)):
        raise InvalidOptionError(
            "uint8 vectors have no cosine as they are",
            hint="uint8: subtract 128 first; ubinary: compare by Hamming distance",
        )
    try:
        given = [np.asarray(x, dtype=np.float64) for x in (a, b)]
    except (TypeError, ValueError) as error:
        raise InvalidDimensionError(f"these are not vectors: {error}", hint="give arrays of numbers, [n, d]") from None
    left, right = (np.atleast_2d(x) for x in given)
    if any(x.ndim not in (1, 2) for x in given) or left.shape[1] != right.shape[1] or left.shape[1] == 0:
        raise InvalidDimensionError(
            f"cannot compare vectors of shapes {np.shape(a)} and {np.shape(b)}",
            hint="both must be [n, d] with one d: same model, same truncate_dim",
        )
    scale = [np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right)]
    cosines = (left / np.where(scale[0] > 0, scale[0], 1)) @ (right / np.where(scale[1] > 0, scale[1], 1)).T
    return cosines.astype(np.float32)
