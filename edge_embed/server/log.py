"""A line for each request, plain or JSON, on stderr. Never a text, a key or a vector."""

from __future__ import annotations

import re
import sys
import traceback
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import orjson

if TYPE_CHECKING:
    from starlette.types import Scope

    from edge_embed.errors import EdgeEmbedError
    from edge_embed.server.endpoint import Call, Endpoint


_WORD: Final = re.compile(r"[\w.:/@+()-]+", re.ASCII)


class AccessLog:
    """Writes what happens.

    Args:
        form: ``plain`` for people, ``json`` for programs, ``off`` for errors alone.
        stream: where to; stderr by default.
    """

    def __init__(self, form: Literal["plain", "json", "off"] = "plain", stream: IO[str] | None = None) -> None:
        self.form, self._stream = form, stream

    def request(
        self, scope: Scope, call: Call, endpoint: Endpoint, status: int, seconds: float, error: EdgeEmbedError | None
    ) -> None:
        """A request was answered. Checks of health and counters are left out where nothing is wrong with them."""
        if self.form == "off" or (endpoint.public and status < 400):
            return
        self._write(
            {
                "event": "request",
                "id": call.request_id,
                "client": _client(scope),
                "method": scope["method"],
                "route": endpoint.path,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "model": call.model,
                "tokens": call.n_tokens,
                "error": type(error).__name__ if error is not None else None,
            }
        )

    def no_route(self, scope: Scope, call: Call, status: int) -> None:
        """Something was asked for that is not here. The path is written, since it is what one looks for; no query."""
        if self.form != "off":
            self._write(
                {
                    "event": "request",
                    "id": call.request_id,
                    "client": _client(scope),
                    "method": scope["method"][:20],
                    "path": scope["path"][:100],
                    "status": status,
                }
            )

    def event(self, event: str, **fields: Any) -> None:
        """Something else happened: a model was loaded, the server is ready, or ends."""
        if self.form != "off":
            self._write({"event": event, **fields})

    def unexpected(self, request_id: str, error: Exception) -> None:
        """A bug, with its places in the source. Neither values nor the exception's message, which may hold some."""
        places = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        self._write({"event": "bug", "id": request_id, "error": type(error).__name__, "places": places})

    def _write(self, fields: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc)
        known = {name: value for name, value in fields.items() if value is not None}
        if self.form == "json":
            line = orjson.dumps({"time": now.isoformat(timespec="milliseconds"), **known}, default=str).decode()
        else:
            event = known.pop("event")
            line = f"{now.astimezone():%H:%M:%S} {event}"
            line += "".join(f" {name}={_plain(value)}" for name, value in known.items())
        print(line, file=self._stream or sys.stderr, flush=True)


def _client(scope: Scope) -> str | None:
    client = scope.get("client")
    return str(client[0]) if client else None


def _plain(value: Any) -> str:
    """A value as one word of a line: quoted where it has spaces or anything that is no plain letter."""
    if isinstance(value, list):
        return "".join(f"\n    {_plain(one)}" for one in value)
    text = str(value)
    return text if _WORD.fullmatch(text) else orjson.dumps(text).decode()
