"""Postprocessing: cut, then normalize, then the precision asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from edge_embed.errors import InvalidDimensionError, InvalidOptionError
from edge_embed.postprocess import check_dim, finish, similarity
from edge_embed.types import PRECISIONS, Precision

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((40, 384)).astype(np.float32)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of row i of a with row i of b, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# Cut and normalize


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 383, 384])
def test_a_cut_vector_has_unit_length_again(dim: int) -> None:
    result = finish(VECTORS, dim=dim, normalize=True, precision="float32")
    assert (40, dim) == result.shape
    assert np.abs(np.linalg.norm(result.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_the_cut_keeps_the_first_values_and_their_direction() -> None:
    result = finish(VECTORS, dim=64, normalize=True, precision="float32")
    assert np.abs(cosines(VECTORS[:, :64], result) - 1).max() < 1e-9


def test_without_normalizing_the_values_are_the_same_in_a_copy() -> None:
    source = VECTORS.copy()
    result = finish(source, dim=100, normalize=False, precision="float32")
    source[:] = 0
    assert VECTORS[:, :100].tolist() == result.tolist()


FINITE_ROWS = stnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.integers(1, 16)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(FINITE_ROWS)
def test_any_finite_row_becomes_a_unit_vector_or_stays_zero(rows: np.ndarray) -> None:
    """Squares of large and small float32 values overflow and vanish in float32; norms are taken in float64."""
    result = finish(rows, dim=rows.shape[1], normalize=True, precision="float32")
    norms = np.linalg.norm(result.astype(np.float64), axis=1)
    expected = [1.0 if row.any() else 0.0 for row in rows]
    assert np.abs(norms - np.array(expected)).max(initial=0) < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_stay_zero(precision: Precision) -> None:
    result = finish(np.zeros((2, 16), np.float32), dim=16, normalize=True, precision=precision)
    zero = {"uint8": 128, "binary": -128}.get(precision, 0)
    assert np.full_like(result, zero).tolist() == result.tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_of_nan_leaves_its_neighbours_alone(precision: Precision) -> None:
    rows = VECTORS[:3].copy()
    rows[1] = np.nan
    result = finish(rows, dim=384, normalize=True, precision=precision)
    alone = finish(VECTORS[:3], dim=384, normalize=True, precision=precision)
    assert alone[[0, 2]].tolist() == result[[0, 2]].tolist()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_nan_stays_nan_where_the_type_has_one(precision: Precision) -> None:
    result = finish(np.full((1, 8), np.nan, np.float32), dim=8, normalize=True, precision=precision)
    assert np.isnan(result).all()


@pytest.mark.parametrize(("precision", "zero"), [("int8", 0), ("uint8", 128), ("ubinary", 0), ("binary", -128)])
def test_nan_becomes_the_zero_of_an_integer_type(precision: Precision, zero: int) -> None:
    result = finish(np.full((1, 8), np.nan, np.float32), dim=8, normalize=True, precision=precision)
    assert {zero} == set(result.ravel().tolist())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_rows_give_no_rows(precision: Precision) -> None:
    result = finish(np.empty((0, 16), np.float32), dim=16, normalize=True, precision=precision)
    assert (0, 2 if precision in ("binary", "ubinary") else 16) == result.shape


# Precision


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", np.float32),
        ("float16", np.float16),
        ("int8", np.int8),
        ("uint8", np.uint8),
        ("binary", np.int8),
        ("ubinary", np.uint8),
    ],
)
def test_each_precision_has_its_dtype(precision: Precision, dtype: type) -> None:
    assert dtype == finish(VECTORS, dim=384, normalize=True, precision=precision).dtype


@pytest.mark.parametrize("dim", [32, 384])
@pytest.mark.parametrize(("precision", "shift"), [("float16", 0), ("int8", 0), ("uint8", 128)])
def test_cosines_survive_a_smaller_type(precision: Precision, shift: int, dim: int) -> None:
    result = finish(VECTORS, dim=dim, normalize=True, precision=precision).astype(np.float64) - shift
    assert cosines(VECTORS[:, :dim], result).min() > 0.999


def test_int8_uses_the_whole_range_of_each_row() -> None:
    result = finish(VECTORS * 1e-3, dim=384, normalize=False, precision="int8")
    assert {127} == set(np.abs(result.astype(int)).max(axis=1).tolist())


def test_uint8_is_int8_shifted_by_128() -> None:
    signed = finish(VECTORS, dim=384, normalize=True, precision="int8")
    unsigned = finish(VECTORS, dim=384, normalize=True, precision="uint8")
    assert (signed.astype(int) + 128).tolist() == unsigned.tolist()


@given(FINITE_ROWS, st.sampled_from(["int8", "uint8"]), st.booleans())
def test_any_finite_row_is_scaled_without_a_warning(rows: np.ndarray, precision: Precision, normalize: bool) -> None:
    result = finish(rows, dim=rows.shape[1], normalize=normalize, precision=precision).astype(int)
    shift = 128 if precision == "uint8" else 0
    expected = [127 if row.any() else 0 for row in rows]
    assert expected == np.abs(result - shift).max(axis=1, initial=0).tolist()


def test_packed_bits_are_those_of_sentence_transformers() -> None:
    """``quantize_embeddings``: ubinary is np.packbits(x > 0), binary the same bytes minus 128 as int8."""
    ubinary = finish(VECTORS, dim=384, normalize=True, precision="ubinary")
    binary = finish(VECTORS, dim=384, normalize=True, precision="binary")
    packed = np.packbits(VECTORS > 0).reshape(len(VECTORS), -1)
    assert packed.tolist() == ubinary.tolist()
    assert (packed - 128).astype(np.int8).tolist() == binary.tolist()


def test_the_first_value_is_the_highest_bit() -> None:
    row = np.array([[1, -1, 0, 2, -3, 0, 0, 5]], np.float32)
    assert [[0b10010001]] == finish(row, dim=8, normalize=True, precision="ubinary").tolist()
    assert [[0b10010001 - 128]] == finish(row, dim=8, normalize=True, precision="binary").tolist()


# check_dim


@pytest.mark.parametrize(("asked", "expected"), [(None, 384), (384, 384), (1, 1), (100, 100)])
def test_the_width_is_the_asked_one_or_the_models(asked: int | None, expected: int) -> None:
    assert expected == check_dim(asked, 384)


@pytest.mark.parametrize("asked", [0, -1, 385, 1 << 70, True, 2.0, "64", np.nan])
def test_an_impossible_width_is_refused_with_the_possible_ones(asked: Any) -> None:
    with pytest.raises(InvalidDimensionError) as caught:
        check_dim(asked, 384)
    assert "the model's vectors have 384 values: give 1 to 384" == caught.value.hint


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
@pytest.mark.parametrize(("asked", "n_embd"), [(12, 384), (None, 20)])
def test_bits_that_do_not_fill_bytes_are_refused(precision: Precision, asked: int | None, n_embd: int) -> None:
    with pytest.raises(InvalidDimensionError, match="do not fill whole bytes"):
        check_dim(asked, n_embd, precision)


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidOptionError, match="unknown precision 'int4'") as caught:
        check_dim(None, 384, "int4")  # type: ignore[arg-type]
    assert ", ".join(PRECISIONS) in caught.value.hint


# similarity


def test_similarity_is_the_cosine_of_each_with_each() -> None:
    result = similarity(VECTORS[:3] * 7, VECTORS[:5])
    expected = np.array([[cosines(a[None], b[None])[0] for b in VECTORS[:5]] for a in VECTORS[:3]])
    assert ((3, 5), np.float32) == (result.shape, result.dtype)
    assert np.abs(expected - result).max() < 1e-6


def test_a_single_vector_counts_as_one_row() -> None:
    assert (1, 1) == similarity(VECTORS[0], VECTORS[1]).shape
    assert (1, 4) == similarity(VECTORS[0], VECTORS[:4]).shape


def test_zeros_resemble_nothing() -> None:
    assert [[0.0, 0.0]] == similarity(np.zeros((1, 4)), np.array([[1, 2, 3, 4], [0, 0, 0, 0]])).tolist()


def test_no_rows_compare_to_nothing() -> None:
    assert (0, 3) == similarity(np.empty((0, 384), np.float32), VECTORS[:3]).shape


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float16, np.float64])
def test_integers_are_compared_without_overflow(dtype: type) -> None:
    """The squares of int8 values do not fit into an int8."""
    rows = np.array([[127, 100], [-128, 90]], dtype)
    expected = [[cosines(a[None], b[None])[0] for b in rows] for a in rows]
    assert np.abs(np.array(expected) - similarity(rows, rows)).max() < 1e-3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((2, 3)), np.ones((2, 4))),
        (np.ones((2, 2, 2)), np.ones((2, 2))),
        (np.ones(3), np.ones((1, 1, 3))),
    ],
)
def test_vectors_of_different_widths_are_refused_with_both_shapes(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(InvalidDimensionError) as caught:
        similarity(a, b)
    assert f"cannot compare vectors of shapes {a.shape} and {b.shape}" == caught.value.message
