"""Labels for texts from a few examples of each: logistic regression on their vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_embed.corpus import learning
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array

_C = 10.0  # unit vectors have small values: less freedom than this, and probabilities stay near equal
_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """What was learned from examples.

    Attributes:
        labels: in the order of their names.
        counts: examples of each.
        accuracy: share of the examples that are labelled right by those of other folds; None where a label has one
            example only.
        model: scikit-learn's.
    """

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    accuracy: float | None
    model: Any

    def probabilities(self, vectors: Float32Array) -> Float32Array:
        """For each text the probability of each label, float32 ``[n, labels]``."""
        if not len(vectors):
            return np.empty((0, len(self.labels)), dtype=np.float32)
        with learning():
            found: Float32Array = self.model.predict_proba(vectors).astype(np.float32)
        return found


def learned(vectors: Float32Array, labels: Sequence[str], *, seed: int = 0) -> Classifier:
    """A classifier from examples; labels with few examples weigh as much as those with many.

    Args:
        vectors: unit vectors ``[n, d]`` of the examples.
        labels: the label of each.
        seed: how examples are put into folds.

    Raises:
        InvalidOptionError: not as many labels as examples, fewer than two labels, or scikit-learn is not installed.
    """
    if len(labels) != len(vectors):
        raise InvalidOptionError(f"{len(vectors)} examples have {len(labels)} labels", hint="give one for each")
    counts = Counter(labels)
    names = tuple(sorted(counts))
    if len(names) < 2:
        raise InvalidOptionError(
            f"the examples have {'one label' if names else 'no labels'}", hint="give examples of two labels or more"
        )
    with learning():
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        model = LogisticRegression(C=_C, class_weight="balanced", max_iter=1000)
        given = np.array(labels)
        folds = min(_FOLDS, *counts.values())
        accuracy = None
        if folds >= 2:
            split = StratifiedKFold(folds, shuffle=True, random_state=seed)
            accuracy = float((cross_val_predict(model, vectors, given, cv=split) == given).mean())
        model.fit(vectors, given)
    return Classifier(names, tuple(counts[name] for name in names), accuracy, model)
