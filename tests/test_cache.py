"""The cache: what shares an entry and what must not, how it stays small, and what it does on a bad day."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edge_embed import Embedder
from edge_embed.cache import CacheWarning, EmbeddingCache, ModelCache, store
from edge_embed.cli import main
from edge_embed.errors import (
    CacheFileError,
    EngineClosedError,
    InvalidOptionError,
    ModelFileError,
    ModelNotFoundError,
    NonFiniteError,
    exit_code,
)
from edge_embed.testing import FakeEngine, fake_embedder, fake_reranker
from edge_embed.types import Encoding
from tests.tiny_gguf import gguf_bytes, tiny_bert, tiny_reranker

WIDTH = 256
ROW = 4 * WIDTH


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def row(number: int, size: int = ROW) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


def numbers(cache: EmbeddingCache, upto: int) -> list[int]:
    """Which of the rows 0..upto-1 are there, each with its own bytes."""
    found = cache.get([key(i) for i in range(upto)])
    assert all(data == row(int.from_bytes(k, "big"), len(data)) for k, data in found.items())
    return sorted(int.from_bytes(k, "big") for k in found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[EmbeddingCache]:
    with EmbeddingCache(path) as cache:
        yield cache


def encoding(*ids: int, n_first: int = 0) -> Encoding:
    return Encoding(np.array(ids, dtype=np.int32), len(ids), n_first)


# What is kept


def test_rows_come_back_also_in_another_process(cache: EmbeddingCache, path: Path) -> None:
    cache.put({key(i): row(i) for i in range(1500)})
    assert numbers(cache, 2000) == list(range(1500))
    code = (
        "import sys; from edge_embed.cache import EmbeddingCache\n"
        "with EmbeddingCache(sys.argv[1]) as c: print(len(c.get([i.to_bytes(32, 'big') for i in range(2000)])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "1500\n"


def test_nothing_is_made_before_the_first_use(path: Path) -> None:
    with EmbeddingCache(path) as cache:
        assert cache.status().n_entries == 0
        assert cache.trim() == 0
    assert not path.parent.exists()


def test_the_default_place_is_the_cache_folder(own_cache: Path) -> None:
    assert EmbeddingCache().path == own_cache / "embeddings.sqlite"


def test_status_counts(cache: EmbeddingCache, path: Path) -> None:
    cache.put({key(i): row(i) for i in range(10)})
    status = cache.status()
    assert (status.path, status.n_entries, status.max_bytes) == (path, 10, store.DEFAULT_MAX_BYTES)
    assert 10 * ROW < status.size_bytes < 200_000


def test_a_closed_cache_opens_again(cache: EmbeddingCache) -> None:
    cache.put({key(1): row(1)})
    cache.close()
    assert numbers(cache, 3) == [1]


# Keys

BASE: dict[str, Any] = {"model": "a" * 64, "lora": None, "pooling": "mean", "causal": False}


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "b" * 64},
        {"pooling": "cls"},
        {"causal": True},
        {"lora": ["c" * 64, 1.0]},
        {"lora": ["c" * 64, 0.5]},
        {"deterministic": True},
    ],
)
def test_other_settings_are_other_keys(cache: EmbeddingCache, changed: dict[str, Any]) -> None:
    ours = ModelCache(cache, BASE)
    assert ours.key(encoding(1, 5, 2), 4) == ModelCache(cache, dict(reversed(BASE.items()))).key(encoding(1, 5, 2), 4)
    assert ours.key(encoding(1, 5, 2), 4) != ModelCache(cache, {**BASE, **changed}).key(encoding(1, 5, 2), 4)


def test_scales_of_an_adapter_are_other_keys(cache: EmbeddingCache) -> None:
    scales = [ModelCache(cache, {**BASE, "lora": ["c" * 64, scale]}) for scale in (1.0, 0.5, 0.25)]
    assert len({cache.key(encoding(1), 4) for cache in scales}) == 3


def test_ids_and_where_a_pair_is_divided_are_in_the_key(cache: EmbeddingCache) -> None:
    ours = ModelCache(cache, BASE)
    different = [
        encoding(1, 2),
        encoding(2, 1),
        encoding(1, 2, 2),
        encoding(1),
        encoding(1, 2, n_first=1),
        encoding(258),
    ]
    assert len({ours.key(one, 4) for one in different}) == len(different)
    assert ours.key(encoding(1, 2), 4) != ours.key(encoding(1, 2), 5)
    long = Encoding(np.array([1, 2], dtype=np.int64), 2)  # type: ignore[arg-type]
    cut = Encoding(np.array([1, 2], dtype=np.int32), 900)
    assert ours.key(long, 4) == ours.key(encoding(1, 2), 4) == ours.key(cut, 4)


def test_a_lookup_computes_only_what_is_missing(cache: EmbeddingCache) -> None:
    ours = ModelCache(cache, BASE)
    encodings = [encoding(i) for i in range(6)]
    rows = np.arange(18, dtype=np.float32).reshape(6, 3) / 7
    first = ours.lookup(encodings[:4], 3)
    assert (first.missing, first.n_cached) == ([0, 1, 2, 3], 0)
    first.keep([2, 0], rows[[2, 0]])
    first.keep([3, 1], rows[[3, 1]])
    np.testing.assert_array_equal(first.rows, rows[:4])
    second = ours.lookup(encodings[::-1], 3)
    assert (second.missing, second.n_cached) == ([0, 1], 4)
    np.testing.assert_array_equal(second.rows[2:], rows[3::-1])


def test_rows_that_overflowed_are_not_kept(cache: EmbeddingCache) -> None:
    lookup = ModelCache(cache, BASE).lookup([encoding(i) for i in range(3)], 2)
    lookup.keep([0, 1, 2], np.array([[1, 2], [np.nan, 1], [1, np.inf]], dtype=np.float32))
    assert np.isnan(lookup.rows[1, 0])
    assert ModelCache(cache, BASE).lookup([encoding(i) for i in range(3)], 2).missing == [1, 2]


@pytest.mark.parametrize("wrong", [3, 1.5, b"x", ["a"]])
def test_other_values_than_a_cache_are_refused(wrong: Any, bert: Any) -> None:
    with pytest.raises(InvalidOptionError, match="path"):
        ModelCache.open(wrong, bert.info)


def test_no_cache_is_none(bert: Any) -> None:
    assert ModelCache.open(None, bert.info) is None
    assert ModelCache.open(False, bert.info) is None


# Files


def aged(path: Path, seconds: float = 60) -> Path:
    """The file, last changed a while ago."""
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_a_digest_is_computed_once(cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"weights")
    model = aged(tmp_path / "m.gguf")
    digest = cache.digest_of(model)
    assert digest == hashlib.sha256(b"weights").hexdigest()
    read: list[Path] = []
    monkeypatch.setattr(store, "sha256_of", lambda path: read.append(path) or "new")
    (tmp_path / "link.gguf").symlink_to(model)
    assert cache.digest_of(model) == cache.digest_of(tmp_path / "link.gguf") == digest
    assert read == []
    model.write_bytes(b"WEIGHTS")  # the same size and, below, the same time of change
    aged(model)
    assert cache.digest_of(model) == "new"


def test_a_file_that_was_just_written_is_read_again(
    cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a tick of the clock it may change and keep its time of change."""
    (tmp_path / "m.gguf").write_bytes(b"weights")
    cache.digest_of(tmp_path / "m.gguf")
    monkeypatch.setattr(store, "sha256_of", lambda _: "new")
    assert cache.digest_of(tmp_path / "m.gguf") == "new"


