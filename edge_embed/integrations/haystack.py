"""Haystack: embedders of queries and of documents, and a ranker, as components of its pipelines.

Two components with the same model share one. Asynchronous pipelines compute in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_embed.embedder import Embedder
from edge_embed.errors import InvalidTextError
from edge_embed.integrations import extra
from edge_embed.integrations.base import Vectors, model_name, open_reranker
from edge_embed.reranker import Reranker

with extra("haystack"):
    from haystack import Document, component, default_to_dict


@component
class EdgeTextEmbedder:
    """The vector of a query.

    Args:
        model, instruction, truncate_dim: as for ``base.Vectors``; the model is opened by ``warm_up``.
    """

    def __init__(
        self,
        model: Embedder | str | Path | None = None,
        *,
        instruction: str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self.model, self.instruction, self.truncate_dim = model, instruction, truncate_dim
        self._vectors: Vectors | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline writes down."""
        return default_to_dict(
            self, model=model_name(self.model), instruction=self.instruction, truncate_dim=self.truncate_dim
        )

    def warm_up(self) -> None:
        """Open the model; ``run`` does so, too."""
        self._open()

    def _open(self) -> Vectors:
        if self._vectors is None:
            self._vectors = Vectors(self.model, instruction=self.instruction, truncate_dim=self.truncate_dim)
        return self._vectors

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """``{"embedding": [...]}``."""
        if not isinstance(text, str):
            raise InvalidTextError(
                f"the query is {type(text).__name__}, not a text", hint="documents are for EdgeDocumentEmbedder"
            )
        return {"embedding": self._open().query(text)}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As ``run``, in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class EdgeDocumentEmbedder:
    """Documents with their vectors; those without content are embedded by their metadata alone.

    Args:
        model, truncate_dim: as for ``base.Vectors``; the model is opened by ``warm_up``.
        meta_fields_to_embed: metadata put before the content, e.g. a title.
        embedding_separator: what stands between them.
    """

    def __init__(
        self,
        model: Embedder | str | Path | None = None,
        *,
        truncate_dim: int | None = None,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
    ) -> None:
        self.model, self.truncate_dim = model, truncate_dim
        self.meta_fields_to_embed, self.embedding_separator = list(meta_fields_to_embed), embedding_separator
        self._vectors: Vectors | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline writes down."""
        return default_to_dict(
            self,
            model=model_name(self.model),
            truncate_dim=self.truncate_dim,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    def warm_up(self) -> None:
        """Open the model; ``run`` does so, too."""
        self._open()

    def _open(self) -> Vectors:
        if self._vectors is None:
            self._vectors = Vectors(self.model, truncate_dim=self.truncate_dim)
        return self._vectors

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """``{"documents": [...]}``: copies, in order, each with its ``embedding``."""
        texts = [_text_of(document, self.meta_fields_to_embed, self.embedding_separator) for document in documents]
        vectors = self._open().documents(texts)
        found = zip(documents, vectors, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in found]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As ``run``, in a thread."""
        return await asyncio.to_thread(self.run, documents)


@component
class EdgeRanker:
    """Documents from best to worst, each with its score.

    Args:
        model: an open Reranker, a GGUF file or a name from ``edge-embed list``; opened by ``warm_up``.
        top_k: how many documents are kept, None for all.
        instruction: what is looked for, for a model that takes instructions.
        meta_fields_to_embed, embedding_separator: as for ``EdgeDocumentEmbedder``.
    """

    def __init__(
        self,
        model: Reranker | str | Path,
        *,
        top_k: int | None = 10,
        instruction: str | None = None,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
    ) -> None:
        self.model, self.top_k, self.instruction = model, top_k, instruction
        self.meta_fields_to_embed, self.embedding_separator = list(meta_fields_to_embed), embedding_separator
        self._reranker: Reranker | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline writes down."""
        return default_to_dict(
            self,
            model=model_name(self.model),
            top_k=self.top_k,
            instruction=self.instruction,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    def warm_up(self) -> None:
        """Open the model; ``run`` does so, too."""
        self._open()

    def _open(self) -> Reranker:
        if self._reranker is None:
            self._reranker = open_reranker(self.model)
        return self._reranker

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """``{"documents": [...]}``: the best first, as copies with their ``score``; ``top_k`` for this call."""
        texts = [_text_of(document, self.meta_fields_to_embed, self.embedding_separator) for document in documents]
        ranked = self._open().rank(
            query, texts, instruction=self.instruction, top_k=self.top_k if top_k is None else top_k
        )
        return {"documents": [replace(documents[found.index], score=found.score) for found in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """As ``run``, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)


def _text_of(document: object, fields: Sequence[str], separator: str) -> str:
    """The metadata that a document has of those fields, and its content."""
    if not isinstance(document, Document):
        raise InvalidTextError(
            f"a document is {type(document).__name__}, not a haystack.Document", hint="a query is for EdgeTextEmbedder"
        )
    values = [str(document.meta[name]) for name in fields if document.meta.get(name) is not None]
    return separator.join([*values, document.content or ""])
