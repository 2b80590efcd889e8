"""The page at ``/`` for people, its files, and the figures that it shows.

The files are read once, when the server starts, and each has a route of its own: no path from a request reaches the
file system. The page may load and ask nothing but this server, and runs no script that is not one of these files.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from edge_embed import __version__
from edge_embed.registry import Loaded, Served
from edge_embed.server.describing import described
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import OPENAI

_MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",  # kept by browsers, and asked about each time: an upgrade shows at once
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HTML: Final = re.compile(r"\btext/html\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _File:
    """One file of the page: what is sent, as what, and the name of exactly these bytes."""

    content: bytes
    media_type: str
    etag: str

    def reply(self, call: Call, **headers: str) -> Reply:
        """The file, or 304 where the browser has it."""
        known = [tag.strip().removeprefix("W/") for tag in call.headers.get("if-none-match", "").split(",")]
        headers = {**_HEADERS, "ETag": self.etag, **headers}
        if self.etag in known or "*" in known:
            return Reply(b"", 304, headers, self.media_type)
        return Reply(self.content, 200, headers, self.media_type)

    async def __call__(self, _: None, call: Call) -> Reply:
        """The file."""
        return self.reply(call)


def _files() -> dict[str, _File]:
    found = {}
    for entry in resources.files("edge_embed.server").joinpath("ui").iterdir():
        media_type = _MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            found[entry.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


_FILES: Final = _files()


async def page(_: None, call: Call) -> Reply:
    """The page for browsers. Programs that look whether an Ollama is here are told that, in its words."""
    if _HTML.search(call.headers.get("accept", "")):
        return _FILES["index.html"].reply(call, Vary="Accept")
    return Reply(b"Ollama is running", headers={"Vary": "Accept"}, media_type="text/plain; charset=utf-8")


async def status(_: None, call: Call) -> Reply:
    """What the server does at this moment. Rates are the differences of ``totals`` over those of ``uptime_seconds``.

    It is answered also while models are loaded and while no more requests are taken, since that is when one looks.
    Raises AccessDeniedError: unlike other public routes it names the models, so it needs the key.
    """
    gate = call.gate
    gate.check_access(call.headers)
    registry = gate.service.registry
    loaded = {one.served: one for one in registry.loaded()}
    depths = [one.scheduler.depth for one in loaded.values()]
    texts, tokens = gate.metrics.totals()
    return Reply(
        {
            "version": __version__,
            "state": "ending" if gate.ending else "ready" if gate.ready else "starting",
            "uptime_seconds": time.monotonic() - gate.started,
            "totals": {"texts": texts, "tokens": tokens},
            "requests": {"under_way": gate.under_way},
            "queue": {
                "requests": sum(depth.requests for depth in depths),
                "texts": sum(depth.texts for depth in depths),
                "tokens": sum(depth.tokens for depth in depths),
            },
            "memory": {
                "models_bytes": sum(one.memory_bytes for one in loaded.values()),
                "limit_bytes": registry.memory_limit,
            },
            "search": None if gate.search is None else gate.search.described(),
            "models": [_model(served, loaded.get(served), call) for served in registry.served],
        }
    )


def _model(served: Served, loaded: Loaded | None, call: Call) -> dict[str, Any]:
    expires = loaded.expires_in if loaded is not None else math.inf
    return {
        "id": served.name,
        **described(served, call.service.registry),
        "memory_bytes": loaded.memory_bytes if loaded is not None else None,
        "expires_in_seconds": max(0.0, expires) if math.isfinite(expires) else None,
    }


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/api/status", OPENAI, status, "Load, queue, memory and models.", None, dict[str, Any], public=True
    ),
)
PAGES: Final = (
    Endpoint("GET", "/", OPENAI, page, "The page, or the words `Ollama is running`.", public=True),
    *(
        Endpoint("GET", f"/ui/{name}", OPENAI, file, "A file of the page.", public=True)
        for name, file in sorted(_FILES.items())
        if name != "index.html"
    ),
)
"""Served like all routes, and no part of the interface's description."""
