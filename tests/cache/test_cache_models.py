"""The cache as models and commands use it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edge_embed import Embedder
from edge_embed.cache import EmbeddingCache, ModelCache
from edge_embed.cli import main
from edge_embed.errors import (
    CacheFileError,
    EngineClosedError,
    NonFiniteError,
    exit_code,
)
from edge_embed.testing import FakeEngine, fake_embedder, fake_reranker
from tests.cache.rows import BASE
from tests.tiny_gguf import gguf_bytes, tiny_bert, tiny_reranker

# Through the models


def test_an_embedder_computes_what_it_has_not_seen(bert_path: Path, bert: Embedder, path: Path) -> None:
    """By any prompt that gives the same ids, for any size and precision; the cache's vectors are the computed ones."""
    texts = ["a cat", "the bank", "a cat", "bees"]
    with Embedder(bert_path, n_threads=1, cache=path) as model:
        first = model.embed(texts, prompt="query: ")
        assert (first.usage.n_texts, first.usage.n_computed, first.usage.n_cached) == (4, 3, 0)
    with Embedder(bert_path, n_threads=1, cache=path) as model:
        again = model.embed(["query: bees", "new", *texts[:2]], prompt="")
        assert (again.usage.n_computed, again.usage.n_cached) == (3, 1)
        assert again.usage.n_tokens_computed == again.usage.n_tokens - again.n_tokens[0]
        np.testing.assert_array_equal(again.vectors[0], first.vectors[3])
        small = model.embed(["a cat"], prompt="query: ", truncate_dim=8, precision="int8", normalize=False)
        assert small.usage.n_cached == 1
        wanted = bert.encode(["query: a cat"], truncate_dim=8, precision="int8", normalize=False)
        np.testing.assert_allclose(small.vectors.astype(int), wanted.astype(int), atol=1)


def test_what_changes_rows_does_not_share_them(bert_path: Path, path: Path, tmp_path: Path) -> None:
    """Pooling, determinism and other bytes of the model do not; a copy of the file elsewhere does."""
    cached = []
    (tmp_path / "copy.gguf").write_bytes(bert_path.read_bytes())
    (tmp_path / "other.gguf").write_bytes(gguf_bytes(*tiny_bert(seed=7)))
    options: list[dict[str, Any]] = [{}, {"pooling": "cls"}, {"deterministic": True}, {}]
    for model, more in [
        *((bert_path, o) for o in options),
        (tmp_path / "copy.gguf", {}),
        (tmp_path / "other.gguf", {}),
    ]:
        with Embedder(model, n_threads=1, cache=path, **more) as embedder:
            cached.append(embedder.embed(["a cat"]).usage.n_cached)
    assert cached == [0, 0, 0, 1, 1, 0]


def test_a_shared_cache_stays_open(bert_path: Path, cache: EmbeddingCache) -> None:
    """One object serves several models, and outlives each."""
    for expected in (0, 1):
        with Embedder(bert_path, n_threads=1, cache=cache) as embedder:
            assert embedder.embed(["a cat"]).usage.n_cached == expected
    assert cache.status().n_entries == 1


def test_windows_of_long_texts_are_cached_each(bert_path: Path, path: Path) -> None:
    long = " ".join(["a cat"] * 60)
    with Embedder(bert_path, n_threads=1, cache=path) as embedder:
        first = embedder.embed([long], truncate="chunk")
        again = embedder.embed([long], truncate="chunk")
    assert first.n_windows[0] > 1
    assert (again.usage.n_computed, again.usage.n_tokens_computed, again.usage.n_cached) == (0, 0, 1)
    np.testing.assert_array_equal(again.vectors, first.vectors)


def test_overflow_is_computed_and_reported_each_time(cache: EmbeddingCache) -> None:
    """The others' vectors are kept."""
    embedder = fake_embedder(FakeEngine(poison=3 + ord("~")))
    embedder.backend = replace(embedder.backend, cache=ModelCache(cache, BASE))
    for n_cached in (0, 2):
        with pytest.raises(NonFiniteError) as caught:
            embedder.embed(["a", "~", "b"])
        assert caught.value.indices == (1,)
        assert caught.value.partial.usage.n_cached == n_cached


