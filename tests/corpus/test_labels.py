"""Labels from a few examples of each."""

from __future__ import annotations

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.corpus.labels import learned
from edge_embed.corpus.neighbours import unit
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array
from tests.corpus.conftest import random_vectors

EXAMPLES = {
    "delivery": ["My parcel has not arrived yet.", "When will my order be delivered?", "The package went missing."],
    "payment": ["My card was declined.", "How do I get my money back?", "You charged me twice for one thing."],
    "account": ["I cannot log in.", "How do I reset my password?", "Please delete my profile."],
}
TEXTS = {
    "delivery": ["Where is my shipment?", "The courier never came.", "It was sent to the wrong address."],
    "payment": ["I want a refund.", "The invoice shows the wrong amount.", "Can I pay by bank transfer?"],
    "account": ["I forgot my password.", "My login does not work.", "How can I change my user name?"],
}


def flat(texts: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    return [t for some in texts.values() for t in some], [label for label, some in texts.items() for _ in some]


def test_three_examples_of_each_are_enough() -> None:
    """With the bundled model, on requests that share few words with the examples."""
    examples, given = flat(EXAMPLES)
    texts, expected = flat(TEXTS)
    with Embedder() as embedder:
        classifier = learned(unit(embedder.encode(examples)), given)
        found = classifier.probabilities(unit(embedder.encode(texts)))
    labels = [classifier.labels[i] for i in found.argmax(axis=1)]
    assert sum(a == b for a, b in zip(labels, expected, strict=True)) >= 8
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert classifier.labels == ("account", "delivery", "payment")
    assert classifier.counts == (3, 3, 3)


def test_languages_are_told_by_five_sentences_of_each(real: tuple[Float32Array, Float32Array]) -> None:
    french, english = real
    classifier = learned(np.concatenate([french[:5], english[:5]]), ["fra"] * 5 + ["eng"] * 5)
    rest = classifier.probabilities(np.concatenate([french[5:], english[5:]])).argmax(axis=1)
    expected = np.repeat([1, 0], 195)
    assert (rest == expected).mean() >= 0.85


def test_the_same_examples_give_the_same_scores() -> None:
    vectors, labels = random_vectors(40), ["a", "b", "c", "d"] * 10
    one, two = (learned(vectors, labels, seed=1) for _ in range(2))
    assert np.array_equal(one.probabilities(vectors), two.probabilities(vectors))
    assert one.accuracy == two.accuracy


def test_how_well_they_label_each_other_is_measured_where_it_can_be() -> None:
    vectors = unit(np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 1, 1]] + 0.01)
    assert learned(vectors, list("aaabbb")).accuracy == 1.0
    assert learned(vectors[:4], list("aaab")).accuracy is None


def test_few_weigh_as_much_as_many() -> None:
    """A text between the two labels is not given to the one with more examples for that."""
    vectors = unit(np.array([[1.0, 0.0]] * 50 + [[0.0, 1.0]] * 2))
    found = learned(vectors, ["many"] * 50 + ["few"] * 2).probabilities(unit(np.array([[1.0, 1.05]])))
    assert found[0, 0] > 0.4


def test_nothing_is_labelled_nothing() -> None:
    assert learned(random_vectors(4), list("aabb")).probabilities(random_vectors(0)).shape == (0, 2)


@pytest.mark.parametrize("labels", [[], ["a", "a", "a"], ["a", "b"]])
def test_what_cannot_be_learned_is_refused(labels: list[str]) -> None:
    with pytest.raises(InvalidOptionError):
        learned(random_vectors(3 if labels else 0), labels)
