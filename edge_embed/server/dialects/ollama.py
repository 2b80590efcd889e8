"""Ollama's embeddings and models. What makes, moves or deletes models, and writes text, is refused with the reason."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import orjson
from pydantic import Field

from edge_embed import __version__
from edge_embed.durations import seconds_of
from edge_embed.errors import ModelNotFoundError, RequestShapeError
from edge_embed.gguf_header import read_header
from edge_embed.registry import Kind, Loaded
from edge_embed.server.bodies import Body
from edge_embed.server.dialects import ollama_answers as answers
from edge_embed.server.dialects.facts import Listed, all_listed, listed
from edge_embed.server.dialects.vocabulary import role_of, truncate_of
from edge_embed.server.endpoint import Call, Endpoint, Handler, Reply
from edge_embed.server.families import OLLAMA
from edge_embed.server.requests import EmbedRequest

# Clients ask for the version to learn what they may send. This is the Ollama whose requests are understood here.
_VERSION: Final = "0.13.0"
_LONGEST: Final = 2**63 / 1e9  # seconds, Go's longest duration: Ollama's "for ever"
_KEEP_ALIVE: Final = "seconds, or a text like 5m; below 0 for ever, 0 to unload now"
_OPTIONS: Final = "an object; num_ctx is the most tokens of a text, and the others change nothing here"


class _Held(Body):
    """What may be said of a model by every request that uses it."""

    model: str | None = Field(None, description="a name from /api/tags, perhaps with :query or :document behind it")
    keep_alive: str | int | float | None = Field(None, description=_KEEP_ALIVE)
    options: dict[str, Any] | None = Field(None, description=_OPTIONS)

    def seconds(self) -> float | None:
        """How long the model stays in memory. Raises InvalidOptionError for what is not a time."""
        return None if self.keep_alive is None else seconds_of(self.keep_alive)

    def most_tokens(self) -> int | None:
        """``options.num_ctx``; None where it says nothing. Raises RequestShapeError."""
        asked = (self.options or {}).get("num_ctx")
        if asked is None:
            return None
        if isinstance(asked, bool) or not isinstance(asked, int | float) or asked != asked:
            raise RequestShapeError("options.num_ctx is not a number", param="options", hint="give a number of tokens")
        return int(min(asked, 1 << 40)) if asked >= 1 else None


class EmbedBody(_Held):
    """``POST /api/embed``."""

    input: str | list[str] | None = Field(None, description="a string or a list of strings; without it, loads")
    truncate: bool | None = Field(None, description="whether a text above the limit loses its end")
    dimensions: int | None = Field(None, description="values kept of a vector; more than it has is all of them")
    input_type: str | None = Field(None, description="query or document")
    prompt: str | None = Field(None, description="text put before each input")
    prompt_name: str | None = Field(None, description="one of the model's prompts")
    instruction: str | None = Field(None, description="what is looked for, for a model that takes instructions")


class EmbeddingsBody(_Held):
    """``POST /api/embeddings``."""

    prompt: str | None = Field(None, description="the text; without it, loads the model")


class GenerateBody(_Held):
    """``POST /api/generate`` and ``/api/chat``, which programs also send to load and unload a model."""

    prompt: str | None = Field(None, description="nothing: no text is written here")
    messages: list[Any] | None = Field(None, description="nothing: no text is written here")


class NameBody(Body):
    """A body that names a model."""

    model: str | None = Field(None, description="a name from /api/tags")
    name: str | None = Field(None, description="the same as model")

    def said(self) -> str:
        """The name. Raises RequestShapeError where there is none."""
        name = self.model or self.name
        if not name:
            raise RequestShapeError("model is required", param="model", hint="give a name from /api/tags")
        return name


class ShowBody(NameBody):
    """``POST /api/show``."""

    verbose: bool | None = Field(None, description="whether long lists of the metadata are wanted as well")


class PullBody(NameBody):
    """``POST /api/pull``."""

    stream: bool | None = Field(None, description="false for one answer instead of a line for each step")


# Embeddings


async def embed(body: EmbedBody, call: Call) -> Reply:
    """Vectors of unit length. Without a text the model is loaded or, where ``keep_alive`` is 0, unloaded."""
    keep_alive = body.seconds()
    texts = (body.input,) if isinstance(body.input, str) and body.input else tuple(body.input or ())
    if not texts:
        found, seconds = await _load_or_unload(body.model, "embedding", keep_alive, call)
        return Reply({"model": body.model or found, "embeddings": [], **_durations(call, seconds, 0)})
    done = await call.embed(
        EmbedRequest(
            texts=texts,
            model=body.model,
            role=role_of(body.input_type),
            prompt=body.prompt,
            prompt_name=body.prompt_name,
            instruction=body.instruction,
            dimensions=body.dimensions if body.dimensions is not None and body.dimensions > 0 else None,
            clamp_dimensions=True,
            normalize=True,
            truncate=truncate_of(body.truncate),
            max_tokens=body.most_tokens(),
            keep_alive=keep_alive,
        )
    )
    n_tokens = done.result.usage.n_tokens
    return Reply(
        {
            "model": body.model or done.served.name,
            "embeddings": done.result.vectors,
            **_durations(call, done.timing.load, n_tokens),
        }
    )


async def embeddings(body: EmbeddingsBody, call: Call) -> Reply:
    """The vector of one text as the model computes it, of whatever length. Without a text, as ``embed``."""
    keep_alive = body.seconds()
    if not body.prompt:
        await _load_or_unload(body.model, "embedding", keep_alive, call)
        return Reply({"embedding": []})
    done = await call.embed(
        EmbedRequest(
            texts=(body.prompt,),
            model=body.model,
            normalize=False,
            max_tokens=body.most_tokens(),
            keep_alive=keep_alive,
        )
    )
    return Reply({"embedding": done.result.vectors[0]})


async def generate(body: GenerateBody, call: Call) -> Reply:
    """Loads a model of either kind, or unloads it: ``ollama stop`` asks for it in this way. No text is written."""
    registry = call.service.registry
    served = registry.lookup(body.model) if body.model else registry.served[0]
    if body.prompt or body.messages:
        raise RequestShapeError(
            f'"{served.name}" does not support generate or chat', param="model", hint="it gives embeddings or scores"
        )
    keep_alive = body.seconds()
    await _load_or_unload(served.name, served.kind, keep_alive, call)
    return Reply(
        {
            "model": body.model or served.name,
            "created_at": _rfc3339(datetime.now(timezone.utc)),
            "response": "",
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "unload" if keep_alive == 0 else "load",
        }
    )


async def _load_or_unload(name: str | None, kind: Kind, keep_alive: float | None, call: Call) -> tuple[str, float]:
    """The model's name here, and the seconds that loading it took."""
    found = call.service.registry.find(name, kind)[0].name
    if keep_alive == 0:
        await call.service.unload(found)
        return found, 0.0
    return found, (await call.service.load(found, kind, keep_alive)).load