def test_an_interrupted_call_keeps_what_it_computed(cache: EmbeddingCache) -> None:
    engine = FakeEngine(n_batch=8)
    embedder = fake_embedder(engine)
    embedder.backend = replace(embedder.backend, cache=ModelCache(cache, BASE))
    whole = engine.decode

    def fails_later(batch: Any, stop: Any = None) -> Any:
        if len(engine.batches) == 3:
            raise KeyboardInterrupt
        return whole(batch, stop)

    engine.decode = fails_later  # type: ignore[method-assign]
    texts = [f"text {i}" for i in range(6)]
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(texts)
    engine.decode = whole  # type: ignore[method-assign]
    result = embedder.embed(texts)
    assert (result.usage.n_cached, result.usage.n_computed) == (3, 3)
    np.testing.assert_array_equal(result.vectors, fake_embedder().encode(texts))


def test_a_reranker_computes_what_it_has_not_seen(cache: EmbeddingCache) -> None:
    """The same ids divided elsewhere are another pair."""
    reranker = fake_reranker()
    reranker.backend = replace(reranker.backend, cache=ModelCache(cache, {**BASE, "pooling": "rank"}))
    first = reranker.score([("q", "a"), ("q", "bb")])
    again = reranker.score([("q", "bb"), ("q", "ccc"), ("qb", "b")])
    assert (first.usage.n_cached, again.usage.n_cached, again.usage.n_computed) == (0, 1, 2)
    assert again.scores[0] == first.scores[1]


def test_a_foreign_file_is_an_error_before_anything_is_computed(bert_path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CacheFileError, match="not a cache"):
        Embedder(bert_path, n_threads=1, cache=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


# The command


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="edge-embed")


def test_embed_uses_the_cache_where_it_is_asked_to(
    bert_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an option or by the environment, in the folder of caches; `cache` shows and empties it."""
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path))
    embed = ["embed", "-m", bert_path, "--threads", "1", "a cat", "bees"]
    plain = command(*embed)
    assert plain.exit_code == 0, plain.stderr
    assert json.loads(command("cache", "--json").stdout)["entries"] == 0
    assert command(*embed, "--cache").stdout == command(*embed, "--cache").stdout == plain.stdout
    assert json.loads(command("cache", "--json").stdout)["entries"] == 2
    monkeypatch.setenv("EDGE_EMBED_CACHE_VECTORS", "1")
    assert command(*embed, "new").exit_code == 0
    assert command(*embed, "newer", "--no-cache").exit_code == 0
    assert "3 vectors" in command("cache").stdout
    assert "may grow to 5.00 GB" in command("cache", "limit", "5GB").stderr
    assert "0 vectors were removed" in command("cache", "trim", "1MB").stderr
    assert "3 vectors were removed" in command("cache", "clear").stderr
    shown = command("cache").stdout
    assert "nothing yet" in shown
    assert "5.00 GB" in shown


def test_rerank_uses_the_cache_in_both_stages(bert_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer, and a row for each text, the query and each pair."""
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path))
    (tmp_path / "reranker.gguf").write_bytes(gguf_bytes(*tiny_reranker()))
    rerank = [
        "rerank",
        "-m",
        tmp_path / "reranker.gguf",
        "--embedder",
        bert_path,
        "--threads",
        "1",
        "bees",
        "sun",
        "bus",
    ]
    plain = command(*rerank)
    assert plain.exit_code == 0, plain.stderr
    assert command(*rerank, "--cache").stdout == command(*rerank, "--cache").stdout == plain.stdout
    assert json.loads(command("cache", "--json").stdout)["entries"] == 3 + 2


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for action in ([], ["clear"], ["trim", "1MB"], ["limit", "1GB"]):
        result = command("cache", "--path", tmp_path / "notes.txt", *action)
        assert result.exit_code == exit_code(CacheFileError("x")) == 5
        assert "not a cache of edge-embed" in result.stderr
    assert command("cache", "limit", "1kB").exit_code == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_batch_that_ends_after_close_does_not_open_the_file_again(bert_path: Path, tmp_path: Path) -> None:
    embedder = Embedder(bert_path, n_threads=1, n_batch=8, cache=tmp_path / "cache.sqlite")
    engine: Any = embedder.backend.engine
    decode = engine.decode

    def closing(*arguments: Any) -> Any:
        rows = decode(*arguments)
        embedder.close()
        return rows

    engine.decode = closing
    with pytest.raises(EngineClosedError):
        embedder.embed(["the cat sat on the mat", "good morning world", "green tea"] * 3)
    (tmp_path / "cache.sqlite").unlink()
    with pytest.raises(EngineClosedError):
        embedder.embed(["the cat"])
    assert not list(tmp_path.iterdir())
    assert embedder.backend.cache is not None
    assert embedder.backend.cache.store._database is None
