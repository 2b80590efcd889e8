"""Servers that many tests ask: the bundled model, and models that only count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_embed import Embedder
from tests.serving import Running, fake_server, real_server


@pytest.fixture(scope="module")
def real() -> Iterator[Running]:
    """The bundled model."""
    with real_server() as server:
        yield server


@pytest.fixture(scope="module")
def library() -> Iterator[Embedder]:
    """The same model in this process."""
    with Embedder(n_threads=1) as embedder:
        yield embedder


@pytest.fixture(scope="module")
def fake() -> Iterator[Running]:
    """An embedding model and a reranker that count tokens."""
    with fake_server() as server:
        yield server