def _durations(call: Call, load: float, n_tokens: int) -> dict[str, int]:
    """Nanoseconds, and tokens."""
    return {
        "total_duration": round((time.perf_counter() - call.started) * 1e9),
        "load_duration": round(load * 1e9),
        "prompt_eval_count": n_tokens,
    }


# Models


async def version(_: None, __: Call) -> Reply:
    """The Ollama that this answers like, and what it really is."""
    return Reply({"version": _VERSION, "edge_embed": __version__})


async def tags(_: None, call: Call) -> Reply:
    """The models that are here; a known one also under its name in Ollama's library, which clients look for."""
    found = await asyncio.to_thread(all_listed, call.service.registry)
    return Reply({"models": [_listed(one, name) for one in found for name in _names(one)]})


async def ps(_: None, call: Call) -> Reply:
    """The models in memory, the last used one first."""
    known = await asyncio.to_thread(all_listed, call.service.registry)
    found = [(one, one.loaded) for one in known if one.loaded is not None]
    found.sort(key=lambda pair: pair[1].last_used, reverse=True)
    return Reply({"models": [{**_listed(one, one.served.name), **_in_memory(loaded, one)} for one, loaded in found]})


async def show(body: ShowBody, call: Call) -> Reply:
    """What is known of a model; its two numbers that programs look for come first."""
    registry = call.service.registry
    one = await asyncio.to_thread(listed, registry, registry.lookup(body.said()))
    metadata = dict(one.facts.metadata)
    if body.verbose:
        metadata = (await asyncio.to_thread(read_header, one.served.path)).metadata
    info = one.served.info
    sizes = {f"{info.architecture}.context_length": one.max_tokens, f"{info.architecture}.embedding_length": one.n_embd}
    return Reply(
        {
            "license": info.license,
            "modelfile": f"FROM {_tagged(one.served.name)}\n",
            "parameters": f"num_ctx {one.max_tokens}",
            "template": "{{ .Prompt }}",
            "details": _details(one),
            "model_info": {**sizes, "general.parameter_count": one.facts.parameters, **metadata, **sizes},
            "capabilities": _capabilities(one),
            "modified_at": _rfc3339(one.facts.modified_at),
        }
    )


