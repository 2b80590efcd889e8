"""A bounded store of rows of bytes by their keys, and of files' digests.

It is a convenience. Where it cannot be opened or written (no room, no permission), a warning says so once and
vectors are computed as without it. Only a file that is something else, or damaged, is an error: it is never emptied or
replaced unasked.

Any number of threads and processes may share a file, on a local disk (SQLite's write-ahead log needs shared memory).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from edge_embed.cache import file
from edge_embed.cache.file import OPEN_SECONDS, sha256_of, transaction, used_bytes
from edge_embed.errors import CacheFileError, InvalidOptionError, ModelFileError, ModelNotFoundError
from edge_embed.paths import cache_dir

FILE_NAME: Final = "embeddings.sqlite"
DEFAULT_MAX_BYTES: Final = 1_000_000_000
MIN_MAX_BYTES: Final = 1_000_000
_WRITE_SECONDS: Final = 1.0  # how long a write in the midst of a job waits for other processes
_RETRY_SECONDS: Final = 60.0  # how long nothing is written after a write has failed
_BUSY_SECONDS: Final = 5.0  # how long rows are kept in memory after others held the file for too long
_PENDING_BYTES: Final = 64 << 20  # and how many of them at most
_TOUCHED_KEYS: Final = 4096  # times of use that wait for a write of rows
_TOUCH_SECONDS = 60  # times of use are that exact: a hit is not worth a write each time
_RACY_NS: Final = 2_000_000_000  # a file that changes again within a clock tick keeps its time of change
_SLACK_BYTES: Final = 64 << 10  # pages that tables and indexes take beside what entries cost
_KEYS_AT_ONCE: Final = 500  # SQLite takes 999 parameters everywhere

T = TypeVar("T")


class CacheWarning(RuntimeWarning):
    """The cache cannot be used or written; vectors are computed as without it."""


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What a cache holds.

    Attributes:
        path: its file.
        n_entries: how many vectors there are.
        size_bytes: what the file and its log take on the disk.
        max_bytes: what the file may grow to.
    """

    path: Path
    n_entries: int
    size_bytes: int
    max_bytes: int


