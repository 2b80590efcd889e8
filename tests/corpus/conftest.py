"""Real sentences in two languages, and their vectors by the bundled model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.corpus.neighbours import unit
from edge_embed.types import Float32Array

PAIRS = [
    tuple(line.split("\t"))
    for line in (Path(__file__).parents[1] / "data" / "tatoeba-fra-eng.tsv").read_text(encoding="utf-8").splitlines()
][1:]
FRENCH = [pair[0] for pair in PAIRS]
ENGLISH = [pair[1] for pair in PAIRS]


@pytest.fixture(scope="session")
def real() -> tuple[Float32Array, Float32Array]:
    """Unit vectors of the French and of the English sentences."""
    with Embedder() as embedder:
        return unit(embedder.encode(FRENCH)), unit(embedder.encode(ENGLISH))


@pytest.fixture(params=[7, 2048], ids=["small blocks", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows that are compared at once: results must not show it."""
    size = int(request.param)
    monkeypatch.setattr("edge_embed.corpus.neighbours.BLOCK", size)
    return size


def random_vectors(n: int, d: int = 8, seed: int = 0) -> Float32Array:
    return unit(np.random.default_rng(seed).normal(size=(n, d)))
