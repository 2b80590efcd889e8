"""Connections that cost nothing but themselves: however slow, silent or many they are, they end, and others go on.

uvicorn's protocol waits for ever for the head of a request, and for an answer to be read. Here every connection says
what it waits for, one task looks at all of them once a second, and a request pays for this with two assignments.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from edge_embed.server.settings import ServerSettings

LOOK_SECONDS: Final = 1.0
_LONGEST_HEAD: Final = 64_000  # bytes
_REST_SECONDS: Final = 5.0  # for the rest of a body whose request was answered already
_OLD_SECONDS: Final = 1.0  # a connection that has been idle for so long may have to make room for a new one
_LINES: Final = {400: b"400 Bad Request", 431: b"431 Request Header Fields Too Large", 503: b"503 Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take; the ``ServerSettings`` of these names, and who is told of those that are ended."""

    max_connections: int
    header_timeout: float
    idle_timeout: float
    ended: Callable[[str], None]

    @classmethod
    def of(cls, settings: ServerSettings, ended: Callable[[str], None]) -> Limits:
        """Those of a server."""
        return cls(settings.max_connections, settings.header_timeout, settings.idle_timeout, ended)


class Connection(HttpToolsProtocol):
    """One connection of a client.

    Attributes:
        since: when what it waits for began, by the monotonic clock.
        in_head: whether part of a request's head is here.
        in_body: whether part of a request's body is still to come.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self.since = time.monotonic()
        self.in_head = self.in_body = False
        self._n_head = 0
        self._unread = 0  # bytes of answers that the client had not taken at the last look
        self._unread_since = self.since
        self._first = True

    # What happens on it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; where there are too many, one that does nothing goes, or this one."""
        super().connection_made(transport)
        if len(self.connections) <= self.limits.max_connections:
            return
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        idle = [one for one in others if one.is_idle and time.monotonic() - one.since > _OLD_SECONDS]
        if idle:
            min(idle, key=lambda one: one.since).end("crowded out")
        else:
            self.limits.ended("too many")
            self.refuse(503, "too many connections", "service_unavailable_error")

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.in_head:
            self._n_head += len(data)
            if self._n_head > _LONGEST_HEAD and not self.transport.is_closing():
                self.limits.ended("head too long")
                self.refuse(431, f"the head of the request has more than {_LONGEST_HEAD} bytes")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.in_head, self.in_body, self._n_head = True, False, 0
        if not self._first:
            self.since = time.monotonic()
        self._first = False  # the first one has had its time since the connection was made

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self.in_head, self.in_body = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is here."""
        self.in_body = False
        super().on_message_complete()
        if self.is_answered:
            self.since = time.monotonic()

    def on_response_complete(self) -> None:
        """It was answered."""
        super().on_response_complete()
        self.since = time.monotonic()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self.limits.ended("not HTTP")
        self.refuse(400, msg)

    def refuse(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        """Answer without any route, and close."""
        body = orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(head % (_LINES[status], len(body)) + retry + b"\r\n" + body)
        self.transport.close()

    # What it waits for

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered or read."""
        return not self.in_body and (self.is_new or self.is_answered)

    @property
    def is_new(self) -> bool:
        """Whether no request came on it yet."""
        return cast("RequestResponseCycle | None", self.cycle) is None

    @property
    def is_answered(self) -> bool:
        """Whether the last request that came was answered."""
        return not self.is_new and self.cycle.response_complete

    def look(self, now: float) -> None:
        """End the connection if it has waited too long for the client."""
        if self._is_stuck(now):
            self.end("does not read")
        elif self.transport.is_closing():
            return
        elif not self.is_new and not self.is_answered:
            return  # the server's turn; for a body that does not come the request itself has a limit
        elif self.in_body:
            if now - self.since > _REST_SECONDS:
                self.end("rest of a body")
        elif self.in_head or self.is_new:
            if now - self.since > self.limits.header_timeout:
                self.end("no head")
        elif now - self.since > self.limits.idle_timeout:
            self.end("idle")

    def _is_stuck(self, now: float) -> bool:
        """Whether the client has read nothing of its answer for a long time."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread != self._unread:
            self._unread, self._unread_since = unread, now
        return unread > 0 and now - self._unread_since > self.limits.idle_timeout

    def end(self, why: str) -> None:
        """Close it at once, whatever it was sent."""
        self.limits.ended(why)
        self.transport.abort()


async def watch(connections: set[Any]) -> None:
    """Look at connections, for ever."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        for connection in list(connections):
            cast(Connection, connection).look(now)