async def pull(body: PullBody, call: Call) -> Reply:
    """Success for a model that is served, which is fetched first if that was allowed. Others are refused."""
    try:
        served = call.service.registry.lookup(body.said())
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            error.message, hint="models are fetched with `edge-embed pull NAME` and named when the server is started"
        ) from None
    await asyncio.to_thread(lambda: served.path)
    if body.stream is False:
        return Reply({"status": "success"})
    steps = ("pulling manifest", "success")
    lines = b"".join(orjson.dumps({"status": step}) + b"\n" for step in steps)
    return Reply(lines, media_type="application/x-ndjson")


def _refused(what: str, instead: str) -> Handler:
    async def refuse(_: None, __: Call) -> Reply:
        return Reply({"error": f"{what} over HTTP is not offered; {instead}"}, 501)

    refuse.__doc__ = f"{what} is refused."
    return refuse


def _names(one: Listed) -> tuple[str, ...]:
    own, other = one.served.name, one.facts.ollama
    return (own, other) if other in one.served.aliases else (own,)


def _listed(one: Listed, name: str) -> dict[str, Any]:
    name = _tagged(name)
    return {
        "name": name,
        "model": name,
        "modified_at": _rfc3339(one.facts.modified_at),
        "size": one.served.info.size_bytes,
        "digest": one.facts.digest,
        "details": _details(one),
        "capabilities": _capabilities(one),
    }


def _details(one: Listed) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": one.served.info.architecture,
        "families": [one.served.info.architecture],
        "parameter_size": _rounded(one.facts.parameters),
        "quantization_level": one.facts.quantization,
        "context_length": one.max_tokens,
        "embedding_length": one.n_embd,
    }


def _capabilities(one: Listed) -> list[str]:
    return ["embedding" if one.served.kind == "embedding" else "rerank"]


def _in_memory(loaded: Loaded, one: Listed) -> dict[str, Any]:
    """What it takes, and until when. Of a model that is partly on a GPU, that part by its number of layers."""
    layers: int = getattr(loaded.model.backend.engine, "gpu_layers", 0)
    share = 1.0 if layers < 0 else min(1.0, layers / (one.served.info.n_layer + 1))
    stays = timedelta(seconds=min(max(loaded.expires_in, 0.0), _LONGEST))
    return {
        "size": loaded.memory_bytes,
        "size_vram": round(share * loaded.memory_bytes),
        "expires_at": _rfc3339(datetime.now(timezone.utc) + stays),
        "context_length": one.max_tokens,
    }


def _tagged(name: str) -> str:
    """The name with the tag that Ollama's clients expect behind every name."""
    return name if ":" in name else f"{name}:latest"


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _rounded(n: int) -> str:
    """A number of parameters: ``22.6M``, ``1.5B``."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return str(n)


_SERVED_BY_START: Final = "a server is started with its models: `edge-embed serve MODEL...`"
_CONVERTED: Final = "`edge-embed convert` makes models, and `edge-embed serve --models-dir` serves a folder of them"

ENDPOINTS: Final = (
    Endpoint("POST", "/api/embed", OLLAMA, embed, "Vectors of texts.", EmbedBody, answers.Embedded),
    Endpoint(
        "POST", "/api/embeddings", OLLAMA, embeddings, "The vector of a text, not normalized.", EmbeddingsBody,
        answers.Embedding,
    ),
    Endpoint("GET", "/api/tags", OLLAMA, tags, "The models that are here.", None, answers.Tags),
    Endpoint("GET", "/api/ps", OLLAMA, ps, "The models in memory.", None, answers.Ps),
    Endpoint("POST", "/api/show", OLLAMA, show, "What is known of a model.", ShowBody, answers.Shown),
    Endpoint("GET", "/api/version", OLLAMA, version, "The version.", None, answers.Version, public=True),
    Endpoint("POST", "/api/pull", OLLAMA, pull, "Success for a model that is served.", PullBody, answers.Status),
    *(
        Endpoint("POST", path, OLLAMA, generate, "Load or unload a model.", GenerateBody, answers.Generated)
        for path in ("/api/generate", "/api/chat")
    ),
    *(
        Endpoint(method, path, OLLAMA, _refused(what, instead), "Refused.", None, answers.Refusal)
        for method, path, what, instead in (
            ("POST", "/api/create", "making a model", _CONVERTED),
            ("POST", "/api/blobs/{digest}", "uploading a model", _CONVERTED),
            ("POST", "/api/copy", "copying a model", "`edge-embed serve --alias` gives one another name"),
            ("POST", "/api/push", "publishing a model", _SERVED_BY_START),
            ("DELETE", "/api/delete", "deleting a model", _SERVED_BY_START),
        )
    ),
)  # fmt: skip
