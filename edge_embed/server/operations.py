"""Health and counters."""

from __future__ import annotations

from typing import Final

from edge_embed.errors import NotReadyError
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import OPENAI


async def health(_: None, call: Call) -> Reply:
    """503 until a model answers, and again once the server is ending."""
    if not call.gate.ready or call.gate.ending:
        raise NotReadyError(f"the server is {'ending' if call.gate.ending else 'starting'}")
    return Reply({"status": "ok"})


async def metrics(_: None, call: Call) -> Reply:
    """Counters, for Prometheus."""
    return Reply(call.gate.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


ENDPOINTS: Final = (
    Endpoint("GET", "/health", OPENAI, health, "Whether requests are answered.", None, dict[str, str], public=True),
    Endpoint(
        "GET",
        "/metrics",
        OPENAI,
        metrics,
        "Counters for Prometheus. They name the models, so a key is needed where there are keys.",
        None,
        str,
        public=True,
        keyed=True,
        media_type="text/plain",
    ),
)
