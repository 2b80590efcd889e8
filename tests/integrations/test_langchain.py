"""The plug for LangChain, with langchain-core."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from edge_embed import Embedder, Reranker
from edge_embed.errors import InvalidTextError, ModelNotFoundError
from edge_embed.integrations.langchain import EdgeEmbeddings, EdgeRerank
from tests.integrations.conftest import TEXTS

DOCUMENTS = [Document("short", metadata={"n": 0}), Document("the longest of them"), Document("a longer one", id="c")]


def test_vectors_are_the_librarys(embedder: Embedder) -> None:
    found = EdgeEmbeddings(embedder, truncate_dim=7)
    assert isinstance(found, Embeddings)
    assert found.embed_documents(TEXTS) == embedder.encode_document(TEXTS, truncate_dim=7).tolist()
    assert found.embed_query("x") == embedder.encode_query("x", truncate_dim=7).tolist()
    assert found.embed_documents([]) == []


def test_asynchronously_too(embedder: Embedder) -> None:
    found = EdgeEmbeddings(embedder, instruction="Find it")

    async def both() -> list[object]:
        return list(await asyncio.gather(found.aembed_documents(TEXTS), found.aembed_query("x")))

    documents, query = asyncio.run(both())
    assert documents == embedder.encode_document(TEXTS).tolist()
    assert query == embedder.encode("x", instruction="Find it").tolist()


def test_a_vector_store_finds_what_is_meant() -> None:
    store = InMemoryVectorStore.from_texts([text for text in TEXTS[:3] if text], EdgeEmbeddings())
    (found,) = store.similarity_search("Where is the kitten?", k=1)
    assert found.page_content == TEXTS[0]


def test_documents_are_ordered_and_scored(reranker: Reranker) -> None:
    found = EdgeRerank(model=reranker, top_n=2)
    assert isinstance(found, BaseDocumentCompressor)
    best = found.compress_documents(DOCUMENTS, "q")
    texts = [document.page_content for document in DOCUMENTS]
    ranked = reranker.rank("q", texts, top_k=2)
    assert [(r.document, r.score) for r in ranked] == [(d.page_content, d.metadata["relevance_score"]) for d in best]
    assert [d.page_content for d in best] == ["the longest of them", "a longer one"]
    assert best[1].id == "c"
    assert all("relevance_score" not in document.metadata for document in DOCUMENTS)
    assert asyncio.run(found.acompress_documents(DOCUMENTS, "q")) == best
    assert len(EdgeRerank(model=reranker, top_n=None).compress_documents(DOCUMENTS, "q")) == 3
    assert found.compress_documents([], "q") == []


def test_what_is_wrong_has_its_type(embedder: Embedder, reranker: Reranker, tmp_path: Path) -> None:
    with pytest.raises(InvalidTextError):
        EdgeEmbeddings(embedder).embed_query(3)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError):
        EdgeRerank(model=tmp_path / "none.gguf")
    with pytest.raises(ValidationError, match="top_n"):
        EdgeRerank(model=reranker, top_n=0)
