"""The plug for LanceDB, with tables on the disk."""

from __future__ import annotations

from pathlib import Path

import lancedb
import pyarrow as pa
import pytest
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

from edge_embed import Embedder
from edge_embed.errors import InvalidTextError, ModelNotFoundError
from edge_embed.integrations.lancedb import EdgeEmbeddingFunction
from tests.integrations.conftest import FAKE, TEXTS


def test_vectors_are_the_librarys(embedder: Embedder) -> None:
    found = EdgeEmbeddingFunction.create(model=FAKE, truncate_dim=7, instruction="Find it")
    expected = embedder.encode_document(TEXTS, truncate_dim=7).tolist()
    assert found.ndims() == 7
    assert found.compute_source_embeddings_with_retry(TEXTS) == expected
    assert found.compute_source_embeddings(pa.chunked_array([TEXTS[:2], TEXTS[2:]])) == expected
    query = found.compute_query_embeddings_with_retry("x")
    assert query == [embedder.encode("x", instruction="Find it", truncate_dim=7).tolist()]
    assert found.compute_source_embeddings([]) == []


def test_a_missing_text_has_no_vector(embedder: Embedder) -> None:
    found = EdgeEmbeddingFunction.create(model=FAKE).compute_source_embeddings(pa.array(["x", None, "y"]))
    x, y = embedder.encode_document(["x", "y"]).tolist()
    assert found == [x, None, y]


def test_a_table_embeds_what_is_added_and_asked(tmp_path: Path) -> None:
    """And does so again when it is opened by another program, from what it wrote down."""
    function = get_registry().get("edge-embed").create()

    class Note(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("notes", schema=Note)
    texts = [text for text in TEXTS[:3] if text]
    table.add([{"text": text} for text in texts])
    again = lancedb.connect(tmp_path).open_table("notes")
    (found,) = again.search("Where is the kitten?").limit(1).to_list()
    assert found["text"] == TEXTS[0]
    with Embedder() as embedder:
        assert again.to_arrow()["vector"].to_pylist() == embedder.encode_document(texts).tolist()


def test_errors_keep_their_type_and_come_at_once(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits to try again"))
    with pytest.raises(InvalidTextError):
        EdgeEmbeddingFunction.create(model=FAKE).compute_source_embeddings_with_retry([3])
    with pytest.raises(ModelNotFoundError):
        EdgeEmbeddingFunction.create(model="none.gguf").compute_query_embeddings_with_retry("x")
