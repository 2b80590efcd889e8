"""Chroma: the embedding function ``edge-embed``, which a collection writes down and opens again by itself.

Import this module before such a collection is opened. Chroma gives texts to ``__call__`` that are to be found, and what
is looked for to ``embed_query``.
"""

from __future__ import annotations

from typing import Any

from edge_embed.integrations import extra
from edge_embed.integrations.base import Vectors

with extra("chroma"):
    import numpy as np
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function

NAME = "edge-embed"


@register_embedding_function
class EdgeEmbeddingFunction(Vectors, EmbeddingFunction[Documents]):
    """Vectors for a collection's documents and for its queries; arguments as for ``base.Vectors``."""

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma checks the name
        """Vectors of documents."""
        return [np.array(vector, dtype=np.float32) for vector in self.documents(input)]

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Vectors of queries."""
        return [np.array(vector, dtype=np.float32) for vector in self.queries(input)]

    @staticmethod
    def name() -> str:
        """What collections know it by."""
        return NAME

    def default_space(self) -> Space:
        """How a collection that does not say compares vectors."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """What a collection writes down; InvalidOptionError for a model that was opened by the program."""
        return self.settings()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> EdgeEmbeddingFunction:
        """The function again, from what a collection wrote down."""
        return EdgeEmbeddingFunction(
            config.get("model"), instruction=config.get("instruction"), truncate_dim=config.get("truncate_dim")
        )
