"""Rerank routes.

One answer that the clients of Jina, Cohere, Voyage, vLLM, Infinity and Ollama's proxies read, each in their own way;
and the bare list of text-embeddings-inference where ``texts`` are sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Final, cast

import numpy as np
import orjson
from pydantic import Field

from edge_embed.errors import RequestShapeError
from edge_embed.server.bodies import Body
from edge_embed.server.dialects.vocabulary import one_of, truncate_of
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import COHERE, RERANK
from edge_embed.server.requests import RerankRequest
from edge_embed.types import Truncate

_PER_SEARCH: Final = 100  # documents of what Cohere counts as one search
Document = str | dict[str, Any]


class Text(Body):
    """A text in an object."""

    text: str


class RerankBody(Body):
    """``POST /rerank``."""

    query: str | Text = Field(union_mode="left_to_right", description="a string")
    documents: list[Document] | None = Field(None, description="a list of strings, or of objects with a text")
    texts: list[str] | None = Field(None, description="a list of strings: the answer is a bare list, as TEI's")
    model: str | None = Field(None, description="a reranker's name from /v1/models")
    top_n: int | None = Field(None, ge=1, description="how many of the best come back")
    top_k: int | None = Field(None, ge=1, description="the same as top_n")
    return_documents: bool | None = Field(None, description="whether the documents come back")
    return_text: bool | None = Field(None, description="whether the texts come back")
    rank_fields: list[str] | None = Field(None, description="the fields of the documents that are read, in this order")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="tokens after which a document is cut")
    max_chunks_per_doc: int | None = Field(None, description="an integer, which changes nothing")
    truncate: bool | str | None = Field(None, description="whether, or at which end, a long document is cut")
    truncation: bool | None = Field(None, description="the same as truncate")
    truncation_direction: str | None = Field(None, description="left or right")
    raw_scores: bool | None = Field(None, description="whether scores are logits")
    instruction: str | None = Field(None, description="what is looked for, for a model that takes instructions")
    instruct: str | None = Field(None, description="the same as instruction")


class Rank(Body):
    """A place in TEI's list."""

    index: int
    text: str | None = None
    score: float


class Result(Body):
    """A document in its place."""

    index: int
    relevance_score: float
    document: Document | None = None


class Usage(Body):
    """What a request cost."""

    prompt_tokens: int
    total_tokens: int


class Ranking(Body):
    """The answer of ``/v1/rerank``."""

    id: str
    object: str
    model: str
    results: list[Result]
    data: list[Result]
    usage: Usage
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a route's clients want to be answered, where the request does not say.

    Attributes:
        version: of Cohere's interface.
        returns: whether documents come back, as Jina and vLLM have it.
        as_text: whether they are strings, not objects with a text.
        infinity: whether Infinity's clients come here, too, who alone speak of ``raw_scores``: they expect strings.
    """

    version: str = "1"
    returns: bool = False
    as_text: bool = False
    infinity: bool = False


async def rerank(body: RerankBody, call: Call, manner: Manner = Manner()) -> Reply:
    """The documents from best to worst; of equal ones the earlier comes first."""
    if (body.texts is None) == (body.documents is None):
        missing = body.texts is None
        raise RequestShapeError(
            "documents are missing" if missing else "both documents and texts were sent",
            param="documents", hint="a list of documents; or of texts, for TEI's clients",
        )  # fmt: skip
    documents: list[Document] = [*(body.documents or body.texts or ())]
    if not documents:
        raise RequestShapeError("there are no documents", param="documents", hint="give at least one")
    query = body.query if isinstance(body.query, str) else body.query.text
    texts = [_text(document, i, body.rank_fields) for i, document in enumerate(documents)]
    done = await call.rerank(
        RerankRequest(
            pairs=tuple((query, text) for text in texts),
            model=body.model,
            instruction=one_of(instruction=body.instruction, instruct=body.instruct),
            truncate=_truncate(body),
            max_document_tokens=body.max_tokens_per_doc,
        )
    )
    best = np.argsort(-done.result.logits, kind="stable")  # by logits: probabilities near 1 are all alike
    best = best[: one_of(top_n=body.top_n, top_k=body.top_k)]
    scores = (done.result.logits if body.raw_scores else done.result.scores).tolist()
    if body.texts is not None:
        with_text = one_of(return_text=body.return_text, return_documents=body.return_documents)
        return Reply(
            [{"index": i, **({"text": texts[i]} if with_text else {}), "score": scores[i]} for i in best.tolist()]
        )
    infinity = manner.infinity and "raw_scores" in body.model_fields_set
    placed: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in best.tolist()]
    as_sent, as_text = placed, placed
    if _returns(body, manner):
        as_text = [{**place, "document": texts[place["index"]]} for place in placed]
        as_sent = [{**place, "document": _object(documents[place["index"]])} for place in placed]
    n_tokens = done.result.usage.n_tokens
    return Reply(
        {
            "id": call.request_id,
            "object": "rerank" if infinity else "list",
            "model": body.model or done.served.name,
            "results": as_text if manner.as_text or infinity else as_sent,  # Jina's, Cohere's and most others'
            "data": as_text,  # Voyage's
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            "meta": {
                "api_version": {"version": manner.version},
                "billed_units": {"search_units": ceil(len(documents) / _PER_SEARCH)},
                "tokens": {"input_tokens": n_tokens},
            },
        }
    )


def _returns(body: RerankBody, manner: Manner) -> bool:
    """Whether documents come back: as asked; else as this route's clients have it, those of Jina and vLLM, say."""
    said = one_of(return_documents=body.return_documents, return_text=body.return_text)
    if said is not None:
        return said
    others = {"raw_scores", "top_k", "truncation", "rank_fields", "max_chunks_per_doc"}  # do not, if not told to
    return manner.returns and not body.model_fields_set & others


def _object(document: Document) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document


def _truncate(body: RerankBody) -> Truncate | None:
    """A document is cut where the request says how long it may be, whatever the server does otherwise."""
    said = cast("bool | str | None", one_of(truncate=body.truncate, truncation=body.truncation))
    asked = truncate_of(said, body.truncation_direction)
    return "right" if asked is None and body.max_tokens_per_doc is not None else asked


def _text(document: Document, index: int, fields: list[str] | None) -> str:
    """What is read of a document: its text, or the values of some of its fields, each in a line."""
    if isinstance(document, str):
        return document
    if fields is None and isinstance(document.get("text"), str):
        return str(document["text"])
    values = [document[name] for name in fields or () if name in document]
    if not values:
        raise RequestShapeError(
            f"document {index} has none of {', '.join(fields)}" if fields else f"document {index} has no text",
            param="documents",
            hint="a document is a string, or an object with a text or with rank_fields; images are not read",
        )
    return "\n".join(value if isinstance(value, str) else orjson.dumps(value).decode() for value in values)


def _in(manner: Manner) -> Callable[[RerankBody, Call], Awaitable[Reply]]:
    return partial(rerank, manner=manner)


ENDPOINTS: Final = (
    *(
        Endpoint(
            "POST", path, family, _in(manner), "Documents by how well they answer a query.", RerankBody,
            Ranking | list[Rank],
        )
        for path, family, manner in (
            ("/rerank", RERANK, Manner(returns=True, infinity=True)),
            ("/v1/rerank", RERANK, Manner(returns=True)),
            ("/v2/rerank", COHERE, Manner(version="2")),
            ("/api/rerank", RERANK, Manner(as_text=True)),
        )
    ),
)  # fmt: skip
