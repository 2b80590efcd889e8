"""LM Studio's own routes, ``/api/v0``: richer lists of models, and OpenAI's embeddings under another path."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal

from edge_embed.server.bodies import Body
from edge_embed.server.dialects.facts import Listed, all_listed, listed
from edge_embed.server.dialects.openai import Embeddings, EmbeddingsBody, embeddings
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import OPENAI


class Model(Body):
    """A model that is here."""

    id: str
    object: Literal["model"]
    type: Literal["embeddings", "rerank"]
    publisher: str
    arch: str
    compatibility_type: Literal["gguf"]
    quantization: str
    state: Literal["loaded", "not-loaded"]
    max_context_length: int
    loaded_context_length: int | None = None


class Models(Body):
    """The answer of ``/api/v0/models``."""

    object: Literal["list"]
    data: list[Model]


async def models(_: None, call: Call) -> Reply:
    """Every model that is here, loaded or not."""
    found = await asyncio.to_thread(all_listed, call.service.registry)
    return Reply({"object": "list", "data": [_model(one) for one in found]})


async def model(_: None, call: Call) -> Reply:
    """One of them."""
    registry = call.service.registry
    return Reply(_model(await asyncio.to_thread(listed, registry, registry.lookup(call.path_params["model"]))))


def _model(one: Listed) -> dict[str, Any]:
    """LM Studio has no rerankers; ``llm`` would offer them for chats, so they have a type of their own."""
    described = {
        "id": one.served.name,
        "object": "model",
        "type": "embeddings" if one.served.kind == "embedding" else "rerank",
        "publisher": one.facts.publisher,
        "arch": one.served.info.architecture,
        "compatibility_type": "gguf",
        "quantization": one.facts.quantization,
        "state": "not-loaded" if one.loaded is None else "loaded",
        "max_context_length": one.max_tokens,
    }
    return described if one.loaded is None else {**described, "loaded_context_length": one.max_tokens}


ENDPOINTS: Final = (
    Endpoint("GET", "/api/v0/models", OPENAI, models, "The models that are here.", None, Models),
    Endpoint("GET", "/api/v0/models/{model:path}", OPENAI, model, "One model.", None, Model),
    Endpoint("POST", "/api/v0/embeddings", OPENAI, embeddings, "Vectors of texts.", EmbeddingsBody, Embeddings),
)
