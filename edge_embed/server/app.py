"""The server: routes of all dialects around one service, from the first model loaded to the last request answered."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from edge_embed.errors import EdgeEmbedError
from edge_embed.registry import Kind, Registry
from edge_embed.server import lmstudio, ollama, openai, operations, pages
from edge_embed.server.endpoint import Answering, Endpoint, Gate
from edge_embed.server.log import AccessLog
from edge_embed.server.metrics import Metrics
from edge_embed.server.service import Service
from edge_embed.server.settings import ServerSettings

_SWEEP_SECONDS: Final = 1.0
DIALECTS: Final[tuple[Sequence[Endpoint], ...]] = (
    openai.ENDPOINTS,
    ollama.ENDPOINTS,
    lmstudio.ENDPOINTS,
    operations.ENDPOINTS,
    pages.ENDPOINTS,
)


def create_app(
    registry: Registry,
    settings: ServerSettings,
    metrics: Metrics | None = None,
    *,
    log: AccessLog | None = None,
    warm_up: Iterable[Kind] = (),
) -> Starlette:
    """An ASGI application over a registry, which it closes when it ends.

    Args:
        registry: the models.
        settings: limits and manners; its host and port are the caller's business.
        metrics: counters that the registry's models report to.
        log: where requests are written to; nowhere by default.
        warm_up: of each of these kinds the first model is loaded, and has answered, before requests are taken.
    """
    metrics = metrics or Metrics()
    log = log or AccessLog("off")
    service = Service(registry, settings, metrics)
    gate = Gate(service, settings, metrics, log)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        background = [asyncio.create_task(_sweep(service))]
        starting = asyncio.create_task(_warm_up(gate, tuple(warm_up)))
        try:
            yield
        finally:
            gate.ending = True
            for task in (*background, starting):
                task.cancel()
            await asyncio.gather(*background, starting, return_exceptions=True)
            await service.close()

    routes: list[BaseRoute] = [
        Route(endpoint.path, Answering(endpoint, gate), methods=_methods(endpoint))
        for endpoints in (*DIALECTS, pages.PAGES)
        for endpoint in endpoints
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origin_regex=_origins(settings.origins),
                allow_methods=["GET", "POST", "HEAD", "OPTIONS"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-total-time", "x-compute-tokens", "retry-after"],
                max_age=3600,
            )
        ],
        exception_handlers={HTTPException: _no_such_route},
    )
    app.state.gate = gate
    return app


def _methods(endpoint: Endpoint) -> list[str]:
    return ["GET", "HEAD"] if endpoint.method == "GET" else [endpoint.method]


def _origins(allowed: Sequence[str]) -> str:
    """A pattern for the origins that may ask from a browser; ``*`` alone is all of them."""
    if "*" in allowed:
        return ".*"
    return "|".join(re.escape(origin).replace(r"\*", r"[\w.-]+") for origin in allowed) or "(?!)"


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    """404 and 405, in the shape that most clients read."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}; /docs lists what there is"
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))


async def _warm_up(gate: Gate, kinds: tuple[Kind, ...]) -> None:
    """Load the first models, so that the first request does not wait; then take requests.

    A model that cannot be loaded is said and is no reason to end: the others answer, and its own requests are told why.
    """
    for kind in kinds:
        try:
            timing = await gate.service.load(None, kind)
            gate.log.event("loaded", kind=kind, seconds=round(timing.load, 2))
        except EdgeEmbedError as error:
            gate.log.event("not loaded", kind=kind, error=str(error).replace("\n", "; "))
    gate.ready = True
    gate.log.event("ready")


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        await service.sweep()
