"""LangChain: ``EdgeEmbeddings`` for vector stores, ``EdgeRerank`` for a ContextualCompressionRetriever.

The asynchronous methods are LangChain's own, which run these in a thread: the model computes outside Python's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_embed.integrations import extra
from edge_embed.integrations.base import Vectors, open_reranker
from edge_embed.reranker import Reranker

with extra("langchain"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import ConfigDict, Field, PrivateAttr


class EdgeEmbeddings(Vectors, Embeddings):
    """LangChain's embeddings over one model; the arguments are those of ``base.Vectors``."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of texts that are to be found."""
        return self.documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """The vector of what is looked for."""
        return self.query(text)


class EdgeRerank(BaseDocumentCompressor):
    """Orders documents by how well they answer the query; each carries its ``relevance_score`` in the metadata.

    Attributes:
        model: an open Reranker, a GGUF file or a name from ``edge-embed list``.
        top_n: how many documents are kept, None for all.
        instruction: what is looked for, for a model that takes instructions.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: Reranker | str | Path
    top_n: int | None = Field(default=3, ge=1)
    instruction: str | None = None
    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, _: object, /) -> None:
        """Open the model, so that a wrong name is an error now."""
        self._reranker = open_reranker(self.model)

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - LangChain's
    ) -> Sequence[Document]:
        """The best documents, the best first, as copies."""
        texts = [document.page_content for document in documents]
        ranked = self._reranker.rank(query, texts, instruction=self.instruction, top_k=self.top_n)
        return [
            documents[found.index].model_copy(
                update={"metadata": {**documents[found.index].metadata, "relevance_score": found.score}}
            )
            for found in ranked
        ]
