"""Near duplicates: the first of its kind is kept, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.corpus.duplicates import Duplicate, near_duplicates
from edge_embed.corpus.neighbours import unit
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array
from tests.corpus.conftest import ENGLISH, random_vectors

# Two wordings of one thing, and pairs that only share their words.
SAME = [
    ("How do I reset my password?", "How can I reset my password?"),
    ("The meeting was moved to Monday.", "The meeting has been moved to Monday."),
    ("The train to Berlin leaves at nine.", "The train to Berlin departs at nine."),
    ("Please send the invoice by e-mail.", "Please send me the invoice by email."),
    ("He bought a new car last week.", "Last week he bought a new car."),
]
DIFFERENT = [
    ("How do I reset my password?", "How do I change my e-mail address?"),
    ("The meeting was moved to Monday.", "The meeting on Monday was boring."),
    ("The train to Berlin leaves at nine.", "The bus to Hamburg leaves at noon."),
    ("Please send the invoice by e-mail.", "Please pay the invoice this week."),
    ("He bought a new car last week.", "He sold his old house last year."),
]


def one_by_one(vectors: Float32Array, threshold: float) -> list[tuple[int, int]]:
    """What the definition says, text by text."""
    kept: list[int] = []
    found = []
    for i in range(len(vectors)):
        cosines = vectors[kept] @ vectors[i]
        if kept and cosines.max() >= threshold:
            found.append((i, kept[int(cosines.argmax())]))
        else:
            kept.append(i)
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_blocks_do_what_the_definition_says(threshold: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(120, d=6)
    done: list[int] = []
    found = near_duplicates(vectors, threshold, done.append)
    assert found
    assert [(d.index, d.of) for d in found] == one_by_one(vectors, threshold)
    assert all(d.cosine == pytest.approx(float(vectors[d.index] @ vectors[d.of]), abs=1e-6) for d in found)
    assert sum(done) == 120


def test_a_chain_does_not_join_what_lies_apart() -> None:
    """b is near a and c near b, but c is not near a: c is kept."""
    angles = np.radians([0, 20, 40])
    vectors = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert near_duplicates(vectors, 0.9) == [Duplicate(1, 0, pytest.approx(np.cos(np.radians(20)), abs=1e-6))]


def test_equal_texts_are_duplicates_at_any_threshold(block: int) -> None:
    vectors = np.repeat(random_vectors(3, d=384), 10, axis=0)
    found = near_duplicates(vectors, 1.0)
    assert [(d.index, d.of) for d in found] == [(i, i // 10 * 10) for i in range(30) if i % 10]
    assert max(d.cosine for d in found) <= 1.0


@pytest.mark.parametrize("threshold", [0.0, 1.5, -1.0])
def test_a_threshold_is_a_cosine(threshold: float) -> None:
    with pytest.raises(InvalidOptionError, match="threshold"):
        near_duplicates(random_vectors(2), threshold)


def test_nothing_has_no_duplicates() -> None:
    assert near_duplicates(random_vectors(0), 0.9) == []


def test_real_wordings_are_told_from_other_texts() -> None:
    """Precision and recall 1 at 0.9 on pairs that were written for it; benchmarks have STS-B's."""
    with Embedder() as embedder:
        for pairs, expected in ((SAME, 1), (DIFFERENT, 0)):
            found = [len(near_duplicates(unit(embedder.encode(list(pair))), 0.9)) for pair in pairs]
            assert found == [expected] * len(pairs)


def test_real_sentences_are_mostly_kept(real: tuple[Float32Array, Float32Array]) -> None:
    _, english = real
    found = near_duplicates(english, 0.95)
    assert 1 <= len(found) <= 8
    for d in found:
        assert set(ENGLISH[d.index].lower().split()) & set(ENGLISH[d.of].lower().split())
