"""The plug for LlamaIndex, with llama-index-core."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import Document, NodeWithScore, TextNode

from edge_embed import Embedder, Reranker
from edge_embed.errors import InvalidTextError, ModelNotFoundError
from edge_embed.integrations.llama_index import EdgeEmbedding, EdgeRerank
from tests.integrations.conftest import FAKE, TEXTS


def nodes(*texts: str) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in texts]


def test_vectors_are_the_librarys(embedder: Embedder) -> None:
    found = EdgeEmbedding(embedder, truncate_dim=7, embed_batch_size=5)
    assert isinstance(found, BaseEmbedding)
    expected = embedder.encode_document(TEXTS, truncate_dim=7).tolist()
    assert found.get_text_embedding_batch(TEXTS) == expected
    assert found.get_text_embedding(TEXTS[3]) == expected[3]
    assert found.get_query_embedding("x") == embedder.encode_query("x", truncate_dim=7).tolist()
    assert found.get_text_embedding_batch([]) == []


def test_asynchronously_too(embedder: Embedder) -> None:
    found = EdgeEmbedding(embedder, instruction="Find it", embed_batch_size=5)
    assert asyncio.run(found.aget_text_embedding_batch(TEXTS)) == embedder.encode_document(TEXTS).tolist()
    assert asyncio.run(found.aget_text_embedding("x")) == embedder.encode_document("x").tolist()
    assert asyncio.run(found.aget_query_embedding("x")) == embedder.encode("x", instruction="Find it").tolist()


def test_it_is_written_down_by_name(embedder: Embedder) -> None:
    written = EdgeEmbedding(FAKE, truncate_dim=7).to_dict()
    assert (written["class_name"], written["model_name"], written["truncate_dim"]) == ("EdgeEmbedding", FAKE, 7)
    assert EdgeEmbedding(embedder).model_name == "fake"


def test_an_index_finds_what_is_meant() -> None:
    documents = [Document(text=text) for text in TEXTS[:3] if text]
    index = VectorStoreIndex.from_documents(documents, embed_model=EdgeEmbedding())
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("Where is the kitten?")
    assert found.node.get_content() == TEXTS[0]


def test_nodes_are_ordered_and_scored(reranker: Reranker) -> None:
    texts = ["short", "the longest of them", "a longer one"]
    found = EdgeRerank(reranker, top_n=2)
    best = found.postprocess_nodes(nodes(*texts), query_str="q")
    ranked = reranker.rank("q", texts, top_k=2)
    assert [(r.document, r.score) for r in ranked] == [(node.node.get_content(), node.score) for node in best]
    again = asyncio.run(found.apostprocess_nodes(nodes(*texts), query_str="q"))
    assert [node.score for node in best] == [node.score for node in again]
    assert found.postprocess_nodes([], query_str="q") == []
    assert found.to_dict()["model"] == "fake"


def test_what_is_wrong_has_its_type(embedder: Embedder, reranker: Reranker) -> None:
    with pytest.raises(InvalidTextError, match="without a query"):
        EdgeRerank(reranker).postprocess_nodes(nodes("x"))
    with pytest.raises(InvalidTextError):
        EdgeEmbedding(embedder).get_text_embedding_batch(["x", 3])  # type: ignore[list-item]
    with pytest.raises(ModelNotFoundError):
        EdgeEmbedding("none.gguf")
