"""LlamaIndex: ``EdgeEmbedding`` for its indexes, ``EdgeRerank`` as a node postprocessor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from edge_embed.embedder import Embedder
from edge_embed.errors import InvalidTextError
from edge_embed.integrations import extra
from edge_embed.integrations.base import Vectors, open_reranker
from edge_embed.reranker import Reranker

with extra("llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

BATCH = 256  # texts that LlamaIndex hands over at once: enough to pack, few enough to show progress


class EdgeEmbedding(BaseEmbedding):
    """LlamaIndex's embedding over one model; ``get_text_embedding`` takes documents.

    Args:
        model, instruction, truncate_dim: as for ``base.Vectors``.
        embed_batch_size: texts that LlamaIndex hands over at once, at most 2048.
        options: LlamaIndex's own, e.g. ``callback_manager``, ``embeddings_cache``.
    """

    instruction: str | None = None
    truncate_dim: int | None = None
    _vectors: Vectors = PrivateAttr()

    def __init__(
        self,
        model: Embedder | str | Path | None = None,
        *,
        instruction: str | None = None,
        truncate_dim: int | None = None,
        embed_batch_size: int = BATCH,
        **options: Any,
    ) -> None:
        vectors = Vectors(model, instruction=instruction, truncate_dim=truncate_dim)
        own = {"instruction": instruction, "truncate_dim": truncate_dim, "embed_batch_size": embed_batch_size}
        name = str(model) if isinstance(model, (str, Path)) else vectors.embedder.info.name
        super().__init__(**{"model_name": name, **own, **options})
        self._vectors = vectors

    @classmethod
    def class_name(cls) -> str:
        return "EdgeEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vectors.query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._vectors.query, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vectors.documents([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._vectors.documents(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._vectors.documents, texts)


class EdgeRerank(BaseNodePostprocessor):
    """Orders nodes by how well they answer the query; a node's score becomes the reranker's.

    Args:
        model: an open Reranker, a GGUF file or a name from ``edge-embed list``.
        top_n: how many nodes are kept, None for all.
        instruction: what is looked for, for a model that takes instructions.
        options: LlamaIndex's own, e.g. ``callback_manager``.
    """

    model: str = Field(description="The reranker's name or file.")
    top_n: int | None = Field(default=3, ge=1, description="Nodes that are kept.")
    instruction: str | None = None
    _reranker: Reranker = PrivateAttr()

    def __init__(
        self,
        model: Reranker | str | Path,
        *,
        top_n: int | None = 3,
        instruction: str | None = None,
        **options: Any,
    ) -> None:
        name = model.info.name if isinstance(model, Reranker) else str(model)
        super().__init__(**{"model": name, "top_n": top_n, "instruction": instruction, **options})
        self._reranker = open_reranker(model)

    @classmethod
    def class_name(cls) -> str:
        return "EdgeRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidTextError("nodes are to be ranked without a query", hint="give query_str or query_bundle")
        texts = [found.node.get_content(metadata_mode=MetadataMode.EMBED) for found in nodes]
        ranked = self._reranker.rank(query_bundle.query_str, texts, instruction=self.instruction, top_k=self.top_n)
        return [NodeWithScore(node=nodes[found.index].node, score=found.score) for found in ranked]
