"""Models that answer in milliseconds, with prompts of their own for queries and for documents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_embed import Embedder, Reranker
from edge_embed.integrations import base
from edge_embed.testing import fake_embedder, fake_reranker

FAKE = "a fake model"
TEXTS = ["A cat sleeps on the windowsill.", "", "The central bank raised interest rates.", "naïve café 咖啡"] * 3


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    """It is also what plugs find under the name ``FAKE``."""
    with fake_embedder() as found:
        base._EMBEDDERS[FAKE] = found
        yield found
        del base._EMBEDDERS[FAKE]


@pytest.fixture
def reranker() -> Iterator[Reranker]:
    """The longer a document, the better its score. Plugs find it under the name ``FAKE``."""
    with fake_reranker() as found:
        base._RERANKERS[FAKE] = found
        yield found
        del base._RERANKERS[FAKE]
