"""Haystack: embedders of queries and of documents, and a ranker, as components of its pipelines.

Two components with the same model share one. Asynchronous pipelines compute in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from edge_embed.embedder import Embedder
from edge_embed.errors import InvalidTextError
from edge_embed.integrations import extra
from edge_embed.integrations.base import Vectors, model_name, open_reranker
from edge_embed.reranker import Reranker

with extra("haystack"):
    from haystack import Document, component, default_to_dict

_Model = TypeVar("_Model", Vectors, Reranker)


@dataclass(eq=False, repr=False)
class _Part(Generic[_Model]):
    """A component, whose arguments are its fields, and whose model is opened when it is needed."""

    _opened: _Model | None = field(default=None, init=False)

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline writes down."""
        arguments = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        return default_to_dict(self, **{**arguments, "model": model_name(arguments["model"])})

    def warm_up(self) -> None:
        """Open the model; ``run`` does so, too."""
        self._open()

    def _open(self) -> _Model:
        if self._opened is None:
            self._opened = self._opening()
        return self._opened

    def _opening(self) -> _Model:
        raise NotImplementedError


@dataclass(eq=False, repr=False)
class _DocumentPart(_Part[_Model]):
    """One that reads documents."""

    _: KW_ONLY
    meta_fields_to_embed: Sequence[str] = ()
    embedding_separator: str = "\n"

    def __post_init__(self) -> None:
        self.meta_fields_to_embed = list(self.meta_fields_to_embed)  # a pipeline is written down with nothing else

    def _texts(self, documents: Sequence[object]) -> list[str]:
        """Of each document the metadata that it has of those fields, and its content."""
        texts: list[str] = []
        for document in documents:
            if not isinstance(document, Document):
                raise InvalidTextError(
                    f"a document is {type(document).__name__}, not a haystack.Document",
                    hint="a query is for EdgeTextEmbedder",
                )
            values = [document.meta.get(name) for name in self.meta_fields_to_embed]
            parts: list[str] = [str(value) for value in values if value is not None]
            texts.append(self.embedding_separator.join([*parts, document.content or ""]))
        return texts


@component
@dataclass(eq=False, repr=False)
class EdgeTextEmbedder(_Part[Vectors]):
    """The vector of a query.

    Args:
        model, instruction, truncate_dim: as for ``base.Vectors``; the model is opened by ``warm_up``.
    """

    model: Embedder | str | Path | None = None
    _: KW_ONLY
    instruction: str | None = None
    truncate_dim: int | None = None

    def _opening(self) -> Vectors:
        return Vectors(self.model, instruction=self.instruction, truncate_dim=self.truncate_dim)

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
@dataclass(eq=False, repr=False)
class EdgeDocumentEmbedder(_DocumentPart[Vectors]):
    """Documents with their vectors; those without content are embedded by their metadata alone.

    Args:
        model, truncate_dim: as for ``base.Vectors``; the model is opened by ``warm_up``.
        meta_fields_to_embed: metadata put before the content, e.g. a title.
        embedding_separator: what stands between them.
    """

    model: Embedder | str | Path | None = None
    _: KW_ONLY
    truncate_dim: int | None = None

    def _opening(self) -> Vectors:
        return Vectors(self.model, truncate_dim=self.truncate_dim)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """``{"documents": [...]}``: copies, in order, each with its ``embedding``."""
        vectors = self._open().documents(self._texts(documents))
        found = zip(documents, vectors, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in found]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As ``run``, in a thread."""
        return await asyncio.to_thread(self.run, documents)


@component
@dataclass(eq=False, repr=False)
class EdgeRanker(_DocumentPart[Reranker]):
    """Documents from best to worst, each with its score.

    Args:
        model: an open Reranker, a GGUF file or a name from ``edge-embed list``; opened by ``warm_up``.
        top_k: how many documents are kept, None for all.
        instruction: what is looked for, for a model that takes instructions.
        meta_fields_to_embed, embedding_separator: as for ``EdgeDocumentEmbedder``.
    """

    model: Reranker | str | Path
    _: KW_ONLY
    top_k: int | None = 10
    instruction: str | None = None

    def _opening(self) -> Reranker:
        return open_reranker(self.model)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """``{"documents": [...]}``: the best first, as copies with their ``score``; ``top_k`` for this call."""
        wanted = self.top_k if top_k is None else top_k
        ranked = self._open().rank(query, self._texts(documents), instruction=self.instruction, top_k=wanted)
        return {"documents": [replace(documents[found.index], score=found.score) for found in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """As ``run``, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)
