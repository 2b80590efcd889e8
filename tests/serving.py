"""Servers for tests: real ones, on a port of this machine, over models in memory or over ``FakeEngine``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette

from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.registry import FOREVER, Model, Registry, Served
from edge_embed.scheduler import Scheduler
from edge_embed.server.app import create_app
from edge_embed.server.endpoint import Gate
from edge_embed.server.metrics import Metrics
from edge_embed.server.opening import ModelOpener
from edge_embed.server.running import listen, server_of
from edge_embed.server.settings import ModelOptions, ServerSettings
from edge_embed.server.start import build, served_models
from edge_embed.testing import FakeEngine, fake_embedder, fake_reranker

QUIET = ServerSettings(port=0, log="off")
"""Any free port, no lines on stderr."""
FAKES = ("fake-embed", "fake-reranker")
_PATIENCE = 60.0  # seconds until a server that does not start is a failure


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        gate: what its routes share.
        opened: of a server over fakes, the names of the models in the order in which they were loaded.
        engines: of such a server, the engine of each name that was made last.
    """

    url: str
    gate: Gate
    opened: list[str] = field(default_factory=list)
    engines: dict[str, FakeEngine] = field(default_factory=dict)

    @property
    def registry(self) -> Registry:
        return self.gate.service.registry


@contextmanager
def running(app: Starlette, settings: ServerSettings = QUIET) -> Iterator[str]:
    """An application on a port, in a thread, until the block ends; its address."""
    listening = listen(settings)
    server = server_of(app, settings)
    server.farewell = 0.0
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="test-server")
    thread.start()
    try:
        until = time.monotonic() + _PATIENCE
        while not app.state.gate.ready:
            assert thread.is_alive(), "the server ended while it was starting"
            assert time.monotonic() < until, "the server did not start"
            threading.Event().wait(0.005)
        yield "http://{}:{}".format(*listening.getsockname()[:2])
    finally:
        server.should_exit = True
        thread.join(_PATIENCE)
        listening.close()
    assert not thread.is_alive(), "the server did not end"


@contextmanager
def real_server(*models: str, settings: ServerSettings = QUIET, **options: object) -> Iterator[Running]:
    """Models as ``edge-embed serve`` runs them, the bundled one by default; one thread each."""
    served = served_models(models or (DEFAULT_MODEL,))
    app = build(served, settings, ModelOptions(n_threads=1, **options))  # type: ignore[arg-type]
    with running(app, settings) as url:
        yield Running(url, app.state.gate)


@contextmanager
def fake_server(
    names: Sequence[str] = FAKES,
    *,
    settings: ServerSettings = QUIET,
    memory_limit: int | None = None,
    keep_alive: float = FOREVER,
    max_tokens: int = 512,
    engine: FakeEngine | None = None,
) -> Iterator[Running]:
    """Models over ``FakeEngine``: rerankers where the name says so. Each takes 100 bytes of ``memory_limit``.

    Their files, which lists of models look into, are the bundled model's. ``engine`` is the engine of every embedding
    model, instead of a new one each time that one is loaded.
    """
    metrics = Metrics()
    opened: list[str] = []
    engines: dict[str, FakeEngine] = {}
    schedulers = ModelOpener(ModelOptions(), settings, metrics)

    def open_fake(served: Served) -> tuple[Model, Scheduler]:
        opened.append(served.name)
        is_reranker = "rerank" in served.name
        engines[served.name] = FakeEngine(n_embd=1) if is_reranker else engine or FakeEngine()
        model: Model = (fake_reranker if is_reranker else fake_embedder)(engines[served.name], max_tokens=max_tokens)
        return model, schedulers.scheduler(served, model)

    app = create_app(
        Registry(
            [fake_served(name, max_tokens=max_tokens) for name in names], open_fake,
            memory_of=lambda _: 100, memory_limit=memory_limit, keep_alive=keep_alive,
        ),
        settings,
        metrics,
    )  # fmt: skip
    with running(app, settings) as url:
        yield Running(url, app.state.gate, opened, engines)


def fake_served(name: str, *, max_tokens: int = 512) -> Served:
    """A model with the bundled one's file, and with what ``fake_embedder`` or ``fake_reranker`` say of themselves."""
    served = Served(name, DEFAULT_MODEL)
    with (fake_reranker if "rerank" in name else fake_embedder)(max_tokens=max_tokens) as model:
        vars(served)["info"] = model.info
    return served
