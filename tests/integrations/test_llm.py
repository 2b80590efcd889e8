"""The plug for llm: its plugin, as the command finds it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import llm
import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.errors import ModelNotFoundError
from edge_embed.integrations.llm import EdgeEmbeddingModel
from tests.integrations.conftest import FAKE, TEXTS


def run(tmp_path: Path, *arguments: str, stdin: str = "") -> str:
    """The command ``llm`` with our plugin and a database of its own."""
    environment = {"LLM_LOAD_PLUGINS": "edge-embed", "LLM_USER_PATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments], input=stdin, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_vectors_are_the_librarys_in_order(embedder: Embedder) -> None:
    model = EdgeEmbeddingModel(FAKE)
    assert isinstance(model, llm.EmbeddingModel)
    assert list(model.embed_multi(TEXTS, batch_size=5)) == embedder.encode(TEXTS).tolist()
    assert model.embed("x") == embedder.encode("x").tolist()
    assert list(model.embed_multi([])) == []


def test_bytes_and_unknown_models_are_refused(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="binary"):
        EdgeEmbeddingModel(FAKE).embed(b"x")
    with pytest.raises(ModelNotFoundError):
        EdgeEmbeddingModel("none.gguf").embed("x")


def test_the_plugin_is_found_and_loads_nothing_heavy() -> None:
    (found,) = (point for point in entry_points(group="llm") if point.name == "edge-embed")
    code = f"import llm, sys; before = set(sys.modules); import {found.value}; print(set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"'numpy'", "'llama_cpp'"} & set(loaded.strip("{}\n").split(", ")) == set()


def test_the_command_embeds_stores_and_finds(tmp_path: Path) -> None:
    assert "edge-embed" in run(tmp_path, "embed-models")
    found = json.loads(run(tmp_path, "embed", "-m", "edge-embed", "-c", TEXTS[0]))
    with Embedder() as original:
        assert np.array_equal(np.array(found, dtype=np.float32), original.encode(TEXTS[0]))
    lines = "\n".join(json.dumps({"id": str(i), "text": text}) for i, text in enumerate(TEXTS[:3]))
    run(tmp_path, "embed-multi", "notes", "-m", "edge-embed", "--store", "-", "--format", "nl", stdin=lines)
    best = json.loads(run(tmp_path, "similar", "notes", "-c", "Where is the kitten?", "-n", "1"))
    assert (best["id"], best["content"]) == ("0", TEXTS[0])


def test_models_that_were_pulled_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_embed.integrations import llm as plugin

    stored = [type("Stored", (), {"name": name}) for name in ("b", "a", "b")]
    monkeypatch.setattr("edge_embed.store.stored", lambda: stored)
    names: list[str] = []
    plugin.register_embedding_models(lambda model: names.append(model.model_id))
    assert names == ["edge-embed", "edge-embed/a", "edge-embed/b"]
