"""What the tests of learned projections share: a projection of the tiny model, texts, copies of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_embed.projection import Projection
from tests.tiny_gguf import Metadata, gguf_bytes, tiny_bert

WIDTH = 32  # of the tiny model
WORDS = "the a cat sat on mat good morning world green tea".split()
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:4]]


def some_projection(
    rows: int = WIDTH, *, center: bool = False, width: int = WIDTH, pooling: Any = "mean"
) -> Projection:
    random = np.random.default_rng(5)
    turned, _ = np.linalg.qr(random.standard_normal((width, width)))
    mean = random.standard_normal(width) * 0.05 if center else np.zeros(width)
    return Projection(turned[:rows].astype(np.float32), mean.astype(np.float32), pooling, 1000)


def model(tmp_path: Path, name: str = "other.gguf", *, seed: int = 0, more: Metadata | None = None) -> Path:
    metadata, tensors = tiny_bert(seed=seed)
    path = tmp_path / name
    path.write_bytes(gguf_bytes({**metadata, **(more or {})}, tensors))
    return path
