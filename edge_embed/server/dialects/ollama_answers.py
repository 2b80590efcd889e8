"""What Ollama's routes answer, for the description of the interface."""

from __future__ import annotations

from typing import Any, Literal

from edge_embed.server.bodies import Body


class Embedded(Body):
    """The answer of ``/api/embed``. Durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Embedding(Body):
    """The answer of ``/api/embeddings``."""

    embedding: list[float]


class Version(Body):
    """The answer of ``/api/version``."""

    version: str
    edge_embed: str


class Details(Body):
    """What a model is."""

    parent_model: str
    format: Literal["gguf"]
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int
    embedding_length: int


class Model(Body):
    """A model that is here."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[Literal["embedding", "rerank"]]


class Tags(Body):
    """The answer of ``/api/tags``."""

    models: list[Model]


class Running(Model):
    """A model in memory."""

    size_vram: int
    expires_at: str
    context_length: int


class Ps(Body):
    """The answer of ``/api/ps``."""

    models: list[Running]


class Shown(Body):
    """The answer of ``/api/show``."""

    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[Literal["embedding", "rerank"]]
    modified_at: str


class Generated(Body):
    """The answer of ``/api/generate`` and ``/api/chat``."""

    model: str
    created_at: str
    response: str
    message: dict[str, str]
    done: bool
    done_reason: Literal["load", "unload"]


class Status(Body):
    """A line of the answer of ``/api/pull``."""

    status: str


class Refusal(Body):
    """Why something is not offered."""

    error: str
