"""An application on a port or a socket, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from edge_embed.engine.devices import default_threads
from edge_embed.engine.loading import share_arenas
from edge_embed.errors import ServerSettingsError
from edge_embed.server.connections import Connection, Limits, watch
from edge_embed.server.endpoint import Gate
from edge_embed.server.log import AccessLog
from edge_embed.server.settings import ServerSettings

_LAST_BYTES: Final = 5.0  # seconds for clients to read answers, after the last one was written
_STUCK: Final = 20.0  # seconds beyond the limit of draining after which the process ends, whatever still runs
_BACKLOG: Final = 1024
_SPARE_FILES: Final = 128  # beside connections: models, caches, libraries


def run(app: Starlette, settings: ServerSettings, listening: socket.socket | None = None) -> None:
    """Serve until SIGTERM or SIGINT: then no more requests are taken, and those that were accepted are answered.

    A second signal ends the process at once.

    Args:
        app: what ``create_app`` made.
        settings: the same that it was made with.
        listening: what ``listen`` gave; None to listen now.

    Raises:
        ServerSettingsError: the address cannot be listened on.
        EngineMemoryError: the machine has no room for the first model.
    """
    listening = listening or listen(settings)
    _allow_files(settings.max_connections + _SPARE_FILES)
    share_arenas(default_threads())
    try:
        with warnings_to(app.state.gate.log):
            server_of(app, settings).run(sockets=[listening])
    finally:
        close(listening, settings)
    if app.state.gate.failure is not None:
        raise app.state.gate.failure


def server_of(app: Starlette, settings: ServerSettings) -> Server:
    """uvicorn with connections that end, and an end that answers."""
    gate: Gate = app.state.gate
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, limits=Limits.of(settings, gate.metrics.connection_ended)),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=10**6,  # connections.watch ends idle ones
        backlog=_BACKLOG,
        lifespan="on",
        ws="none",
    )
    return Server(config, gate)


class Server(uvicorn.Server):
    """Ends in three steps: 503 to new requests, answers to accepted ones, then models and connections are closed.

    Attributes:
        farewell: seconds in which connections are still taken, and after that those that are there still told 503.
            Clients that connect or send at the moment of the signal would otherwise find their connection reset.
    """

    farewell = 0.5

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self.gate = gate

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections; requests are answered once ``gate.ready``."""
        await super().startup(sockets)
        self._watching = asyncio.create_task(watch(self.server_state.connections))
        self.gate.metrics.count_connections(self.server_state.connections)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end, by a signal or because the server cannot start."""
        return await super().on_tick(counter) or self.gate.failure is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's own signature)
        """A signal: the first one is a request, the second an order."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        patience = threading.Timer(self.gate.settings.drain_seconds + _STUCK, os._exit, (1,))
        patience.daemon = True
        patience.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, within the time that there is for it."""
        gate = self.gate
        gate.ending = True
        gate.log.event("ending", requests=gate.under_way)
        notify_systemd("STOPPING=1")
        farewell = min(self.farewell, gate.settings.drain_seconds / 2)
        deadline = time.monotonic() + gate.settings.drain_seconds
        await asyncio.sleep(farewell)
        await self._listen_no_more(sockets or [])
        last_word = time.monotonic() + farewell
        while time.monotonic() < (deadline if gate.under_way else last_word):
            await asyncio.sleep(0.02)
        if gate.under_way:
            gate.log.event("given up", requests=gate.under_way)
            for task in self.server_state.tasks:
                task.cancel()  # it answers that the server ended
        self.config.timeout_graceful_shutdown = _LAST_BYTES  # type: ignore[assignment]  # seconds all the same
        await super().shutdown(sockets)
        self._watching.cancel()
        gate.log.event("ended")

    async def _listen_no_more(self, sockets: Sequence[socket.socket]) -> None:
        """Close the listening sockets. Connections that the system has made, and nobody taken, are taken first: they
        would be reset."""
        loop = asyncio.get_running_loop()
        spare = [listening.dup() for listening in sockets]
        for server in self.servers:
            server.close()
        for listening in spare:
            listening.setblocking(False)
            waiting = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting.append(listening.accept()[0])
            listening.close()
            for connection in waiting:
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        found: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return found


class _Warnings(logging.Handler):
    """uvicorn's warnings in the server's own log, without the values that an exception's message may have."""

    def __init__(self, log: AccessLog) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        self.log.event("warning", said=record.getMessage().strip(), error=kind.__name__ if kind else None)


@contextlib.contextmanager
def warnings_to(log: AccessLog) -> Any:
    """While it lasts, uvicorn writes to the server's log."""
    logger = logging.getLogger("uvicorn")
    handler, propagate = _Warnings(log), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def listen(settings: ServerSettings) -> socket.socket:
    """The socket that requests come in by. Raises ServerSettingsError where it cannot be had."""
    try:
        found = _listen_unix(Path(settings.uds)) if settings.uds is not None else _listen_tcp(settings)
    except OSError as error:
        where = settings.uds or f"{settings.host}:{settings.port}"
        raise ServerSettingsError(
            f"cannot listen on {where}: {error.strerror or error}", hint="choose another --port, --host or --uds"
        ) from None
    return found


def _listen_tcp(settings: ServerSettings) -> socket.socket:
    info = socket.getaddrinfo(settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(info[0], socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(info[4])
        found.listen(_BACKLOG)
    except OSError:
        found.close()
        raise
    return found


def _listen_unix(path: Path) -> socket.socket:
    """A socket file for the user and the group. One that a server left behind, which nobody answers, is replaced."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise OSError(f"{path} is there, and is no socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trying:
                trying.settimeout(2.0)
                with contextlib.suppress(ConnectionRefusedError):
                    trying.connect(str(path))
                    raise OSError("another server answers there")
            path.unlink()
        found.bind(str(path))
        path.chmod(0o660)  # before anybody can connect
        found.listen(_BACKLOG)
    except OSError:
        found.close()
        raise
    return found


def close(listening: socket.socket, settings: ServerSettings) -> None:
    """Listen no more, and leave no file behind."""
    listening.close()
    if settings.uds is not None:
        Path(settings.uds).unlink(missing_ok=True)


def address(listening: socket.socket) -> str:
    """Where a server is: ``http://HOST:PORT``, with the real port, or the path of its socket."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return str(name)
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def notify_systemd(state: str) -> None:
    """Tell systemd, where it started this process (``Type=notify``), how far it is."""
    where = os.environ.get("NOTIFY_SOCKET")
    if not where:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
        notifying.connect(f"\0{where[1:]}" if where.startswith("@") else where)
        notifying.sendall(state.encode())


def _allow_files(n: int) -> None:
    """As many open files as connections may need, where the system lets us have them."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        most = n if hard == resource.RLIM_INFINITY else min(n, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
