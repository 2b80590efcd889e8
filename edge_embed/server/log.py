"""A line for each request, plain or JSON, on stderr. Never a text, a key or a vector."""

from __future__ import annotations

import sys
import traceback
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any, Literal

import orjson

if TYPE_CHECKING:
    from starlette.types import Scope

    from edge_embed.errors import EdgeEmbedError
    from edge_embed.server.endpoint import Call, Endpoint


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
        client = scope.get("client")
        self._write(
            {
                "event": "request",
                "id": call.request_id,
                "client": client[0] if client else None,
                "method": scope["method"],
                "route": endpoint.path,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "model": call.model,
                "tokens": call.n_tokens,
                "error": type(error).__name__ if error is not None else None,
            }
        )

    def event(self, event: str, **fields: Any) -> None:
        """Something else happened: a model was loaded, the server is ready, or ends."""
        if self.form != "off":
            self._write({"event": event, **fields})

    def unexpected(self, request_id: str, error: Exception) -> None:
        """A bug, with its place in the source; the values of variables are not written."""
        self._write({"event": "bug", "id": request_id, "error": type(error).__name__})
        print("".join(traceback.format_tb(error.__traceback__)), file=self._stream or sys.stderr, flush=True)

    def _write(self, fields: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc)
        known = {name: value for name, value in fields.items() if value is not None}
        if self.form == "json":
            line = orjson.dumps({"time": now.isoformat(timespec="milliseconds"), **known}, default=str).decode()
        else:
            event = known.pop("event")
            said = " ".join(f"{name}={value}" for name, value in known.items())
            line = f"{now.astimezone():%H:%M:%S} {event} {said}"
        print(line, file=self._stream or sys.stderr, flush=True)
