"""The description of the interface as JSON, and Swagger UI over it from files of the package: no outside request."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final

import orjson

from edge_embed.server.endpoint import Call, Endpoint, Handler, Reply
from edge_embed.server.families import OPENAI
from edge_embed.server.openapi import describe
from edge_embed.server.settings import ServerSettings

_TYPES: Final = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Swagger UI draws its icons from data: addresses and writes styles into elements.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>edge-embed: the interface</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="interface"></div>
<noscript>This page needs JavaScript. The description itself is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START: Final = b"""SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#interface",
  deepLinking: true,
  validatorUrl: null,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
});
"""


def endpoints(dialects: Iterable[Sequence[Endpoint]], settings: ServerSettings) -> tuple[Endpoint, ...]:
    """The routes of the description. They are public: what they say is in the documentation as well."""
    description = orjson.dumps(describe(dialects, keyed=bool(settings.api_keys)))
    swagger = resources.files("edge_embed.server").joinpath("swagger")
    files = {
        f"/docs/{entry.name.removesuffix('.gz')}": entry.read_bytes()
        for entry in swagger.iterdir()
        if entry.name.endswith(".gz")
    }
    return (
        _endpoint("/openapi.json", _plain(description, "application/json"), "This description."),
        _endpoint("/docs", _plain(_PAGE, "text/html; charset=utf-8"), "This description for people."),
        _endpoint("/docs/start.js", _plain(_START, _TYPES["js"]), "Starts it."),
        *(
            _endpoint(path, _packed(content, _TYPES[path.rpartition(".")[2]]), "Swagger UI.")
            for path, content in sorted(files.items())
        ),
    )


def _endpoint(path: str, handler: Handler, summary: str) -> Endpoint:
    return Endpoint("GET", path, OPENAI, handler, summary, public=True)


def _plain(content: bytes, media_type: str) -> Handler:
    async def handler(_: None, __: Call) -> Reply:
        return Reply(content, headers=dict(_HEADERS), media_type=media_type)

    return handler


def _packed(content: bytes, media_type: str) -> Handler:
    """A file that is kept compressed, and sent so to those who take it."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def handler(_: None, call: Call) -> Reply:
        headers = {**_HEADERS, "ETag": etag, "Vary": "Accept-Encoding"}
        if call.headers.get("if-none-match") == etag:
            return Reply(b"", 304, headers, media_type)
        if "gzip" in call.headers.get("accept-encoding", ""):
            return Reply(content, headers={**headers, "Content-Encoding": "gzip"}, media_type=media_type)
        return Reply(gzip.decompress(content), headers=headers, media_type=media_type)

    return handler
