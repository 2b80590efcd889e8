"""text-embeddings-inference: vectors, similarities, predictions, and what a model is.

Its rerank route is in ``rerank``, its tokens are in ``tokenizing``.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from pydantic import Field

from edge_embed import __version__, postprocess
from edge_embed.errors import RequestShapeError, UnsupportedModelError
from edge_embed.server.bodies import Body
from edge_embed.server.dialects.facts import Listed, listed
from edge_embed.server.dialects.openai import MOST_DIMENSIONS, as_texts
from edge_embed.server.dialects.rerank import Rank, RerankBody, rerank
from edge_embed.server.dialects.vocabulary import role_of, truncate_of
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import RERANK, TEI
from edge_embed.server.operations import health
from edge_embed.server.requests import EmbedRequest, RerankRequest
from edge_embed.types import Pooling, RerankInfo

# A client that obeys sends no more at once. It is what TEI itself says: clients that send batch after batch, with time
# limits made for a GPU, would wait too long for one of thousands. More are answered all the same.
MOST_PER_CLIENT: Final = 32
_POOLINGS: Final[dict[Pooling, str]] = {"last": "last_token"}  # TEI's names, where they are not ours
_TRUNCATE: Final = "true or false"
_DIRECTION: Final = "Left or Right"


class _Embedding(Body):
    """What all routes that embed take."""

    model: str | None = Field(None, description="a name from /v1/models, perhaps with :query or :document behind it")
    truncate: bool | None = Field(None, description=_TRUNCATE)
    truncation_direction: str | None = Field(None, description=_DIRECTION)
    prompt_name: str | None = Field(None, description="one of the model's prompts")
    prompt: str | None = Field(None, description="text put before each input")
    instruction: str | None = Field(None, description="what is looked for, for a model that takes instructions")
    input_type: str | None = Field(None, description="query or document")


class EmbedAllBody(_Embedding):
    """``POST /embed_all``."""

    inputs: str | list[int] | list[str | list[int]] = Field(
        union_mode="left_to_right", description="a string, a list of token ids, or a list of either"
    )


class EmbedBody(EmbedAllBody):
    """``POST /embed``."""

    normalize: bool | None = Field(None, description="whether vectors are made unit length, which is usual")
    dimensions: int | None = Field(None, ge=1, le=MOST_DIMENSIONS, description="an integer from 1 to the model's size")


class Sentences(Body):
    """A sentence and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityBody(_Embedding):
    """``POST /similarity``."""

    inputs: Sentences = Field(description="an object of source_sentence and sentences")
    parameters: _Embedding | None = Field(None, description="an object of truncate, truncation_direction, prompt_name")


class RootBody(EmbedBody):
    """``POST /``: what TEI answers there depends on its model, and here on what is sent."""

    inputs: str | Sentences | list[int] | list[str | list[int]] | None = Field(  # type: ignore[assignment]
        None,
        union_mode="left_to_right",
        description="a string, a list of token ids, a list of either, or an object of source_sentence and sentences",
    )
    parameters: _Embedding | None = Field(None, description="an object, for sentences")
    query: str | None = Field(None, description="a query, with texts")
    texts: list[str] | None = Field(None, description="texts that are ranked for a query")
    raw_scores: bool | None = Field(None, description="whether scores are logits")
    return_text: bool | None = Field(None, description="whether the texts come back")


class PredictBody(Body):
    """``POST /predict``."""

    inputs: str | list[str] | list[list[str]] = Field(
        union_mode="left_to_right", description="a pair [query, document], or a list of pairs"
    )
    model: str | None = Field(None, description="a reranker's name from /v1/models")
    truncate: bool | None = Field(None, description=_TRUNCATE)
    truncation_direction: str | None = Field(None, description=_DIRECTION)
    raw_scores: bool | None = Field(None, description="whether scores are logits")


class Prediction(Body):
    """A label's score."""

    score: float
    label: str


