"""The cache: what shares an entry and what must not, and how it stays small."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.cache import EmbeddingCache, ModelCache, store
from edge_embed.errors import (
    InvalidOptionError,
    ModelFileError,
    ModelNotFoundError,
)
from edge_embed.types import Encoding
from tests.cache.rows import BASE, ROW, encoding, key, numbers, row

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
