"""An application on a port or a socket, until it is told to end."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from edge_embed.errors import ServerSettingsError
from edge_embed.server.settings import ServerSettings


def run(app: Starlette, settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted are answered first.

    Raises:
        ServerSettingsError: the address cannot be listened on.
    """
    listening = listen(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        lifespan="on",
        ws="none",
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
        if settings.uds is not None:
            Path(settings.uds).unlink(missing_ok=True)


def listen(settings: ServerSettings) -> socket.socket:
    """The socket that requests come in by. Raises ServerSettingsError where it cannot be had."""
    try:
        if settings.uds is not None:
            path = Path(settings.uds)
            if path.is_socket():
                path.unlink()
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            found.bind(str(path))
        else:
            info = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
            found = socket.socket(info[0], socket.SOCK_STREAM)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(info[4])
        found.listen(1024)
    except OSError as error:
        where = settings.uds or f"{settings.host}:{settings.port}"
        raise ServerSettingsError(
            f"cannot listen on {where}: {error.strerror or error}", hint="choose another --port, --host or --uds"
        ) from None
    return found
