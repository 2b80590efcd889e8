"""The architectures that are run, what tells them apart for the runtime, and how large their models may be."""

from __future__ import annotations

from typing import Final

from edge_embed.types import Pooling

# llama.h, enum llama_pooling_type
POOLING_BY_ID: Final[dict[int, Pooling]] = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}

# A family is listed here once a test compares it with the original model. The value is the pooling where all members
# of the family agree on one. Encoders: attention looks both ways, no KV cache.
ENCODERS: Final[dict[str, Pooling | None]] = {
    "bert": None,  # MiniLM is mean, bge is cls; XLM-RoBERTa, too, goes by this name
    "modern-bert": None,
    "nomic-bert": None,
    "gemma-embedding": "mean",
}
# Decoders: attention looks back, unless the file says otherwise, over a KV cache.
DECODERS: Final[dict[str, Pooling | None]] = {"qwen2": None, "qwen3": "last", "llama": None}

# No model comes near these; a file that goes beyond them is broken.
MAX_LAYERS, MAX_WIDTH, MAX_CONTEXT = 1024, 1 << 20, 1 << 24
