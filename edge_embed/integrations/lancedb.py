"""LanceDB: the embedding function ``edge-embed``, which a table writes down by its name and settings.

``get_registry().get("edge-embed").create(model=...)`` makes one; this module must be imported before such a table is
opened. Nothing is tried again, as LanceDB does with services: what fails here fails the second time, too.
"""

from __future__ import annotations

from typing import Any

from edge_embed.integrations import extra
from edge_embed.integrations.base import Vectors

with extra("lancedb"):
    from lancedb.embeddings import EmbeddingFunction, register
    from pydantic import ConfigDict, PrivateAttr

NAME = "edge-embed"


@register(NAME)
class EdgeEmbeddingFunction(EmbeddingFunction):
    """Vectors for a table's source column, and for what is searched for in it.

    Attributes:
        model, instruction, truncate_dim: as for ``base.Vectors``; a table is written with the model's name or file.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: str | None = None
    instruction: str | None = None
    truncate_dim: int | None = None
    _vectors: Vectors | None = PrivateAttr(default=None)

    def _open(self) -> Vectors:
        if self._vectors is None:
            self._vectors = Vectors(self.model, instruction=self.instruction, truncate_dim=self.truncate_dim)
        return self._vectors

    def ndims(self) -> int:
        """Values of each vector."""
        return self._open().dimensions

    def compute_query_embeddings(self, query: str, *_: Any, **__: Any) -> list[Any]:
        """The vector of what is searched for, in a list."""
        return [self._open().query(query)]

    def compute_source_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Any]:
        """Vectors of a column (a list, or one of Arrow's); None where there is no text."""
        given = self.sanitize_input(texts)
        vectors = iter(self._open().documents([text for text in given if text is not None]))
        return [None if text is None else next(vectors) for text in given]

    def compute_query_embeddings_with_retry(self, *args: Any, **options: Any) -> list[Any]:
        """At once: errors keep their type."""
        return self.compute_query_embeddings(*args, **options)

    def compute_source_embeddings_with_retry(self, *args: Any, **options: Any) -> list[Any]:
        """At once: errors keep their type."""
        return self.compute_source_embeddings(*args, **options)
