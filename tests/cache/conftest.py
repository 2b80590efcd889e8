"""An empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_embed.cache import EmbeddingCache


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[EmbeddingCache]:
    with EmbeddingCache(path) as cache:
        yield cache
