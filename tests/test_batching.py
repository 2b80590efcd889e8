"""Batching: each text once, within its budgets, in an order that can be undone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed.batching import alone, pack
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Batch, Encoding

LENGTHS = st.lists(st.integers(1, 40), max_size=60)
BUDGET = st.integers(1, 100)


def encodings_of(lengths: list[int]) -> list[Encoding]:
    """Encodings whose tokens are distinct, so that a misplaced one shows."""
    starts = np.cumsum([0, *lengths])
    return [
        Encoding(np.arange(start, start + n, dtype=np.int32), n)
        for start, n in zip(starts.tolist(), lengths, strict=False)
    ]


def packed(lengths: list[int], n_batch: int, n_seq_max: int) -> list[Batch]:
    return list(pack(encodings_of(lengths), n_batch=n_batch, n_seq_max=n_seq_max))


@given(LENGTHS, BUDGET, BUDGET)
def test_every_index_occurs_exactly_once(lengths: list[int], n_batch: int, n_seq_max: int) -> None:
    indices = [index for batch in packed(lengths, n_batch, n_seq_max) for index in batch.indices]
    assert list(range(len(lengths))) == sorted(indices)


@given(LENGTHS, BUDGET, BUDGET)
def test_budgets_are_kept_except_by_a_text_that_is_alone(lengths: list[int], n_batch: int, n_seq_max: int) -> None:
    batches = packed(lengths, n_batch, n_seq_max)
    assert [] == [b for b in batches if b.n_seqs > n_seq_max or (b.n_tokens > n_batch and b.n_seqs > 1)]


@given(LENGTHS, BUDGET, BUDGET)
def test_lengths_fall_from_the_first_batch_to_the_last(lengths: list[int], n_batch: int, n_seq_max: int) -> None:
    seen = [length for batch in packed(lengths, n_batch, n_seq_max) for length in batch.lengths.tolist()]
    assert sorted(lengths, reverse=True) == seen


@given(LENGTHS, BUDGET, BUDGET)
def test_tokens_of_a_batch_are_those_of_its_members(lengths: list[int], n_batch: int, n_seq_max: int) -> None:
    encodings = encodings_of(lengths)
    for batch in packed(lengths, n_batch, n_seq_max):
        assert [len(encodings[i].token_ids) for i in batch.indices] == batch.lengths.tolist()
        assert [t for i in batch.indices for t in encodings[i].token_ids.tolist()] == batch.token_ids.tolist()
        assert (np.int32, np.int32) == (batch.token_ids.dtype, batch.lengths.dtype)


@given(LENGTHS, BUDGET, BUDGET)
def test_no_two_neighbouring_batches_could_have_been_one(lengths: list[int], n_batch: int, n_seq_max: int) -> None:
    batches = packed(lengths, n_batch, n_seq_max)
    for a, b in pairwise(batches):
        assert a.n_seqs == n_seq_max or a.n_tokens + int(b.lengths[0]) > n_batch


@given(LENGTHS.filter(bool), BUDGET, BUDGET)
def test_alone_undoes_packing(lengths: list[int], n_batch: int, n_seq_max: int) -> None:
    encodings = encodings_of(lengths)
    singles = [single for batch in packed(lengths, n_batch, n_seq_max) for single in alone(batch)]
    found = {single.indices: single.token_ids.tolist() for single in singles}
    assert {(i,): encoding.token_ids.tolist() for i, encoding in enumerate(encodings)} == found
    assert [single.n_tokens for single in singles] == [int(single.lengths[0]) for single in singles]


def test_texts_of_one_length_keep_their_order() -> None:
    assert [(0, 1), (2, 3), (4,)] == [batch.indices for batch in packed([5] * 5, 10, 2)]


def test_nothing_packs_into_nothing() -> None:
    assert [] == packed([], 8, 8)


@pytest.mark.parametrize(("n_batch", "n_seq_max"), [(0, 1), (1, 0), (-5, 3)])
def test_a_budget_below_one_is_refused(n_batch: int, n_seq_max: int) -> None:
    with pytest.raises(InvalidOptionError, match="budgets must be at least 1"):
        packed([1], n_batch, n_seq_max)


def test_an_empty_encoding_is_refused_by_its_position() -> None:
    with pytest.raises(InvalidOptionError, match="encoding 1 has no tokens"):
        packed([2, 0, 3], 8, 8)
