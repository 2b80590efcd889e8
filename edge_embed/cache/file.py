"""The SQLite file: opened with care for what others may have put there, and the few statements that files share."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_embed.errors import CacheFileError
from edge_embed.progress import BytesProgress

OPEN_SECONDS: Final = 5.0  # how long opening, and the last write, wait for other processes

_MAGIC: Final = b"SQLite format 3\x00"
_APPLICATION_ID: Final = 0x65654361  # "eeCa", at byte 68 of the file
_SCHEMA: Final = 1
_TABLES: Final = """
CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX entries_by_use ON entries (used);
CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE files (path TEXT PRIMARY KEY, identity TEXT NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""  # the rows lie apart, so that a time of use is written without the row
_LONG_BYTES: Final = 256 << 20  # digests of larger files show progress


def sha256_of(path: Path) -> str:
    """sha256 of a file, hexadecimal; progress on stderr where it is large. Raises OSError."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as file, BytesProgress("reading the model", enabled=total >= _LONG_BYTES) as progress:
        done = 0
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            progress(done, max(total, done), path.name)
    return digest.hexdigest()


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """A transaction that may write from its start, so that it is never refused half-way."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk may have ended it already
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
        raise


def used_bytes(database: sqlite3.Connection) -> int:
    """Bytes of the pages in use; free ones are used again before the file grows."""
    pages, free, size = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def check_head(path: Path) -> None:
    """Look at a file before SQLite does: it may repair or lock what is not ours. Raises CacheFileError, OSError."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        head = file.read(100)
    named = int.from_bytes(head[68:72], "big")  # 0 while ours is still in the log
    if len(head) < 100 or head[:16] != _MAGIC or named not in (0, _APPLICATION_ID):
        raise foreign(path)


def prepare(database: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or see that they are the expected ones."""
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            if not recognize(database, path):
                database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before anything is written
                database.execute("PRAGMA journal_mode = WAL").fetchall()
                with transaction(database):
                    if not recognize(database, path):
                        for statement in _TABLES.split(";\n"):
                            database.execute(statement)
                        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                        database.execute(f"PRAGMA user_version = {_SCHEMA}")
            break
        except sqlite3.OperationalError as error:
            # Two that create it at once: SQLite gives up at once where waiting could be a deadlock
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    database.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may lose the last entries, not the file
    database.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    database.execute("SELECT count(*) FROM (SELECT 1 FROM entries JOIN rows USING (id) LIMIT 1)").fetchone()


def recognize(database: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; CacheFileError where they are not ours, or of another version."""
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]  # first: both appear at one instant
    named = database.execute("PRAGMA application_id").fetchone()[0]
    if named == 0 and tables == 0:
        return False
    if named != _APPLICATION_ID:
        raise foreign(path)
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != _SCHEMA:
        raise CacheFileError(
            f"the cache {path} has version {version}, and this edge-embed knows {_SCHEMA}",
            hint="name another file, or delete this one: everything in it can be computed again",
        )
    return True


def foreign(path: Path) -> CacheFileError:
    """The error for a file that somebody else made."""
    return CacheFileError(
        f"{path} is not a cache of edge-embed, and it is left as it is",
        hint="name another file for the cache, or move this one away",
    )


def damaged(path: Path, error: Exception) -> CacheFileError:
    """The error for a file that was a cache."""
    return CacheFileError(
        f"the cache {path} is damaged: {error}", hint="delete the file: everything in it can be computed again"
    )