class EmbeddingCache:
    """The store: keys and rows of bytes, the least recently used ones removed where it grows too large.

    Any number of threads may use one. Nothing is created or read before the first use.

    Args:
        path: its file; by default ``embeddings.sqlite`` in the cache folder.
        max_bytes: what this object lets the file grow to, at least 1,000,000 (its log takes some megabytes beside
            that); by default the limit that ``set_limit`` stored in the file, else 1 GB.

    Raises:
        InvalidOptionError: a limit that is too small, or a path that is none.
    """

    def __init__(self, path: str | Path | None = None, *, max_bytes: int | None = None) -> None:
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise InvalidOptionError(f"the cache's path is {path!r}", hint="give a file name")
        self.path = cache_dir() / FILE_NAME if path is None else Path(path).expanduser()
        self._max_bytes = None if max_bytes is None else _checked_limit(max_bytes)
        self._database: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._pending: dict[bytes, bytes] = {}
        self._touched: dict[bytes, None] = {}
        self._damaged: set[bytes] = set()
        self._silent_until = self._busy_until = 0.0
        self._broken = self._warned = False

    # Rows

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The rows of those keys that are here. Where the file cannot be read: none, and a warning once.

        Raises:
            CacheFileError: the file is damaged, or not a cache, as it is opened.
        """

        def read(database: sqlite3.Connection) -> dict[bytes, bytes]:
            found = {key: self._pending[key] for key in keys if key in self._pending}
            now = _now()
            for part in _parts([key for key in keys if key not in found]):
                marks = ",".join("?" * len(part))
                rows = database.execute(
                    f"SELECT key, used, crc, data FROM entries JOIN rows USING (id) WHERE key IN ({marks})", part
                )
                for key, used, crc, data in rows:
                    if _checksum(key, data) != crc:  # a bad disk: computed again, and written over
                        self._damaged.add(key)
                        continue
                    found[key] = data
                    if now - used >= _TOUCH_SECONDS:
                        self._touched[key] = None
            return found

        nothing: dict[bytes, bytes] = {}
        found = nothing if self._broken else self._forgiving(read, nothing)
        if len(self._touched) >= _TOUCHED_KEYS:
            self.flush()
        return found

    def put(self, rows: dict[bytes, bytes]) -> None:
        """Keep rows: written at once, or a little later where others are writing for long."""
        with self._exclusive():
            self._pending.update(rows)
            if time.monotonic() >= self._busy_until:
                self.flush()

    def flush(self, *, wait: float = _WRITE_SECONDS) -> None:
        """Write rows that are still in memory, and times of use; ``wait``: how many seconds for other writers."""
        with self._exclusive():
            if not self._pending and not self._touched and not self._damaged:
                return
            if self._hopeless():
                self._forget()
                return

            def write(database: sqlite3.Connection) -> bool:
                database.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
                try:
                    with transaction(database):
                        self._write(database)
                finally:
                    database.execute(f"PRAGMA busy_timeout = {int(OPEN_SECONDS * 1000)}")
                self._forget()
                return True

            if not self._forgiving(write, False):
                self._busy_until = 0.0 if self._hopeless() else time.monotonic() + _BUSY_SECONDS
                if self._hopeless() or sum(map(len, self._pending.values())) > _PENDING_BYTES:
                    self._forget()

    def _write(self, database: sqlite3.Connection) -> None:
        now = _now()
        database.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in self._touched])
        for key in self._damaged:
            for (row,) in database.execute("SELECT id FROM entries WHERE key = ?", (key,)).fetchall():
                _delete(database, [row])
        fresh = dict(self._pending)
        for part in _parts(list(fresh)):
            marks = ",".join("?" * len(part))
            for (key,) in database.execute(f"SELECT key FROM entries WHERE key IN ({marks})", part):
                del fresh[key]  # another process was faster
        limit = self._limit(database) - _SLACK_BYTES
        room = _make_room(database, limit, sum(_cost(data) for data in fresh.values()), len(fresh))
        for key, data in fresh.items():
            room -= _cost(data)
            if room < 0:
                return
            row = database.execute("INSERT INTO rows (data) VALUES (?)", (data,)).lastrowid
            database.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (row, key, now, _checksum(key, data)))

    def _hopeless(self) -> bool:
        """Whether writing has failed, and not because others were writing."""
        return self._broken or time.monotonic() < self._silent_until

    def _forget(self) -> None:
        self._pending.clear()
        self._touched.clear()
        self._damaged.clear()

    # Files

    def digest_of(self, path: str | Path) -> str:
        """sha256 of a file, hexadecimal: read once, then remembered for as long as the file stays as it is.

        Raises:
            ModelNotFoundError, ModelFileError: it cannot be read, or changes meanwhile.
        """
        whole = Path(path).resolve()
        try:
            identity = _identity(whole)

            def look(database: sqlite3.Connection) -> str | None:
                found = database.execute(
                    "SELECT sha256 FROM files WHERE path = ? AND identity = ?", (str(whole), identity)
                ).fetchone()
                return None if found is None else str(found[0])

            known = None if self._broken else self._forgiving(look, None)
            if known is not None:
                return known
            started = time.time_ns()
            digest = sha256_of(whole)
            if _identity(whole) != identity:
                raise ModelFileError(f"{whole} changed while it was read", hint="wait until it is written, then again")
            if started - whole.stat().st_mtime_ns < _RACY_NS:
                return digest
        except FileNotFoundError:
            raise ModelNotFoundError(f"{path} is no file") from None
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error

        def remember(database: sqlite3.Connection) -> None:
            with transaction(database):
                database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (str(whole), identity, digest))

        if not self._broken:
            self._forgiving(remember, None)
        return digest

    # Upkeep

    def status(self) -> CacheStatus:
        """What there is; a file that does not exist holds nothing.

        Raises:
            CacheFileError: it cannot be read.
        """

        def read(database: sqlite3.Connection) -> tuple[int, int]:
            count = database.execute("SELECT count(*) FROM entries").fetchone()[0]
            return int(count), self._limit(database)

        limit = DEFAULT_MAX_BYTES if self._max_bytes is None else self._max_bytes
        n_entries, limit = self._strict(read) if self.path.exists() else (0, limit)
        on_disk = [self.path.with_name(self.path.name + end) for end in ("", "-wal")]
        return CacheStatus(self.path, n_entries, sum(p.stat().st_size for p in on_disk if p.exists()), limit)

    def set_limit(self, max_bytes: int) -> None:
        """Store what the file may grow to, for everybody who names no other limit, and trim it to that.

        Raises:
            CacheFileError: it cannot be written.
            InvalidOptionError: less than 1,000,000.
        """
        limit = _checked_limit(max_bytes)

        def write(database: sqlite3.Connection) -> None:
            with transaction(database):
                database.execute("INSERT OR REPLACE INTO settings VALUES ('max_bytes', ?)", (limit,))

        self._strict(write)
        self.trim(limit)

    def trim(self, max_bytes: int = 0) -> int:
        """Remove what was not used for longest, until the file takes at most that much; how many entries went.

        In short steps, so that other processes go on meanwhile. 0 leaves an empty cache.

        Raises:
            CacheFileError: it cannot be written.
        """
        self.flush()

        def remove(database: sqlite3.Connection) -> int:
            removed, left = 0, database.execute("SELECT count(*) FROM entries").fetchone()[0]
            while left > 0 and (used := used_bytes(database)) > max_bytes:
                share = left * (used - max_bytes) // used if max_bytes else left
                with transaction(database):
                    removed += (gone := _delete_oldest(database, min(max(share, 1), 1000)))
                left = left - gone if gone else 0
            while database.execute("PRAGMA freelist_count").fetchone()[0]:
                before = database.execute("PRAGMA page_count").fetchone()[0]
                database.execute("PRAGMA incremental_vacuum(2000)").fetchall()
                if database.execute("PRAGMA page_count").fetchone()[0] >= before:
                    break
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return removed

        return self._strict(remove) if self.path.exists() else 0

    def close(self) -> None:
        """Write what is left and close the file; a later use opens it again."""
        with self._exclusive():
            self.flush(wait=OPEN_SECONDS)
            if self._database is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._database.close()
                self._database = None

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EmbeddingCache({str(self.path)!r})"

    # The file

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One thread at a time. A forked child begins anew: neither a connection nor a lock may be carried over."""
        if self._pid != os.getpid():
            _LEFT_TO_PARENTS.append(self._database)  # closing it here would be a use of it
            self._database, self._lock, self._pid = None, threading.RLock(), os.getpid()
            self._forget()
        with self._lock:
            yield

    def _forgiving(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """What the action returns; where the file cannot be used now, ``otherwise``, with a warning the first time."""
        with self._exclusive():
            opened = self._database is not None
            if not opened and time.monotonic() < self._silent_until:
                return otherwise
            try:
                return action(self._open())
            except CacheFileError:
                raise
            except sqlite3.OperationalError as error:
                if opened and "locked" in str(error):
                    return otherwise  # another process writes: what is pending stays so
                self._silent_until = time.monotonic() + _RETRY_SECONDS
                self._warn(f"the cache {self.path} cannot be used now ({error}): vectors are computed, and not kept")
            except OSError as error:
                self._silent_until = time.monotonic() + _RETRY_SECONDS
                self._warn(f"the cache {self.path} cannot be opened ({error}): vectors are computed, and not kept")
            except sqlite3.DatabaseError as error:
                self._broken = True  # it was sound when it was opened: work that is under way goes on
                self._warn(f"the cache {self.path} is damaged ({error}): it is not used any more; delete the file")
            return otherwise

    def _strict(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """What the action returns; CacheFileError where the file cannot be used."""
        with self._exclusive():
            try:
                return action(self._open())
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    hint = "let other programs finish with it" if "locked" in str(error) else "see its disk and folder"
                    raise CacheFileError(f"the cache {self.path} cannot be used: {error}", hint=hint) from error
                raise file.damaged(self.path, error) from error
            except OSError as error:
                raise CacheFileError(f"the cache {self.path} cannot be opened: {error.strerror or error}") from error

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, CacheWarning, stacklevel=2)

    def _open(self) -> sqlite3.Connection:
        """The connection, made on first use.

        Raises:
            CacheFileError: the file is something else, or damaged.
            sqlite3.OperationalError, OSError: it cannot be used now.
        """
        if self._database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file.check_head(self.path)
            database = self._connect()
            try:
                file.prepare(database, self.path)
            except BaseException as error:
                database.close()
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                    raise file.damaged(self.path, error) from error
                raise
            self._database = database
        return self._database

    def _connect(self) -> sqlite3.Connection:
        # Autocommit, so that transactions are where they are written; the lock of this object serves all threads
        return sqlite3.connect(self.path, timeout=OPEN_SECONDS, isolation_level=None, check_same_thread=False)

    def _limit(self, database: sqlite3.Connection) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        found = database.execute("SELECT value FROM settings WHERE name = 'max_bytes'").fetchone()
        return DEFAULT_MAX_BYTES if found is None else int(found[0])


_LEFT_TO_PARENTS: list[object] = []


def _checked_limit(max_bytes: object) -> int:
    if type(max_bytes) is not int or max_bytes < MIN_MAX_BYTES:
        raise InvalidOptionError(
            f"a cache of at most {max_bytes!r} bytes", hint=f"give an integer of at least {MIN_MAX_BYTES}"
        )
    return max_bytes


def _identity(path: Path) -> str:
    """What a changed file does not keep; the time of the last change to its entry finds what restores the other."""
    stat = path.stat()
    return json.dumps([stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])


def _now() -> int:
    return int(time.time())


def _checksum(key: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key))


