"""Rows of a block from Parquet, lines of JSON and Lance, read from where the block is and not from the beginning."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edge_embed.bulk import storage
from edge_embed.bulk.blocks import Block
from edge_embed.bulk.job import DEFAULT_COLUMN, Job
from edge_embed.errors import InputFileError, InvalidTextError
from edge_embed.files import json_records, json_text

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read of a block.

    Attributes:
        texts: its texts.
        kept: the columns that the output has, as a ``pyarrow.Table``, or as objects where they were lines of JSON.
    """

    texts: list[str]
    kept: pa.Table | list[dict[str, Any]]


class Reader(Protocol):
    """Reads blocks of one job, in any order; those that follow each other in a file are read fastest."""

    def read(self, block: Block) -> Rows:
        """The rows of a block.

        Raises:
            InputFileError: the file cannot be read, or is not what it was when the job was planned.
            InvalidTextError: a row has no text.
        """


def reader_of(job: Job) -> Reader:
    """What reads a job's input."""
    kinds: dict[str, type[_Parquet | _JsonLines | _Lance]] = {
        "parquet": _Parquet,
        "jsonl": _JsonLines,
        "lance": _Lance,
    }
    return kinds[job.input_format](job)


def lance_store(folder: str, options: Mapping[str, str]) -> Any:
    """The Lance tables of a folder or store, with LanceDB's options for it."""
    with storage.packages():
        import lancedb
    place, found = storage.lance_place(folder, options)
    return lancedb.connect(place, storage_options=found or None)


def lance_table(path: str, options: Mapping[str, str]) -> Any:
    """A Lance table by its path or URI; InputFileError where there is none."""
    folder, name = storage.split(path)
    try:
        return lance_store(folder, options).open_table(name.removesuffix(".lance"))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputFileError(f"{storage.shown(path)} is no Lance table: {str(error).splitlines()[0]}") from error


def lance_identity(table: Any) -> str:
    """What tells a Lance table from what it is after a change."""
    return f"version {table.version}"


class _Parquet:
    """Goes on where the last block ended; a row group is decoded once by whoever reads its blocks one after another."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._columns = list(dict.fromkeys([*job.keep, job.column]))
        self._path = ""
        self._at = 0  # row of the file that comes next
        self._batches: Iterator[Any] = iter(())
        self._left: Any = None  # what was read and not asked for yet
        self._groups: list[int] = []  # first row of each row group

    def read(self, block: Block) -> Rows:
        import pyarrow as pa

        table = self._job.tables[block.table]
        _check(table.path, table.identity, storage.identity(table.path))
        with storage.reading(table.path):
            if self._must_seek(table.path, block.start):
                self._seek(table.path, block.start)
            self._take(block.start - self._at)
            found = pa.Table.from_batches(self._take(block.n_rows)).combine_chunks()
        if found.num_rows != block.n_rows:
            raise InputFileError(f"{storage.shown(table.path)} has fewer rows than it says")
        texts = _texts(found.column(self._job.column), block)
        return Rows(texts, found.select(list(self._job.keep)))

    def _must_seek(self, path: str, start: int) -> bool:
        return path != self._path or start < self._at or any(self._at < first <= start for first in self._groups)

    def _seek(self, path: str, start: int) -> None:
        import pyarrow.parquet as pq

        system, place = storage.filesystem(path)
        file = pq.ParquetFile(place, filesystem=system)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._groups = [sum(sizes[:i]) for i in range(len(sizes))]
        group = max(i for i, first in enumerate(self._groups) if first <= start)
        self._batches = file.iter_batches(
            self._job.request.block_rows, row_groups=list(range(group, len(sizes))), columns=self._columns
        )
        self._path, self._at, self._left = path, self._groups[group], None

    def _take(self, n: int) -> list[Any]:
        """The next rows, in record batches."""
        taken: list[Any] = []
        while n:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                break
            first = batch.slice(0, n)
            self._left = batch.slice(len(first)) if len(first) < len(batch) else None
            taken.append(first)
            n -= len(first)
            self._at += len(first)
        return taken


class _JsonLines:
    """Reads from the byte where a block begins."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def read(self, block: Block) -> Rows:
        import pyarrow as pa

        job, table = self._job, self._job.tables[block.table]
        _check(table.path, table.identity, storage.identity(table.path))
        system, place = storage.filesystem(table.path)
        with storage.reading(table.path), system.open_input_file(place) as file:
            file.seek(block.begin)
            data = file.read(block.end - block.begin)
        records: list[dict[str, Any]] = []
        texts: list[str] = []
        for where, value in json_records(io.BytesIO(data), storage.shown(table.path)):
            texts.append(json_text(value, where, job.column if isinstance(value, dict) else None))
            record = value if isinstance(value, dict) else {DEFAULT_COLUMN: value}
            records.append({name: record[name] for name in job.keep if name in record})
        if job.output_format == "jsonl":
            return Rows(texts, records)
        schema = pa.schema([(name, kind) for name, kind in job.types])
        return Rows(texts, pa.Table.from_pylist(records, schema=schema))


class _Lance:
    """Takes rows of one version of a table, which later changes leave as it is."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open: dict[int, Any] = {}

    def read(self, block: Block) -> Rows:
        job, about = self._job, self._job.tables[block.table]
        if block.table not in self._open:
            table = lance_table(about.path, job.request.storage)
            try:
                table.checkout(int(about.identity.rpartition(" ")[2]))
            except (OSError, ValueError, RuntimeError):
                _check(about.path, about.identity, lance_identity(table))
            self._open[block.table] = table
        columns = list(dict.fromkeys([*job.keep, job.column]))
        with storage.reading(about.path):
            found = self._open[block.table].take_offsets(list(range(block.start, block.stop)))
            rows = found.select(columns).to_arrow().combine_chunks()
        return Rows(_texts(rows.column(job.column), block), rows.select(list(job.keep)))


def _check(path: str, planned: str, found: str) -> None:
    if planned != found:
        raise InputFileError(
            f"{storage.shown(path)} was changed while it was read: it had {planned}, and has {found}",
            hint="start again with --no-resume, or write to another folder",
        )


def _texts(column: Any, block: Block) -> list[str]:
    """The texts of a column; InvalidTextError where a row has none."""
    found: list[str | None] = column.to_pylist()
    if None in found:
        raise InvalidTextError(
            f"text {block.first + found.index(None)} is missing: the column has no value there",
            hint="fill it in, or leave such rows out",
        )
    return [text for text in found if text is not None]
