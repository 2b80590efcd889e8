"""The server: routes of all dialects around one service, from the first model loaded to the last request answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from edge_embed.errors import EdgeEmbedError, EngineMemoryError
from edge_embed.registry import Kind, Registry
from edge_embed.server import docs, operations, pages, searching
from edge_embed.server.dialects import cohere, lmstudio, ollama, openai, rerank, tei, tokenizing
from edge_embed.server.endpoint import TIMING_HEADERS, Endpoint, Gate
from edge_embed.server.log import AccessLog
from edge_embed.server.metrics import Metrics
from edge_embed.server.origins import pattern
from edge_embed.server.routes import Routes
from edge_embed.server.searching import Searched
from edge_embed.server.service import Service
from edge_embed.server.settings import ServerSettings
from edge_embed.server.token_ids import TokenTable

_SWEEP_SECONDS: Final = 1.0
DIALECTS: Final[tuple[Sequence[Endpoint], ...]] = (
    openai.ENDPOINTS,
    ollama.ENDPOINTS,
    lmstudio.ENDPOINTS,
    rerank.ENDPOINTS,
    tei.ENDPOINTS,
    tokenizing.ENDPOINTS,
    cohere.ENDPOINTS,
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
    token_table: TokenTable | None = None,
    search: Searched | None = None,
) -> Starlette:
    """An ASGI application over a registry, which it closes when it ends.

    Args:
        registry: the models.
        settings: limits and manners; its host and port are the caller's business.
        metrics: counters that the registry's models report to.
        log: where requests are written to; nowhere by default.
        warm_up: of each of these kinds the first model is loaded, and has answered, before requests are taken; where
            the machine has no room for one, the gate's ``failure`` says why, and whoever runs this may end.
        token_table: what the token ids of requests stand for; None for the model's own.
        search: the database that ``/v1/search`` answers from; without one there is no such route.
    """
    metrics = metrics or Metrics()
    log = log or AccessLog("off")
    service = Service(registry, settings, metrics)
    gate = Gate(service, settings, metrics, log, token_table)
    gate.search = search
    metrics.count_models(registry)

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

    dialects = DIALECTS if search is None else (*DIALECTS, searching.endpoints(search))
    described = (*dialects, *((docs.endpoints(dialects, settings),) if settings.docs else ()), pages.PAGES)
    app = Starlette(
        lifespan=lifespan,
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origin_regex=pattern(settings.origins),
                allow_methods=["GET", "POST", "HEAD", "DELETE", "OPTIONS"],
                allow_headers=["*"],
                allow_private_network=True,
                expose_headers=["x-request-id", "retry-after", *TIMING_HEADERS],
                max_age=3600,
            )
        ],
    )
    app.router.redirect_slashes = False
    app.router.default = Routes([endpoint for endpoints in described for endpoint in endpoints], gate)
    app.state.gate = gate
    return app


async def _warm_up(gate: Gate, kinds: tuple[Kind, ...]) -> None:
    """Load the first models, so that the first request does not wait; then take requests.

    A file that cannot be loaded is said and is no reason to end: the others answer, and its own requests are told why.
    One that the machine has no room for is, for our own program; under another one it is the same as such a file.
    """
    for kind in kinds:
        try:
            timing = await gate.service.load(None, kind)
            gate.log.event("loaded", kind=kind, seconds=round(timing.load, 2))
        except EdgeEmbedError as error:
            gate.log.event("not loaded", kind=kind, error=str(error).replace("\n", "; "))
            if isinstance(error, EngineMemoryError):
                gate.failure = error
                break
        except Exception as error:
            gate.log.unexpected("warm-up", error)
    gate.ready = True
    if gate.failure is None:
        gate.log.event("ready")
        gate.announce()


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        await service.sweep()
