"""LanceDB as the store: a table of chunks with their vectors and full text, and one of files.

Each change of a table is one commit: whatever ends the process, it happened or it did not. Between the two tables the
order of changes keeps one promise: while a file's record is there, so are all its rows, and no others. Rows without a
record are what an interrupted run had done; the next one takes them over, or removes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from edge_embed.errors import DatabaseFileError, DatabaseMissingError, InvalidOptionError
from edge_embed.search.record import from_json, to_json
from edge_embed.search.types import Chunk, FileRecord, Record
from edge_embed.types import Float32Array

_RECORD: Final = b"edge_embed.search"
_CHUNKS, _FILES, _LOCK = "chunks", "files", "writing.lock"
_PATHS_AT_ONCE: Final = 200  # in one expression
_OLD: Final = timedelta(minutes=1)  # versions of a table that no search reads any more
# From so many rows on, short vectors are also kept as bytes, which are compared in half the time. All partitions are
# looked into: only the rounding may lose something, and full vectors order what is found.
_MANY, _PARTITIONS = 50_000, 100
_COLUMNS: Final = ("path", "kind", "heading", "text", "body", "line", "page", "ordinal")


class Database:
    """A search database: a folder. Any number of processes may read it, one at a time may write.

    Args:
        path: the folder.
        record: what it is made with, if it is to be made where it is not there yet.

    Raises:
        DatabaseMissingError: it is not there, and no record is given.
        DatabaseFileError: it is something else, damaged, or of another version.
        InvalidOptionError: the packages of the extra ``search`` are not installed.
    """

    def __init__(self, path: str | Path, record: Record | None = None) -> None:
        self.path = Path(path).expanduser().absolute()
        try:
            import lancedb
        except ImportError as error:
            raise InvalidOptionError(
                f"search needs packages that are not installed: {error.name}", hint='pip install "edge-embed[search]"'
            ) from None
        exists = (self.path / f"{_CHUNKS}.lance").is_dir()
        if not exists and record is None:
            raise DatabaseMissingError(
                f"there is no search database at {self.path}", hint="make it: `edge-embed index FOLDER --db PATH`"
            )
        if not exists and self.path.exists() and (not self.path.is_dir() or self._strangers()):
            raise DatabaseFileError(
                f"{self.path} is something else than a search database, and it is left as it is",
                hint="name a folder that does not exist, or an empty one",
            )
        with self._failing("opened"):
            self._connection: Any = lancedb.connect(self.path, read_consistency_interval=timedelta(seconds=1))
            if not exists:
                assert record is not None
                self._make(record)
            self._chunks: Any = self._connection.open_table(_CHUNKS)
            stored = (self._chunks.schema.metadata or {}).get(_RECORD)
            if stored is None:
                raise DatabaseFileError(f"{self.path} is a database of something else than edge-embed")
            self.record = from_json(stored.decode(), str(self.path))
            self._files: Any = self._files_table()

    def _strangers(self) -> list[Path]:
        """What is in the folder and not ours."""
        return [entry for entry in self.path.iterdir() if entry.name not in (_LOCK, f"{_FILES}.lance")]

    def _make(self, record: Record) -> None:
        import pyarrow as pa

        vectors = {"vector": record.dimensions, **({"short": record.short} if record.short else {})}
        schema = pa.schema(
            [
                *(
                    pa.field(name, pa.string(), nullable=False)
                    for name in ("path", "digest", "kind", "heading", "text")
                ),
                *(pa.field(name, pa.int32(), nullable=False) for name in ("ordinal", "body")),
                *(pa.field(name, pa.int32()) for name in ("line", "page")),
                *(pa.field(name, pa.list_(pa.float32(), n), nullable=False) for name, n in vectors.items()),
            ],
            metadata={_RECORD: to_json(record).encode()},
        )
        self._connection.create_table(_CHUNKS, schema=schema)

    def _files_table(self) -> Any:
        """The table of files, made where a process was ended before it made it; likewise the index of words."""
        import pyarrow as pa
        from lancedb.index import FTS

        if not any(index.columns == ["text"] for index in self._chunks.list_indices()):
            words = FTS(base_tokenizer="icu", language=self.record.language, max_token_length=64)
            self._chunks.create_index("text", config=words)
        strings, numbers = ("path", "digest", "problem"), ("size", "mtime_ns", "n_chunks")
        schema = pa.schema(
            [
                *(pa.field(name, pa.string(), nullable=False) for name in strings),
                *(pa.field(name, pa.int64(), nullable=False) for name in numbers),
            ]
        )
        return self._connection.create_table(_FILES, schema=schema, exist_ok=True)

    # Files

    def files(self) -> dict[str, FileRecord]:
        """What is known of each file, by its path."""
        with self._failing("read"):
            rows = self._files.to_arrow().to_pylist()
        return {row["path"]: FileRecord(**row) for row in rows}

    def leftovers(self, known: Iterable[str]) -> dict[str, dict[str, set[int]]]:
        """Rows without a record: path -> digest -> places of chunks."""
        import pyarrow as pa
        import pyarrow.compute as pc

        recorded = pa.array(list(known), pa.string())
        found: dict[str, dict[str, set[int]]] = {}
        with self._failing("read"):
            for batch in self._chunks.search().select(["path", "digest", "ordinal"]).limit(None).to_batches():
                for row in batch.filter(pc.invert(pc.is_in(batch.column("path"), recorded))).to_pylist():
                    found.setdefault(row["path"], {}).setdefault(row["digest"], set()).add(row["ordinal"])
        return found

    def record_files(self, records: Sequence[FileRecord]) -> None:
        """Note that all rows of these files are there."""
        if not records:
            return
        import pyarrow as pa

        with self._failing("written"):
            table = pa.Table.from_pylist([asdict(record) for record in records], schema=self._files.schema)
            (self._files.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(table))

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files and their rows: the records first, so that none speaks of rows that are gone."""
        for table in (self._files, self._chunks):
            for start in range(0, len(paths), _PATHS_AT_ONCE):
                with self._failing("written"):
                    table.delete(f"path IN ({', '.join(map(quoted, paths[start : start + _PATHS_AT_ONCE]))})")

    # Rows

    def add(
        self, rows: Sequence[tuple[str, str, str, int, Chunk]], vectors: Float32Array, short: Float32Array | None
    ) -> None:
        """Add chunks.

        Args:
            rows: path, digest and kind of the file, the chunk's place in it, the chunk.
            vectors: ``[n, dimensions]``, unit length.
            short: ``[n, short]``, unit length; None where the database has none.
        """
        if not rows:
            return
        import pyarrow as pa

        columns: dict[str, Any] = {
            "path": [row[0] for row in rows],
            "digest": [row[1] for row in rows],
            "kind": [row[2] for row in rows],
            "ordinal": [row[3] for row in rows],
            **{name: [getattr(row[4], name) for row in rows] for name in ("heading", "text", "body", "line", "page")},
            "vector": _fixed(vectors),
        }
        if short is not None:
            columns["short"] = _fixed(short)
        with self._failing("written"):
            schema = self._chunks.schema
            arrays = [
                columns[name] if name in ("vector", "short") else pa.array(columns[name], schema.field(name).type)
                for name in schema.names
            ]
            self._chunks.add(pa.Table.from_arrays(arrays, schema=schema))

    def count(self) -> int:
        """Chunks."""
        with self._failing("read"):
            return int(self._chunks.count_rows())

    def nearest(
        self, query: Float32Array, n: int, *, column: str = "vector", where: str | None = None
    ) -> tuple[list[dict[str, Any]], Float32Array]:
        """The chunks whose vectors have the largest products with the query's, and their full vectors.

        Every vector is compared. With ``column="short"`` those of a large database are rounded to 8 bits for it.

        Args:
            query: ``[dimensions]``, or ``[short]``.
            n: how many.
            column: ``vector`` or ``short``.
            where: an expression that chunks have to meet.

        Returns:
            Rows with the columns of a hit and ``_distance``, and float32 ``[n, dimensions]``; fewer where fewer are.

        Raises:
            DatabaseFileError: the database cannot be read.
        """
        search = self._chunks.search(query, vector_column_name=column).distance_type("dot")
        search = search.nprobes(_PARTITIONS) if column == "short" else search.bypass_vector_index()
        return self._found(search, n, where, "_distance")

    def matching(self, words: str, n: int, *, where: str | None = None) -> tuple[list[dict[str, Any]], Float32Array]:
        """The chunks that match some words best, by BM25.

        Args:
            words: in any order; what the index makes of them is searched.
            n: how many, at most.
            where: as for ``nearest``.

        Returns:
            Rows with the columns of a hit and ``_score``, the best first, and float32 ``[n, dimensions]``.

        Raises:
            DatabaseFileError: the database cannot be read.
        """
        from lancedb import query

        match: Any = query.MatchQuery  # its types ask for what has defaults
        return self._found(self._chunks.search(match(words, "text"), query_type="fts"), n, where, "_score")

    def _found(self, search: Any, n: int, where: str | None, score: str) -> tuple[list[dict[str, Any]], Float32Array]:
        with self._failing("searched"):
            if where is not None:
                search = search.where(where)
            table = search.select([*_COLUMNS, "vector", score]).limit(n).to_arrow()
        vectors = table.column("vector").combine_chunks()
        flat = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
        return table.drop_columns(["vector"]).to_pylist(), flat.reshape(-1, self.record.dimensions)

    # Upkeep

    def optimize(self) -> None:
        """Join small fragments, take new rows into the index of words, and drop old versions of the tables."""
        from lancedb.index import IvfSq

        many = self.record.short and self.count() >= _MANY
        with self._failing("written"):
            if many and not any(index.columns == ["short"] for index in self._chunks.list_indices()):
                self._chunks.create_index("short", config=IvfSq(distance_type="dot", num_partitions=_PARTITIONS))
            for table in (self._chunks, self._files):
                table.optimize(cleanup_older_than=_OLD)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers away while the block runs.

        Raises:
            DatabaseFileError: another process is writing.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / _LOCK, timeout=0)
        with self._failing("written"):
            try:
                lock.acquire()
            except Timeout:
                raise DatabaseFileError(
                    f"another process is writing {self.path}", hint="wait for it, or end it"
                ) from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """What the library makes of damage, a full disk or missing rights becomes an error of ours."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            message = " ".join(str(error).split())
            raise DatabaseFileError(
                f"{self.path} cannot be {what}: {message[:500]}",
                hint="free the disk, or its permissions; a damaged database is made again in another place",
            ) from error

    def close(self) -> None:
        """Let go of the files."""
        self._connection = self._chunks = self._files = None

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def quoted(text: str) -> str:
    """A string as an expression has it."""
    return "'" + text.replace("'", "''") + "'"


def _fixed(vectors: Float32Array) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