def _cost(data: bytes) -> int:
    """Bytes of the file that an entry takes: rows share pages of 4 KiB badly where they are large."""
    return len(data) + len(data) // 4 + 200


def _parts(keys: list[bytes]) -> Iterator[list[bytes]]:
    return (keys[start : start + _KEYS_AT_ONCE] for start in range(0, len(keys), _KEYS_AT_ONCE))


def _make_room(database: sqlite3.Connection, limit: int, needed: int, n_entries: int) -> int:
    """Bytes below the limit, once the oldest entries had to go; a bounded number of them, so that nobody waits long."""
    for _ in range(8):
        room = limit - used_bytes(database)
        if room >= needed:
            break
        count = -(-(needed - room) * n_entries // needed)  # as many as are alike in size; a page is free when all are
        if not _delete_oldest(database, min(max(count, 16), 4096)):
            break
    return limit - used_bytes(database)


def _delete_oldest(database: sqlite3.Connection, count: int) -> int:
    found = database.execute("SELECT id FROM entries ORDER BY used, id LIMIT ?", (count,)).fetchall()
    _delete(database, [row for (row,) in found])
    return len(found)


def _delete(database: sqlite3.Connection, ids: list[int]) -> None:
    for table in ("rows", "entries"):
        database.executemany(f"DELETE FROM {table} WHERE id = ?", [(row,) for row in ids])
