"""A database over an engine that answers in milliseconds, and folders of small files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_embed import Embedder
from edge_embed.search.database import Database
from edge_embed.search.indexing import Indexer
from edge_embed.testing import FakeEngine, fake_embedder
from tests.search.making import FAKE_RECORD


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def embedder(engine: FakeEngine) -> Embedder:
    return fake_embedder(engine)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "db", FAKE_RECORD) as made:
        yield made


@pytest.fixture
def indexer(database: Database, embedder: Embedder) -> Indexer:
    return Indexer(database, embedder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made
