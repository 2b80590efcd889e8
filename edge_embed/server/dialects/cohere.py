"""Cohere's embeddings. Several types of vectors in one request are one run of the model."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from edge_embed import postprocess
from edge_embed.errors import RequestShapeError
from edge_embed.server.bodies import Body
from edge_embed.server.dialects.openai import MOST_DIMENSIONS, as_base64
from edge_embed.server.dialects.vocabulary import OutputType, precision_of, role_of, truncate_of
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import COHERE
from edge_embed.server.requests import EmbedRequest
from edge_embed.types import Float32Array

_NO_IMAGES: Final = "leave images out, or describe them in words"


class Content(Body):
    """A part of an input."""

    type: str = "text"
    text: str | None = None


class Input(Body):
    """An input of parts."""

    content: list[Content]


class EmbedBody(Body):
    """``POST /v2/embed``."""

    texts: list[str] | None = Field(None, description="a list of strings")
    inputs: list[Input] | None = Field(
        None, description="a list of objects with a content of texts, which become lines of one text"
    )
    images: list[str] | None = Field(None, description="nothing: images are not embedded")
    model: str | None = Field(None, description="a name from /v1/models, perhaps with :query or :document behind it")
    input_type: str | None = Field(None, description="search_query, search_document, classification or clustering")
    embedding_types: list[OutputType] | None = Field(None, description="of float, int8, uint8, binary, ubinary, base64")
    output_dimension: int | None = Field(None, ge=1, le=MOST_DIMENSIONS, description="1 to the model's size")
    max_tokens: int | None = Field(None, ge=1, description="tokens after which an input is cut")
    truncate: str | None = Field(None, description="NONE, START or END")
    prompt: str | None = Field(None, description="text put before each input")
    prompt_name: str | None = Field(None, description="one of the model's prompts")
    instruction: str | None = Field(None, description="what is looked for, for a model that takes instructions")


class Meta(Body):
    """What a request cost."""

    api_version: dict[str, str]
    billed_units: dict[str, int]


class ByType(Body):
    """The answer of ``/v2/embed``."""

    id: str
    response_type: Literal["embeddings_by_type"]
    embeddings: dict[str, list[list[float]] | list[str]]
    texts: list[str]
    meta: Meta


class Floats(Body):
    """The answer of ``/v1/embed`` where no types were asked for."""

    id: str
    response_type: Literal["embeddings_floats"]
    embeddings: list[list[float]]
    texts: list[str]
    meta: Meta


async def embed(body: EmbedBody, call: Call) -> Reply:
    """Vectors of the types that were asked for."""
    return await _embed(body, call, body.embedding_types or ["float"], version="2")


async def embed_v1(body: EmbedBody, call: Call) -> Reply:
    """As ``embed``; a plain list where no type was asked for."""
    return await _embed(body, call, body.embedding_types, version="1")


async def _embed(body: EmbedBody, call: Call, types: list[OutputType] | None, *, version: str) -> Reply:
    texts = _texts(body)
    if body.output_dimension is not None:
        for one in types or ():  # before the model runs
            postprocess.check_dim(body.output_dimension, body.output_dimension, precision_of(one))
    done = await call.embed(
        EmbedRequest(
            texts=tuple(texts),
            model=body.model,
            role=role_of(body.input_type),
            prompt=body.prompt,
            prompt_name=body.prompt_name,
            instruction=body.instruction,
            dimensions=body.output_dimension,
            max_tokens=body.max_tokens,
            truncate=truncate_of(body.truncate),
        )
    )
    vectors: Float32Array = done.result.vectors
    return Reply(
        {
            "id": call.request_id,
            "response_type": "embeddings_floats" if types is None else "embeddings_by_type",
            "embeddings": vectors if types is None else {one: _as_type(vectors, one) for one in types},
            "texts": texts,
            "meta": {
                "api_version": {"version": version},
                "billed_units": {"input_tokens": done.result.usage.n_tokens},
            },
        }
    )


def _as_type(vectors: Float32Array, output: OutputType) -> Any:
    """The same values as if this type alone had been asked for: it is made of the finished float32 vectors."""
    if output == "base64":
        return [as_base64(row) for row in vectors]
    precision = precision_of(output)
    dim = postprocess.check_dim(None, vectors.shape[1], precision)
    return postprocess.finish(vectors, dim=dim, normalize=False, precision=precision)


def _texts(body: EmbedBody) -> list[str]:
    """Raises RequestShapeError for images, for none, and for texts in two places."""
    if body.images or body.input_type == "image":
        raise RequestShapeError("images cannot be embedded: the model reads text", param="images", hint=_NO_IMAGES)
    if (body.texts is None) == (body.inputs is None):
        missing = body.texts is None
        raise RequestShapeError(
            "texts is missing" if missing else "both texts and inputs were sent", param="texts",
            hint="a list of strings; or inputs, a list of objects with a content",
        )  # fmt: skip
    texts = body.texts if body.texts is not None else [_joined(one, i) for i, one in enumerate(body.inputs or ())]
    if not texts:
        raise RequestShapeError("there are no texts", param="texts", hint="give at least one")
    return texts


def _joined(given: Input, index: int) -> str:
    parts = [part.text for part in given.content if part.type == "text" and part.text is not None]
    if len(parts) < len(given.content) or not parts:
        raise RequestShapeError(
            f"input {index} has a part that is no text: the model reads text" if given.content else "an empty input",
            param="inputs", hint=_NO_IMAGES,
        )  # fmt: skip
    return "\n".join(parts)


ENDPOINTS: Final = (
    Endpoint("POST", "/v2/embed", COHERE, embed, "Vectors of texts, in several types.", EmbedBody, ByType),
    Endpoint("POST", "/v1/embed", COHERE, embed_v1, "Vectors of texts.", EmbedBody, Floats | ByType),
)
