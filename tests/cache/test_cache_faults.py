"""The cache on a bad day, and in company: damaged files, full disks, other processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from edge_embed.cache import CacheWarning, EmbeddingCache, store
from edge_embed.errors import (
    CacheFileError,
)
from tests.cache.rows import key, numbers, row

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
