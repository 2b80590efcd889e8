"""Translations find each other: exactly where vectors say so, and on real sentences."""

from __future__ import annotations

import numpy as np
import pytest

from edge_embed.corpus.bitext import aligned
from edge_embed.corpus.neighbours import unit
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array
from tests.corpus.conftest import random_vectors


def test_each_text_finds_its_own(block: int) -> None:
    sources = random_vectors(60, d=16)
    order = np.random.default_rng(1).permutation(60)
    targets = unit(sources[order] + 0.05 * random_vectors(60, d=16, seed=2))
    done: list[int] = []
    pairs = aligned(sources, targets, advance=done.append)
    assert len(pairs) == 60
    assert all(order[pair.target] == pair.source for pair in pairs)
    assert [pair.score for pair in pairs] == sorted((pair.score for pair in pairs), reverse=True)
    assert all(pair.cosine == pytest.approx(float(sources[pair.source] @ targets[pair.target])) for pair in pairs)
    assert sum(done) == 120


def test_the_score_is_the_papers_ratio() -> None:
    """Beside the whole matrix: cosine over the mean of both sides' means of their k nearest."""
    sources, targets = random_vectors(10), random_vectors(12, seed=1)
    every = sources @ targets.T
    near_s = np.sort(every, axis=1)[:, -3:].mean(axis=1)
    near_t = np.sort(every, axis=0)[-3:].mean(axis=0)
    for pair in aligned(sources, targets, k=3):
        expected = every[pair.source, pair.target] / ((near_s[pair.source] + near_t[pair.target]) / 2)
        assert pair.score == pytest.approx(expected, rel=1e-4)


def test_no_text_is_in_two_pairs(real: tuple[Float32Array, Float32Array]) -> None:
    pairs = aligned(*real)
    assert len({p.source for p in pairs}) == len({p.target for p in pairs}) == len(pairs)


@pytest.mark.parametrize(("least", "precision", "recall"), [(1.0, 0.7, 0.18), (1.2, 0.9, 0.11)])
def test_real_sentences(least: float, precision: float, recall: float, real: tuple[Float32Array, Float32Array]) -> None:
    """With the bundled English model, which knows of French only what looks like English: few, and mostly right."""
    french, english = real
    order = np.random.default_rng(0).permutation(len(english))
    pairs = [pair for pair in aligned(french, english[order]) if pair.score >= least]
    right = sum(order[pair.target] == pair.source for pair in pairs)
    assert right / len(pairs) >= precision
    assert right / len(french) >= recall


def test_the_margin_finds_more_than_cosines_alone(real: tuple[Float32Array, Float32Array]) -> None:
    french, english = real
    every = french @ english.T
    there, back = every.argmax(axis=1), every.argmax(axis=0)
    by_cosine = sum(there[i] == i and back[i] == i for i in range(len(french)))
    assert sum(p.source == p.target for p in aligned(french, english)) > by_cosine


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="8 values"):
        aligned(random_vectors(2, d=8), random_vectors(2, d=4))
    with pytest.raises(InvalidOptionError, match="neighbours"):
        aligned(random_vectors(2), random_vectors(2), k=0)
    assert aligned(random_vectors(0), random_vectors(2)) == []
