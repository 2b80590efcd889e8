"""What many tests share: a cache of their own, repeatable properties, three tiny models."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from edge_embed import Embedder, Reranker
from edge_embed.testing import FakeEngine, fake_embedder
from tests.hub_server import HubServer
from tests.tiny_gguf import gguf_bytes, tiny_bert, tiny_decoder, tiny_reranker

# Threads that wait for each other sleep: where other programs are busy, too, those that spin keep everybody waiting.
# Read by the OpenMP library when a model is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts the tests in the background lets them, and every process that they start, ignore interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine; no deadline, because a busy machine is not a failure.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache and models stay untouched, and so does what Hugging Face's programs keep; no token is used."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_EMBED_CACHE", str(folder))
        patch.setenv("EDGE_EMBED_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "EDGE_EMBED_DOWNLOAD"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="session")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece encoder of 32 dimensions, 64 positions, mean pooling."""
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    path.write_bytes(gguf_bytes(*tiny_bert()))
    return path


@pytest.fixture(scope="session")
def qwen3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of 32 dimensions, 1,024 positions, last-token pooling."""
    path = tmp_path_factory.mktemp("qwen3") / "qwen3.gguf"
    path.write_bytes(gguf_bytes(*tiny_decoder()))
    return path


@pytest.fixture(scope="session")
def bert(bert_path: Path) -> Iterator[Embedder]:
    """An Embedder over ``bert_path``. One thread: on a busy machine two of them wait for each other, layer by layer."""
    with Embedder(bert_path, n_threads=1) as embedder:
        yield embedder


@pytest.fixture(scope="session")
def qwen3(qwen3_path: Path) -> Iterator[Embedder]:
    """An Embedder over ``qwen3_path``."""
    with Embedder(qwen3_path, n_threads=1) as embedder:
        yield embedder


@pytest.fixture(scope="session")
def reranker_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal reranker of yes and no, with a template."""
    path = tmp_path_factory.mktemp("reranker") / "reranker.gguf"
    path.write_bytes(gguf_bytes(*tiny_reranker()))
    return path


@pytest.fixture(scope="session")
def reranker(reranker_path: Path) -> Iterator[Reranker]:
    """A Reranker over ``reranker_path``."""
    with Reranker(reranker_path, n_threads=1) as opened:
        yield opened


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Commands that load a model get this FakeEngine, which survives each of them."""
    engine = FakeEngine()
    monkeypatch.setattr(engine, "close", lambda: None)
    monkeypatch.setattr("edge_embed.embedder.Embedder", lambda *_, **__: fake_embedder(engine))
    return engine


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that everything goes to, with an empty cache and an empty models folder; waiting takes no time."""
    from huggingface_hub import constants

    with HubServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("EDGE_EMBED_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield running
