"""edge-embed: embeddings on your own machine, from one quantized GGUF, offline.

``from edge_embed import Embedder; Embedder().encode(["some text"])`` is the whole of it.
Importing this package loads no native library; the engine is loaded on first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Cancellation",
    "EdgeEmbedError",
    "EmbedResult",
    "Embedder",
    "EmbeddingCache",
    "RankedDocument",
    "RerankResult",
    "Reranker",
    "Usage",
    "__version__",
]

# In a checkout, convert/ and models/ lie beside this folder and not in it (an installed package has them inside).
# Python prefers the folder that it is started in, so without this line it would find half a package there.
if not os.path.isdir(os.path.join(__path__[0], "convert")):  # noqa: PTH112, PTH118 - pathlib would cost import time
    __path__.append(os.path.dirname(__path__[0]))  # noqa: PTH120

if TYPE_CHECKING:
    from edge_embed.cache import EmbeddingCache
    from edge_embed.cancellation import Cancellation
    from edge_embed.embedder import Embedder
    from edge_embed.errors import EdgeEmbedError
    from edge_embed.reranker import Reranker
    from edge_embed.types import EmbedResult, RankedDocument, RerankResult, Usage

_HOMES = {
    "Cancellation": "edge_embed.cancellation",
    "EdgeEmbedError": "edge_embed.errors",
    "EmbedResult": "edge_embed.types",
    "Embedder": "edge_embed.embedder",
    "EmbeddingCache": "edge_embed.cache",
    "RankedDocument": "edge_embed.types",
    "RerankResult": "edge_embed.types",
    "Reranker": "edge_embed.reranker",
    "Usage": "edge_embed.types",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edge_embed' has no attribute {name!r}")
