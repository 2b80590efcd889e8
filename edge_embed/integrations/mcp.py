"""An MCP server over stdio: tools with which an assistant embeds, compares and ranks texts on its user's machine.

``edge-embed mcp`` runs it. Models are opened at the first call that needs them, so that the host, which waits for the
handshake, does not wait for weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import edge_embed
from edge_embed.embedder import Embedder
from edge_embed.errors import EdgeEmbedError
from edge_embed.integrations import extra
from edge_embed.reranker import Reranker

with extra("mcp"):
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp_types import ToolAnnotations
    from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from edge_embed.search.database import Database

MAX_TEXTS: Final = 256  # of one call: an assistant's context ends long before
MAX_PLACES: Final = 50
_READS: Final = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
_Texts = Annotated[list[str], Field(max_length=MAX_TEXTS, description="The texts, in order.")]


class Vectors(BaseModel):
    """What ``embed`` answers."""

    model: str
    dimensions: int
    embeddings: list[list[float]] = Field(description="A unit vector for each text, in order.")
    truncated: list[int] = Field(description="Positions of texts that were too long and lost their end.")


class Ranked(BaseModel):
    """A document in its place."""

    index: int = Field(description="Its position in the call, from 0.")
    score: float
    text: str


class Ranking(BaseModel):
    """What ``rerank`` answers."""

    scored_by: str = Field(description="The reranker, or 'cosine' of the embedding model's vectors.")
    results: list[Ranked] = Field(description="The best first.")


class Place(BaseModel):
    """A place in the user's files."""

    path: str
    line: int | None = Field(description="Where it begins, from 1.")
    page: int | None
    heading: str = Field(description="The headings above it.")
    text: str
    score: float = Field(description="Comparable within one answer only.")


class Found(BaseModel):
    """What ``search`` answers."""

    results: list[Place] = Field(description="The best first.")


@dataclass
class Models:
    """The models behind the tools, each opened when it is first needed.

    Attributes:
        embedder: opens the embedding model.
        reranker: opens the reranker; None where there is none, and cosines order documents.
    """

    embedder: Callable[[], Embedder]
    reranker: Callable[[], Reranker] | None = None
    _open: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def embedding(self) -> Embedder:
        """The embedding model."""
        found: Embedder = self._once("embedder", self.embedder)
        return found

    def reranking(self) -> Reranker | None:
        """The reranker, if there is one."""
        return None if self.reranker is None else self._once("reranker", self.reranker)

    def _once(self, name: str, opening: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._open:
                self._open[name] = opening()
            return self._open[name]

    def close(self) -> None:
        """Free what was opened."""
        with self._lock:
            for model in self._open.values():
                model.close()
            self._open.clear()


def build(models: Models, database: Database | None = None) -> MCPServer[Any]:
    """The server with its tools; ``run()`` speaks MCP on stdin and stdout until stdin ends.

    Args:
        models: what the tools compute with.
        database: of ``edge-embed index``, made with the same embedding model; without one there is no ``search``.
    """
    server: MCPServer[Any] = MCPServer(
        "edge-embed",
        title="edge-embed",
        version=edge_embed.__version__,
        instructions="Embeddings and reranking computed on this machine, offline.",
        log_level="WARNING",
    )

    @server.tool(annotations=_READS, title="Embed texts")
    def embed(
        texts: _Texts,
        kind: Annotated[str, Field(pattern="^(query|document|plain)$", description="What the texts are.")] = "plain",
        dimensions: Annotated[int | None, Field(ge=1, description="Values kept of each vector.")] = None,
    ) -> Vectors:
        """Turn texts into embedding vectors with a model on this machine.

        Cosines of the vectors say how alike the texts are in meaning. To order texts by a question use rerank, which
        does not spend the conversation on numbers.
        """
        with _told():
            model = models.embedding()
            role: Any = None if kind == "plain" else kind
            result = model.embed(texts, role=role, truncate_dim=dimensions)
            return Vectors(
                model=model.info.name,
                dimensions=result.vectors.shape[1],
                embeddings=result.vectors.tolist(),
                truncated=[i for i, cut in enumerate(result.truncated.tolist()) if cut],
            )

    @server.tool(annotations=_READS, title="Rank texts by a question")
    def rerank(
        query: Annotated[str, Field(description="The question, or what is looked for.")],
        texts: _Texts,
        top_k: Annotated[int | None, Field(ge=1, description="How many to return; all by default.")] = None,
    ) -> Ranking:
        """Order texts by how well they answer a query, the best first, by meaning and in any language of the model."""
        with _told():
            reranker = models.reranking()
            if reranker is not None:
                ranked = reranker.rank(query, texts, top_k=top_k)
                found = [Ranked(index=r.index, score=r.score, text=r.document) for r in ranked]
                return Ranking(scored_by=reranker.info.name, results=found)
            return Ranking(scored_by="cosine", results=_nearest(models.embedding(), query, texts)[:top_k])

    if database is not None:
        _add_search(server, models, database)
    return server


def _add_search(server: MCPServer[Any], models: Models, database: Database) -> None:
    from edge_embed.search.record import check_model
    from edge_embed.search.searching import Query, embed_query
    from edge_embed.search.searching import search as find

    @server.tool(annotations=_READS, title="Search the user's files")
    def search(
        query: Annotated[str, Field(description="A question, or what is looked for.")],
        limit: Annotated[int, Field(ge=1, le=MAX_PLACES, description="How many places to return.")] = 5,
        folder: Annotated[str | None, Field(description="Only files below this absolute path.")] = None,
    ) -> Found:
        """Find the places in the user's own indexed files that answer a question, by meaning and by words."""
        with _told():
            model = models.embedding()
            check_model(database.record, model.info, where=str(database.path))
            asked = Query(query, limit=limit, below=folder)
            hits = find(database, asked, embed_query(model, database, query), models.reranking())
            return Found(results=[Place.model_validate(hit, from_attributes=True) for hit in hits])


def _nearest(model: Embedder, query: str, texts: list[str]) -> list[Ranked]:
    """The texts by the cosine of their vectors with the query's, of equal ones the earlier first."""
    if not texts:
        return []
    cosines = model.similarity(model.encode_query([query]), model.encode_document(texts))[0]
    order = (-cosines).argsort(kind="stable").tolist()
    return [Ranked(index=i, score=float(cosines[i]), text=texts[i]) for i in order]


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with a text, an option or a model reaches the assistant as a message and not as a crash."""
    try:
        yield
    except EdgeEmbedError as error:
        raise ToolError(str(error)) from error
