"""The plug for Haystack, in its pipelines."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from edge_embed import Embedder, Reranker
from edge_embed.errors import InvalidOptionError, InvalidTextError, ModelNotFoundError
from edge_embed.integrations.haystack import EdgeDocumentEmbedder, EdgeRanker, EdgeTextEmbedder
from tests.integrations.conftest import FAKE, TEXTS


def test_vectors_are_the_librarys(embedder: Embedder) -> None:
    documents = [Document(content=text, meta={"i": i}) for i, text in enumerate(TEXTS)]
    found = EdgeDocumentEmbedder(embedder, truncate_dim=7).run(documents)["documents"]
    assert [d.embedding for d in found] == embedder.encode_document(TEXTS, truncate_dim=7).tolist()
    assert [d.id for d in found] == [d.id for d in documents]
    assert all(document.embedding is None for document in documents)
    query = EdgeTextEmbedder(embedder, truncate_dim=7).run("x")
    assert query == {"embedding": embedder.encode_query("x", truncate_dim=7).tolist()}
    assert EdgeDocumentEmbedder(embedder).run([]) == {"documents": []}


def test_metadata_is_embedded_where_asked(embedder: Embedder) -> None:
    documents = [Document(content="body", meta={"title": "T", "year": None}), Document(content=None, meta={"year": 7})]
    part = EdgeDocumentEmbedder(embedder, meta_fields_to_embed=["title", "year"], embedding_separator="|")
    found = [d.embedding for d in part.run(documents)["documents"]]
    assert found == embedder.encode_document(["T|body", "7|"]).tolist()


def test_asynchronously_too(embedder: Embedder, reranker: Reranker) -> None:
    documents = [Document(content="x"), Document(content="longer")]
    texts, doc, rank = EdgeTextEmbedder(embedder), EdgeDocumentEmbedder(embedder), EdgeRanker(reranker)
    assert asyncio.run(texts.run_async("x")) == texts.run("x")
    assert asyncio.run(doc.run_async(documents)) == doc.run(documents)
    assert asyncio.run(rank.run_async("q", documents)) == rank.run("q", documents)


def test_documents_are_ordered_and_scored(reranker: Reranker) -> None:
    documents = [Document(content=text) for text in ("short", "the longest of them", "a longer one")]
    best = EdgeRanker(reranker, top_k=2).run("q", documents)["documents"]
    ranked = reranker.rank("q", [d.content or "" for d in documents], top_k=2)
    assert [(r.document, r.score) for r in ranked] == [(d.content, d.score) for d in best]
    assert len(EdgeRanker(reranker).run("q", documents, top_k=1)["documents"]) == 1
    assert EdgeRanker(reranker).run("q", []) == {"documents": []}


def test_a_pipeline_is_written_down_read_and_run(bert_path: Path) -> None:
    """The two embedders share a model; what is read again answers the same."""
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [Document(content=text) for text in TEXTS[:3] if text]
    store.write_documents(EdgeDocumentEmbedder().run(documents)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", EdgeTextEmbedder(truncate_dim=384))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    (found,) = pipeline.run({"embedder": {"text": "Where is the kitten?"}})["retriever"]["documents"]
    assert found.content == TEXTS[0]


@pytest.mark.parametrize("part", [EdgeTextEmbedder, EdgeDocumentEmbedder, EdgeRanker])
def test_a_component_is_written_down_by_the_models_name(part: type, embedder: Embedder, reranker: Reranker) -> None:
    pipeline = Pipeline()
    pipeline.add_component("part", part(FAKE))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["edge_embed.integrations.*"])
    assert again.to_dict() == pipeline.to_dict()
    assert again.get_component("part").model == FAKE
    opened = part(reranker if part is EdgeRanker else embedder)
    with pytest.raises(InvalidOptionError, match="opened by the program"):
        opened.to_dict()


def test_what_is_wrong_has_its_type(embedder: Embedder) -> None:
    with pytest.raises(InvalidTextError, match="EdgeDocumentEmbedder"):
        EdgeTextEmbedder(embedder).run([Document(content="x")])  # type: ignore[arg-type]
    with pytest.raises(InvalidTextError, match="EdgeTextEmbedder"):
        EdgeDocumentEmbedder(embedder).run("x")  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError):
        EdgeTextEmbedder("none.gguf").warm_up()