class Info(Body):
    """The answer of ``/info``."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


async def info(_: None, call: Call) -> Reply:
    """The first model, or the one that ``?model=`` names: TEI has only one."""
    registry, settings = call.service.registry, call.settings
    name = call.query.get("model")
    served = registry.lookup(name) if name else registry.served[0]
    one = await asyncio.to_thread(listed, registry, served)
    return Reply(
        {
            "model_id": served.name,
            "model_sha": one.facts.digest,
            "model_dtype": one.facts.quantization.lower(),
            "served_model_name": served.name,
            "model_type": _model_type(one),
            "max_concurrent_requests": settings.max_requests,
            "max_input_length": one.max_tokens,
            "max_batch_tokens": settings.max_request_tokens or settings.max_queued_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": min(MOST_PER_CLIENT, settings.max_texts),
            "auto_truncate": settings.truncate,
            "tokenization_workers": call.service.n_threads,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


def _model_type(one: Listed) -> dict[str, Any]:
    """The first key is what clients look at."""
    found = one.served.info
    if found.rerank is None:
        return {"embedding": {"pooling": _POOLINGS.get(found.pooling, found.pooling)}}
    label = _label(found.rerank)
    return {"reranker": {"id2label": {"0": label}, "label2id": {label: 0}}}


def _label(head: RerankInfo) -> str:
    """What a score says: of two outputs, yes."""
    return head.labels[0] if len(head.labels) == 1 else "yes"


async def embed(body: EmbedBody, call: Call) -> Reply:
    """Vectors in the order of the inputs."""
    given = as_texts(cast("str | list[str] | list[int] | list[list[int]]", body.inputs))
    _require(given, "inputs")
    request = _request(body, call.decoded(given), normalize=body.normalize is not False, dimensions=body.dimensions)
    return Reply((await call.embed(request)).result.vectors)


async def embed_all(body: EmbedAllBody, call: Call) -> Reply:
    """The vector of every token, neither cut nor normalized."""
    given = as_texts(cast("str | list[str] | list[int] | list[list[int]]", body.inputs))
    _require(given, "inputs")
    done = await call.embed(_request(body, call.decoded(given), tokens=True))
    return Reply(list(done.result.token_vectors or ()))


async def embed_sparse(body: EmbedAllBody, call: Call) -> Reply:
    """Refused: no model here has sparse vectors."""
    del body, call
    raise UnsupportedModelError(
        "sparse vectors need a SPLADE model, and none is run here", hint="ask /embed for dense vectors"
    )


async def similarity(body: SimilarityBody, call: Call) -> Reply:
    """Cosines of a sentence with others."""
    sentences = body.inputs.sentences
    _require(sentences, "inputs.sentences")
    texts = (body.inputs.source_sentence, *sentences)
    done = await call.embed(_request(_merged(body, body.parameters), texts, normalize=False))
    vectors = done.result.vectors
    return Reply(postprocess.similarity(vectors[:1], vectors[1:])[0])


async def root(body: RootBody, call: Call) -> Reply:
    """Similarities for sentences, ranks for a query and texts, vectors otherwise."""
    said = {name: getattr(body, name) for name in body.model_fields_set}
    if isinstance(body.inputs, Sentences):
        return await similarity(SimilarityBody.model_construct(**said), call)
    if body.inputs is None and body.query is not None and body.texts is not None:
        return await rerank(RerankBody.model_construct(**said), call)
    if body.inputs is None:
        raise RequestShapeError("inputs is missing", param="inputs", hint="a string or a list; or query and texts")
    return await embed(body, call)


async def predict(body: PredictBody, call: Call) -> Reply:
    """Scores of pairs, by a reranker, each with the name of what it says."""
    inputs = body.inputs
    single = not (isinstance(inputs, list) and (not inputs or isinstance(inputs[0], list)))
    pairs = [inputs] if single else inputs
    _require(pairs, "inputs")
    wrong = next((i for i, pair in enumerate(pairs) if not isinstance(pair, list) or len(pair) != 2), None)
    if wrong is not None:
        raise RequestShapeError(
            f"input {wrong} is not a pair of texts", param="inputs", hint="a reranker scores [query, document]"
        )
    done = await call.rerank(
        RerankRequest(
            pairs=tuple(cast("list[tuple[str, str]]", [tuple(pair) for pair in pairs])),
            model=body.model,
            truncate=truncate_of(body.truncate, body.truncation_direction),
        )
    )
    scores = done.result.logits if body.raw_scores else done.result.scores
    head = done.served.info.rerank
    assert head is not None
    found = [[{"score": score, "label": _label(head)}] for score in scores.tolist()]
    return Reply(found[0] if single else found)


def _require(items: Any, name: str) -> None:
    if not items:
        raise RequestShapeError(f"{name} is empty", param=name.partition(".")[0], hint="give at least one text")


def _merged(body: _Embedding, parameters: _Embedding | None) -> _Embedding:
    """What the parameters say, and what the body says beside them."""
    said = [{name: getattr(one, name) for name in one.model_fields_set} for one in (body, parameters) if one]
    whole: dict[str, Any] = {name: value for one in said for name, value in one.items()}
    return _Embedding.model_construct(**{name: whole[name] for name in whole.keys() & _Embedding.model_fields.keys()})


def _request(body: _Embedding, texts: tuple[Any, ...], **more: Any) -> EmbedRequest:
    return EmbedRequest(
        **{
            "texts": texts,
            "model": body.model,
            "role": role_of(body.input_type),
            "prompt": body.prompt,
            "prompt_name": body.prompt_name,
            "instruction": body.instruction,
            "truncate": truncate_of(body.truncate, body.truncation_direction),
            **more,
        }
    )


_Vectors = list[list[float]]
ENDPOINTS: Final = (
    Endpoint("GET", "/info", TEI, info, "What the model is and what may be asked of it.", None, Info),
    Endpoint("GET", "/ping", TEI, health, "Whether requests are answered.", None, dict[str, str], public=True),
    Endpoint("POST", "/embed", TEI, embed, "Vectors of texts.", EmbedBody, _Vectors),
    Endpoint("POST", "/embed_all", TEI, embed_all, "Vectors of all tokens of texts.", EmbedAllBody, list[_Vectors]),
    Endpoint("POST", "/embed_sparse", TEI, embed_sparse, "Refused, with the reason.", EmbedAllBody),
    Endpoint("POST", "/similarity", TEI, similarity, "Cosines of a text with others.", SimilarityBody, list[float]),
    Endpoint(
        "POST", "/predict", TEI, predict, "Scores of pairs, with labels.", PredictBody,
        list[Prediction] | list[list[Prediction]],
    ),
    Endpoint(
        "POST", "/", RERANK, root, "What /embed, /similarity or /rerank would answer.", RootBody,
        _Vectors | list[float] | list[Rank],
    ),
)  # fmt: skip
