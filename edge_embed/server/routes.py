"""Which endpoint answers a path. Most are found in one look; a slash too many at the end is no matter."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers, QueryParams
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from edge_embed.errors import EdgeEmbedError, RouteNotFoundError, WrongMethodError
from edge_embed.server.endpoint import Answering, Call, Endpoint, Gate, refusal, send_reply
from edge_embed.server.families import OPENAI, Family

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_OTHER: Final = "other"  # in counters, so that nobody fills them with paths and methods of their own

Methods = dict[str, Answering]


class Routes:
    """All endpoints, as an ASGI application.

    Args:
        endpoints: what is answered; the first of two for the same path and method.
        gate: what they share.
    """

    def __init__(self, endpoints: Sequence[Endpoint], gate: Gate) -> None:
        self._gate = gate
        self._fixed: dict[str, Methods] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], Methods]] = {}
        self._families: dict[str, Family] = {}
        for endpoint in endpoints:
            methods = self._methods_of(endpoint.path)
            answering = Answering(endpoint, gate)
            for method in ("GET", "HEAD") if endpoint.method == "GET" else (endpoint.method,):
                methods.setdefault(method, answering)
            self._families.setdefault(_first(endpoint.path), endpoint.family)

    def _methods_of(self, path: str) -> Methods:
        if "{" not in path:
            return self._fixed.setdefault(path, {})
        return self._patterns.setdefault(path, (compile_path(path)[0], {}))[1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        methods = self._fixed.get(path) or self._fixed.get(path.rstrip("/") or "/")
        if methods is None:
            methods, scope["path_params"] = self._matched(path)
        found = methods.get(scope["method"])
        if found is not None:
            await found(scope, receive, send)
        else:
            await self._refuse(scope, send, methods)

    def _matched(self, path: str) -> tuple[Methods, dict[str, str]]:
        for pattern, methods in self._patterns.values():
            if found := pattern.match(path):
                return methods, found.groupdict()
        return {}, {}

    async def _refuse(self, scope: Scope, send: Send, methods: Methods) -> None:
        """404, or 405 where other methods are answered, in the shape of the family that lives there."""
        call = Call(
            gate=self._gate,
            headers=Headers(scope=scope),
            query=QueryParams(),
            path_params={},
            request_id=secrets.token_hex(8),
            started=time.perf_counter(),
        )
        path = scope["path"][:100]
        error: EdgeEmbedError
        if methods:
            error = WrongMethodError(f"{path} is for {' and '.join(methods)}")
        else:
            error = RouteNotFoundError(f"nothing answers at {path}", hint="/docs lists what there is")
        reply = refusal(self._families.get(_first(path), OPENAI), error)
        if methods:
            reply.headers["Allow"] = ", ".join(methods)
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        self._gate.metrics.replied(_OTHER, method, reply.status, 0.0, type(error).__name__)
        self._gate.log.no_route(scope, call, reply.status)
        await send_reply(send, scope, call, reply, reply.encoded(), last=self._gate.ending)


def _first(path: str) -> str:
    """The first part of a path, which tells whose clients ask."""
    return path.strip("/").partition("/")[0]
