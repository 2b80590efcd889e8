"""``POST /v1/search``: a question to the places of a database that answer it, where the server was given one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from pydantic import Field

from edge_embed.errors import DatabaseMismatchError, ServerSettingsError
from edge_embed.registry import Served
from edge_embed.search.database import Database
from edge_embed.search.record import check_model
from edge_embed.search.searching import CANDIDATES, MAX_LIMIT, PER_FILE, Query, candidates, documents, reordered
from edge_embed.search.snippets import snippet
from edge_embed.search.types import Kind, Mode
from edge_embed.server.bodies import Body
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import OPENAI
from edge_embed.server.requests import EmbedRequest, RerankRequest


class SearchBody(Body):
    """``POST /v1/search``."""

    query: str = Field(description="a string")
    limit: int = Field(10, ge=1, le=MAX_LIMIT, description="how many places come back")
    mode: str = Field("hybrid", description="hybrid, dense or text")
    rerank: bool | str = Field(False, description="whether a reranker looks at the best again, or which one")
    below: str | None = Field(None, description="a file or folder: only what is below it")
    kinds: list[str] = Field([], description="kinds of files")
    per_file: int | None = Field(PER_FILE, ge=1, description="most places of one file, null for any number")
    short: bool = Field(True, description="whether short vectors find what full ones order")
    model: str | None = Field(None, description="refused unless the database was made with it")
    dimensions: int | None = Field(None, description="refused unless the database's vectors have them")
    prompt: str | None = Field(None, description="refused unless it is what the database puts before questions")


class SnippetShape(Body):
    """A part of a text, and the question's words in it."""

    text: str
    marks: list[tuple[int, int]]


class Result(Body):
    """A place that was found."""

    path: str
    kind: str
    heading: str
    text: str
    score: float
    cosine: float | None
    line: int | None
    page: int | None
    ordinal: int
    snippet: SnippetShape


class SearchAnswer(Body):
    """The answer of ``/v1/search``."""

    object: str
    model: str
    results: list[Result]


@dataclass(frozen=True, slots=True)
class Searched:
    """A database that the server answers from.

    Attributes:
        database: it.
        model: the name of the served model that it was made with.
    """

    database: Database
    model: str

    def described(self) -> dict[str, Any]:
        """What the page says of it."""
        return {"path": str(self.database.path), "chunks": self.database.count(), "model": self.model}


def searched(database: Database, served: Sequence[Served]) -> Searched:
    """The database with the served model that it was made with.

    Raises:
        ServerSettingsError: none of the models is that one.
    """
    record = database.record
    if record.adapter is not None or record.projection is not None:
        raise ServerSettingsError(
            f"{database.path} was made with an adapter or a projection, which the server does not load",
            hint="convert the adapter or the projection into the model, and index with that",
        )
    for one in served:
        if not one.is_here or one.kind != "embedding":
            continue
        try:
            check_model(record, one.info, where=str(database.path))
        except DatabaseMismatchError:
            continue
        return Searched(database, one.name)
    raise ServerSettingsError(
        f"{database.path} was made with a model that is not served: {record.model or 'the bundled one'} "
        f"(sha256 {record.digest[:12]}...)",
        hint="serve that one as well",
    )


def endpoints(found: Searched) -> tuple[Endpoint, ...]:
    """The route over a database."""

    async def search(body: SearchBody, call: Call) -> Reply:
        _check(body, found, call)
        query = Query(
            body.query,
            limit=body.limit,
            mode=cast(Mode, body.mode),  # the query looks whether it is one
            short=body.short,
            per_file=body.per_file,
            below=body.below,
            kinds=tuple(cast("list[Kind]", body.kinds)),
        )
        vector = None
        if query.needs_vector:
            record = found.database.record
            asked = EmbedRequest(
                texts=(query.text,),
                model=found.model,
                prompt=record.query_prompt,
                dimensions=record.dimensions,
                normalize=True,
            )
            vector = (await call.embed(asked)).result.vectors[0]
        hits = await asyncio.to_thread(candidates, found.database, query, vector)
        if body.rerank and hits:
            hits = hits[: max(CANDIDATES, query.limit)]
            pairs = tuple((query.text, document) for document in documents(hits))
            name = body.rerank if isinstance(body.rerank, str) else None
            scores = (await call.rerank(RerankRequest(pairs=pairs, model=name))).result.scores
            hits = reordered(hits, scores.tolist())
        results = [{**asdict(hit), "snippet": asdict(snippet(hit.text, query.text))} for hit in hits[: query.limit]]
        return Reply({"object": "list", "model": found.model, "results": results})

    summary = "The places of the indexed files that answer a question."
    return (Endpoint("POST", "/v1/search", OPENAI, search, summary, SearchBody, SearchAnswer),)


def _check(body: SearchBody, found: Searched, call: Call) -> None:
    """Raises DatabaseMismatchError where a request asks for what the database was not made with."""
    record = found.database.record
    wrong = []
    if body.model is not None and call.service.registry.lookup(body.model).name != found.model:
        wrong.append(f"the model is {found.model}, not {body.model}")
    if body.dimensions is not None and body.dimensions != record.dimensions:
        wrong.append(f"vectors have {record.dimensions} values, not {body.dimensions}")
    if body.prompt is not None and body.prompt != record.query_prompt:
        wrong.append(f"the prompt of questions is {record.query_prompt!r}, not {body.prompt!r}")
    if wrong:
        raise DatabaseMismatchError(f"of the database, {'; '.join(wrong)}", hint="leave it out")
