"""The plug for Chroma, with collections on the disk: `make test-chroma`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.errors import InvalidOptionError, InvalidTextError, ModelNotFoundError
from tests.integrations.conftest import FAKE, TEXTS

pytestmark = pytest.mark.chroma


def function(*arguments: Any, **options: Any) -> Any:
    from edge_embed.integrations.chroma import EdgeEmbeddingFunction

    return EdgeEmbeddingFunction(*arguments, **options)


def same(found: list[Any], expected: Any) -> bool:
    return np.array_equal(np.stack(found), expected)


def test_vectors_are_the_librarys(embedder: Embedder) -> None:
    found = function(embedder, truncate_dim=7, instruction="Find it")
    assert same(found(TEXTS), embedder.encode_document(TEXTS, truncate_dim=7))
    assert same(found.embed_query(TEXTS), embedder.encode(TEXTS, instruction="Find it", truncate_dim=7))


def test_it_is_written_down_by_name(embedder: Embedder) -> None:
    found = function(FAKE, truncate_dim=7)
    assert found.get_config() == {"model": FAKE, "instruction": None, "truncate_dim": 7}
    again = found.build_from_config(found.get_config())
    assert same(again(["x"]), embedder.encode_document(["x"], truncate_dim=7))
    assert not found.is_legacy()
    with pytest.raises(InvalidOptionError, match="opened by the program"):
        function(embedder).get_config()


def test_a_collection_embeds_what_is_added_and_asked(tmp_path: Path) -> None:
    """And does so again when it is opened without naming the function, from what it wrote down."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(tmp_path), settings=Settings(anonymized_telemetry=False))
    collection = client.create_collection("notes", embedding_function=function())
    texts = [text for text in TEXTS[:3] if text]
    collection.add(ids=[str(i) for i in range(len(texts))], documents=texts)
    again = chromadb.PersistentClient(str(tmp_path), settings=Settings(anonymized_telemetry=False))
    found = again.get_collection("notes").query(query_texts=["Where is the kitten?"], n_results=1)
    assert found["documents"] == [[TEXTS[0]]]
    with Embedder() as embedder:
        cosine = embedder.similarity(embedder.encode_query("Where is the kitten?"), embedder.encode(TEXTS[0]))[0, 0]
        kept = collection.get(include=["embeddings"])["embeddings"]
        # Chroma makes vectors unit length again, which moves last digits
        assert np.allclose(kept, embedder.encode_document(texts), rtol=0, atol=1e-7)
    assert abs(found["distances"][0][0] - (1 - cosine)) < 1e-5


def test_what_is_wrong_has_its_type(embedder: Embedder) -> None:
    with pytest.raises(InvalidTextError):
        function(embedder)([3])
    with pytest.raises(ModelNotFoundError):
        function("none.gguf")
