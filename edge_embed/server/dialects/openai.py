"""OpenAI's embeddings and models, with what other servers and clients have added to them."""

from __future__ import annotations

import base64
from typing import Any, Final, Literal, cast

from pydantic import Field

from edge_embed.errors import InvalidTextError, RequestShapeError
from edge_embed.registry import Served
from edge_embed.server.bodies import Body
from edge_embed.server.describing import described
from edge_embed.server.dialects.vocabulary import OutputType, one_of, precision_of, role_of, truncate_of
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import OPENAI
from edge_embed.server.requests import EmbedRequest
from edge_embed.tokenizer import Text
from edge_embed.types import AnyArray

MOST_DIMENSIONS: Final = 1 << 20
_OTHER_IDS: Final = (
    "send texts: with LangChain, OpenAIEmbeddings(check_embedding_ctx_length=False); "
    "or start the server with --token-encoding cl100k_base"
)


class EmbeddingsBody(Body):
    """``POST /v1/embeddings``."""

    input: str | list[str] | list[int] | list[list[int]] = Field(
        union_mode="left_to_right",
        description="a string, a list of strings, a list of token ids, or a list of lists of token ids",
    )
    model: str | None = Field(None, description="a name from /v1/models, perhaps with :query or :document behind it")
    dimensions: int | None = Field(None, ge=1, le=MOST_DIMENSIONS, description="an integer from 1 to the model's size")
    output_dim: int | None = Field(None, ge=1, le=MOST_DIMENSIONS, description="the same as dimensions")
    output_dimension: int | None = Field(None, ge=1, le=MOST_DIMENSIONS, description="the same as dimensions")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float or base64")
    output_dtype: OutputType | None = Field(None, description="float, int8, uint8, binary or ubinary")
    embedding_type: OutputType | None = Field(None, description="the same as output_dtype, or base64")
    embedding_types: list[OutputType] | None = Field(None, max_length=1, description="a list of one output_dtype")
    input_type: str | None = Field(None, description="query or document (search_query, search_document)")
    task: str | None = Field(None, description="retrieval.query or retrieval.passage, or another of Jina's tasks")
    prompt: str | None = Field(None, description="text put before each input")
    prompt_name: str | None = Field(None, description="one of the model's prompts")
    instruction: str | None = Field(None, description="what is looked for, for a model that takes instructions")
    normalize: bool | None = Field(None, description="whether vectors are made unit length")
    normalized: bool | None = Field(None, description="the same as normalize")
    truncate: bool | str | None = Field(None, description="whether, or at which end, a text above the limit is cut")
    truncation_direction: str | None = Field(None, description="left or right")


class Embedding(Body):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(Body):
    """What a request cost."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Body):
    """The answer of ``/v1/embeddings``."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


async def embeddings(body: EmbeddingsBody, call: Call) -> Reply:
    """Vectors in the order of the inputs."""
    texts = call.decoded(as_texts(body.input))
    if not texts:
        raise RequestShapeError("input is empty", param="input", hint="give at least one text")
    output = one_of(
        output_dtype=body.output_dtype,
        embedding_type=body.embedding_type,
        embedding_types=body.embedding_types[0] if body.embedding_types else None,
    )
    request = EmbedRequest(
        texts=texts,
        model=body.model,
        role=role_of(one_of(input_type=body.input_type, task=body.task)),
        prompt=body.prompt,
        prompt_name=body.prompt_name,
        instruction=body.instruction,
        dimensions=one_of(
            dimensions=body.dimensions, output_dim=body.output_dim, output_dimension=body.output_dimension
        ),
        normalize=one_of(normalize=body.normalize, normalized=body.normalized),
        precision=precision_of(output),
        truncate=truncate_of(body.truncate, body.truncation_direction),
    )
    try:
        done = await call.embed(request)
    except InvalidTextError as error:
        if all(isinstance(text, str) for text in texts):
            raise
        raise RequestShapeError(error.message, param="input", hint=_OTHER_IDS) from None
    vectors = done.result.vectors
    packed = body.encoding_format == "base64" or output == "base64"
    rows = [as_base64(row) if packed else row for row in vectors]
    n_tokens = done.result.usage.n_tokens
    return Reply(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": body.model or done.served.name,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


def as_texts(given: str | list[str] | list[int] | list[list[int]]) -> tuple[Text, ...]:
    """The inputs of a request: one text, several, or the ids of one or several."""
    if isinstance(given, str):
        return (given,)
    if given and isinstance(given[0], int):
        return (tuple(given),)
    return tuple(text if isinstance(text, str) else tuple(text) for text in cast("list[str | list[int]]", given))


def as_base64(row: AnyArray) -> str:
    """The row's bytes, little-endian, in base64."""
    return base64.b64encode(row.astype(row.dtype.newbyteorder("<"), copy=False).tobytes()).decode("ascii")


async def models(_: None, call: Call) -> Reply:
    """Every model that is served."""
    return Reply({"object": "list", "data": [_model(served, call) for served in call.service.registry.served]})


async def model(_: None, call: Call) -> Reply:
    """One of them."""
    return Reply(_model(call.service.registry.lookup(call.path_params["model"]), call))


def _model(served: Served, call: Call) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "owned_by": "edge-embed", **described(served, call.service.registry)}


class Model(Body):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Body):
    """The answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[Model]


ENDPOINTS: Final = (
    *(
        Endpoint("POST", path, OPENAI, embeddings, "Vectors of texts.", EmbeddingsBody, Embeddings)
        for path in ("/v1/embeddings", "/embeddings")
    ),
    *(
        Endpoint("GET", path, OPENAI, models, "The models that are served.", None, Models)
        for path in ("/v1/models", "/models")
    ),
    Endpoint("GET", "/v1/models/{model:path}", OPENAI, model, "One model.", None, Model),
)
