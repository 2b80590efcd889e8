"""A cache without choices, and what two tiny models say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import ModelInfo


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def info(bert_path: Path) -> ModelInfo:
    return read_model_info(read_header(bert_path))


@pytest.fixture
def decoder(qwen3_path: Path) -> ModelInfo:
    return read_model_info(read_header(qwen3_path))
