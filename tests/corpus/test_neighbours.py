"""Nearest vectors, block by block, beside all cosines at once."""

from __future__ import annotations

import numpy as np
import pytest

from edge_embed.corpus.neighbours import nearest, unit
from edge_embed.errors import InvalidOptionError
from tests.corpus.conftest import random_vectors


@pytest.mark.parametrize("k", [0, 1, 3, 40, 100])
def test_the_nearest_are_those_of_the_whole_matrix(k: int, block: int) -> None:
    asked, others = random_vectors(20), random_vectors(40, seed=1)
    done: list[int] = []
    indices, cosines = nearest(asked, others, k, done.append)
    every = asked @ others.T
    order = np.argsort(-every, axis=1, kind="stable")[:, :k]
    assert np.array_equal(order, indices)
    assert np.allclose(np.take_along_axis(every, order, axis=1), cosines, atol=1e-6)
    assert sum(done) == 20


def test_of_equal_ones_the_first_comes_first(block: int) -> None:
    row = np.eye(8, dtype=np.float32)[:1]  # exact whatever the order of sums
    indices, _ = nearest(row, np.repeat(row, 10, axis=0), 10)
    assert indices.tolist() == [list(range(10))]


def test_nothing_has_no_neighbours() -> None:
    none, some = random_vectors(0), random_vectors(3)
    assert nearest(none, some, 2)[0].shape == (0, 2)
    assert nearest(some, none, 2)[0].shape == (3, 0)


def test_vectors_become_unit_length_and_must_be_finite() -> None:
    found = unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float16))
    assert found.dtype == np.float32
    assert np.allclose(found, [[0.6, 0.8], [0, 0]])
    with pytest.raises(InvalidOptionError, match="vector 1 is not finite"):
        unit(np.array([[1.0, 0.0], [np.nan, 0.0]]))