def test_a_file_that_changes_meanwhile_is_refused(
    cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    monkeypatch.setattr(store, "sha256_of", lambda path: path.write_bytes(b"more weights"))
    with pytest.raises(ModelFileError, match="changed"):
        cache.digest_of(model)
    with pytest.raises(ModelNotFoundError):
        cache.digest_of(tmp_path / "none")
    with pytest.raises(ModelFileError, match="cannot be read"):
        cache.digest_of(tmp_path)


# Size


def test_it_stays_below_its_limit(path: Path) -> None:
    """Whatever is put in, the file and not just the count; and it holds a good part of what fits."""
    with EmbeddingCache(path, max_bytes=1_000_000) as cache:
        for start in range(0, 5000, 100):
            cache.put({key(i): row(i) for i in range(start, start + 100)})
            assert path.stat().st_size <= 1_000_000
        assert cache.status().n_entries > 500
        assert 4999 in numbers(cache, 5000)


def test_what_was_used_last_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by the clock, a use counts, the oldest go first."""
    now = [1000]
    monkeypatch.setattr(store, "_now", lambda: now[0])
    with EmbeddingCache(path, max_bytes=1_000_000) as cache:
        cache.put({key(i): row(i) for i in range(300)})
        now[0] += 1000
        assert numbers(cache, 100) == list(range(100))
        now[0] += 1000
        for i in range(1000, 1400):
            cache.put({key(i): row(i)})
        left = numbers(cache, 300)
        assert set(range(100)) <= set(left)
        assert len(left) < 300


def test_more_than_fits_is_not_kept_and_no_error(path: Path) -> None:
    with EmbeddingCache(path, max_bytes=1_000_000) as cache:
        cache.put({key(i): row(i, 400_000) for i in range(4)})
        assert path.stat().st_size <= 1_000_000
        assert len(numbers(cache, 4)) == 1


def test_a_stored_limit_counts_for_all_who_name_none(path: Path) -> None:
    with EmbeddingCache(path) as cache, EmbeddingCache(path) as other, EmbeddingCache(path, max_bytes=2_000_000) as own:
        other.put({key(i): row(i) for i in range(3000)})
        cache.set_limit(1_000_000)
        assert path.stat().st_size <= 1_000_000
        assert other.status().max_bytes == 1_000_000
        assert own.status().max_bytes == 2_000_000


def test_trimming_and_clearing_shrink_the_file(cache: EmbeddingCache, path: Path) -> None:
    cache.put({key(i): row(i) for i in range(3000)})
    cache.trim(1_500_000)
    assert 500_000 < path.stat().st_size <= 1_500_000
    left = cache.status().n_entries
    assert cache.trim() == left > 0
    assert path.stat().st_size < 100_000
    assert cache.status().n_entries == 0
    cache.put({key(1): row(1)})
    assert numbers(cache, 2) == [1]


@pytest.mark.parametrize("limit", [0, 999_999, -1, True, "1GB", 2e9])
def test_limits_that_make_no_sense_are_refused(path: Path, limit: Any) -> None:
    with pytest.raises(InvalidOptionError, match="at most"):
        EmbeddingCache(path, max_bytes=limit)


# Bad days


def other_database(path: Path) -> None:
    database = sqlite3.connect(path)
    with database:
        database.execute("CREATE TABLE mine (x)")
    database.close()


FOREIGN = {
    "text": lambda path: path.write_text("my notes\n"),
    "long text": lambda path: path.write_text("my notes\n" * 1000),
    "another database": other_database,
    "a truncated database": lambda path: path.write_bytes(b"SQLite format 3\x00"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.sqlite"
    FOREIGN[kind](path)
    before = path.read_bytes()
    with EmbeddingCache(path) as cache:
        for use in (lambda: cache.get([key(1)]), cache.status, cache.trim):
            with pytest.raises(CacheFileError) as caught:
                use()
            assert str(path) in caught.value.message
            assert caught.value.hint
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_refused(cache: EmbeddingCache, path: Path) -> None:
    cache.put({key(i): row(i) for i in range(100)})
    cache.close()
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 200] = b"\xff" * 200
    path.write_bytes(data)
    with EmbeddingCache(path) as again, pytest.raises(CacheFileError, match="damaged"):
        again.get([key(1)])
    assert path.read_bytes() == data


def test_a_cache_of_another_version_is_refused(cache: EmbeddingCache, path: Path) -> None:
    cache.put({key(1): row(1)})
    cache.close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with EmbeddingCache(path) as again, pytest.raises(CacheFileError, match="version 99"):
        again.get([key(1)])


def test_a_row_with_a_flipped_bit_is_computed_again(cache: EmbeddingCache, path: Path) -> None:
    """And written over."""
    cache.put({key(i): row(i) for i in range(3)})
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE rows SET data = ? WHERE id = 2", (b"\x01" + row(1)[1:],))
    database.close()
    assert numbers(cache, 3) == [0, 2]
    cache.put({key(1): row(1)})
    assert numbers(cache, 3) == [0, 1, 2]


def test_damage_in_the_midst_of_work_does_not_end_it(cache: EmbeddingCache) -> None:
    cache.put({key(1): row(1)})

    class Broken:
        def execute(self, *_: object) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        def close(self) -> None: ...

    cache._database.close()  # type: ignore[union-attr]
    cache._database = Broken()  # type: ignore[assignment]
    with pytest.warns(CacheWarning, match="damaged"):
        assert cache.get([key(1)]) == {}
    cache.put({key(2): row(2)})  # no second warning
    assert cache.get([key(2)]) == {}


def test_a_full_disk_is_a_warning_once(cache: EmbeddingCache, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is still read; after a while writing is tried again."""
    cache.put({key(1): row(1)})
    assert cache._database is not None
    pages = cache._database.execute("PRAGMA page_count").fetchone()[0]
    cache._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.warns(CacheWarning, match="full"):
        cache.put({key(i): row(i) for i in range(2, 100)})
    cache.put({key(i): row(i) for i in range(200, 300)})
    assert numbers(cache, 300) == [1]
    cache._database.execute("PRAGMA max_page_count = 1000000")
    later = time.monotonic() + 61
    monkeypatch.setattr(store.time, "monotonic", lambda: later)
    cache.put({key(i): row(i) for i in range(200, 300)})
    assert numbers(cache, 300) == [1, *range(200, 300)]


def test_a_file_that_cannot_be_written_is_still_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddingCache(path) as cache:
        cache.put({key(1): row(1)})
    monkeypatch.setattr(
        EmbeddingCache,
        "_connect",
        lambda self: sqlite3.connect(
            f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        ),
    )
    with EmbeddingCache(path) as cache:
        assert numbers(cache, 3) == [1]
        with pytest.warns(CacheWarning, match="readonly"):
            cache.put({key(2): row(2)})
        assert numbers(cache, 3) == [1]
        with pytest.raises(CacheFileError, match="readonly"):
            cache.trim()


def test_a_place_that_cannot_be_used_is_a_warning_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with EmbeddingCache(tmp_path / "file" / "c.sqlite") as cache:
        with pytest.warns(CacheWarning, match="cannot be opened"):
            assert cache.get([key(1)]) == {}
        cache.put({key(1): row(1)})
        assert cache.get([key(1)]) == {}
    with EmbeddingCache(tmp_path) as folder, pytest.warns(CacheWarning):
        assert folder.get([key(1)]) == {}


def test_another_process_that_writes_for_long_does_not_stop_work(
    cache: EmbeddingCache, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows wait in memory, are found there, and are written once that is possible."""
    monkeypatch.setattr(store, "_BUSY_SECONDS", 0.0)
    cache.put({key(0): row(0)})
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put({key(1): row(1)})
    assert numbers(cache, 3) == [0, 1]
    other.execute("COMMIT")
    other.close()
    cache.put({key(2): row(2)})
    with EmbeddingCache(path) as second:
        assert numbers(second, 3) == [0, 1, 2]


# Company

WRITER = """
import sys
from edge_embed.cache import EmbeddingCache
first, path = int(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
with EmbeddingCache(path) as cache:
    for start in range(first, first + 1000, 50):
        cache.put({i.to_bytes(32, "big"): i.to_bytes(4, "big") * 64 for i in range(start, start + 50)})
        assert len(cache.get([i.to_bytes(32, "big") for i in range(first, start + 50)])) == start + 50 - first
"""


def test_processes_that_begin_at_once_share_a_file(path: Path) -> None:
    """They create it together, and write the same and other rows."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(first), str(path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first in (0, 0, 500, 3000)
    ]
    outcomes = [(writer.communicate("go\n")[1], writer.returncode) for writer in writers]
    assert outcomes == [("", 0)] * 4
    with EmbeddingCache(path) as cache:
        assert numbers(cache, 5000) == [*range(1500), *range(3000, 4000)]


def test_threads_share_an_object(cache: EmbeddingCache) -> None:
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for i in range(first, first + 100):
                cache.put({key(i): row(i)})
                assert cache.get([key(i)]) == {key(i): row(i)}
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert numbers(cache, 800) == list(range(800))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_opens_its_own(path: Path) -> None:
    """Also where another thread of the parent held the lock."""
    code = f"""
import os
from edge_embed.cache import EmbeddingCache
cache = EmbeddingCache({str(path)!r})
cache.put({{b"a" * 32: b"row1"}})
cache._lock.acquire()
child = os.fork()
if child == 0:
    cache.put({{b"b" * 32: b"row2"}})
    cache.close()
    os._exit(0 if EmbeddingCache(cache.path).get([b"a" * 32, b"b" * 32]) else 1)
cache._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert len(cache.get([b"a" * 32, b"b" * 32])) == 2
cache.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_killed_writer_leaves_a_sound_file(path: Path) -> None:
    """What was put before is there; the next one goes on writing."""
    code = WRITER.replace("with EmbeddingCache(path) as cache:", "cache = EmbeddingCache(path)\nif True:") + (
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL if os.name != 'nt' else signal.SIGTERM)\n"
    )
    subprocess.run([sys.executable, "-c", code, "0", str(path)], input="go\n", text=True, check=False)
    with EmbeddingCache(path) as cache:
        assert numbers(cache, 1000) == list(range(1000))
        cache.put({key(1000): row(1000, 256)})
        assert cache.status().n_entries == 1001
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


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
