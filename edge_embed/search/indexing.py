"""Bring a database up to date with folders: read, cut and embed what is new or changed, remove what is gone.

A run may be ended at any moment. What it has written stays, and the next run goes on there, within a file, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from edge_embed.embedder import Embedder
from edge_embed.errors import NonFiniteError
from edge_embed.postprocess import unit
from edge_embed.progress import Progress
from edge_embed.search.chunks import chunks
from edge_embed.search.database import Database
from edge_embed.search.extract import UNOPENED, ExtractError
from edge_embed.search.extract.worker import Extracted, Extractor
from edge_embed.search.scan import Rules, Scan, scan
from edge_embed.search.types import Chunk, FileRecord, Found, Report, Skipped
from edge_embed.types import BoolArray, Float32Array

# Chunks that are embedded and written at once: few at first, and on slow machines, so that little is lost.
_FIRST, _MOST, _SECONDS = 16, 512, 2.0
# A file that was changed this recently may change again within one tick of the clock.
_RACY_NS: Final = 2_000_000_000


@dataclass(slots=True)
class _Work:
    """A file whose chunks are on their way."""

    found: Found
    record: FileRecord
    is_fresh: bool  # whether no rows of it are in the database
    left: int
    bad: int = 0


@dataclass(slots=True)
class _Counts:
    updated: set[str] = field(default_factory=set)
    n_embedded: int = 0
    skipped: list[Skipped] = field(default_factory=list)


class Indexer:
    """Updates one database with one embedder, again and again if asked to.

    Args:
        database: where to.
        embedder: the model of the database's record.
        rules: what is read.
        show_progress_bar: a bar on a terminal, plain lines otherwise, on stderr.
    """

    def __init__(
        self, database: Database, embedder: Embedder, rules: Rules | None = None, *, show_progress_bar: bool = False
    ) -> None:
        self._database, self._embedder = database, embedder
        self._rules = rules or Rules()
        self._shown = show_progress_bar
        self._size = _FIRST

    @property
    def database_folder(self) -> str:
        """Where the database lies, which is never read, and whose changes are its own."""
        return str(self._database.path)

    def update(self, roots: Sequence[str]) -> Report:
        """Bring the database up to date with what is below these folders; what else it holds stays.

        Args:
            roots: absolute paths from ``scan.root_of``.

        Raises:
            DatabaseFileError: it cannot be written, or another process is writing it.
            InputFileError: a pattern of the rules.
            EngineError: a leaf of it.
        """
        with self._database.writing():
            return self._update(roots)

    def _update(self, roots: Sequence[str]) -> Report:
        database = self._database
        found = scan(roots, self._rules, leave_out=[self.database_folder])
        counts = _Counts(skipped=list(found.skipped))
        known = database.files()
        leftovers = database.leftovers(known)
        gone = [path for path in {*known, *leftovers} if _is_below(path, roots) and self._is_gone(path, found)]
        database.remove(sorted(gone))
        n_removed = sum(path in known for path in gone)
        changed = []
        for path, file in found.files.items():
            record = known.get(path)
            if record is None or (record.size, record.mtime_ns) != (file.size, file.mtime_ns):
                changed.append(file)
            elif record.problem:
                counts.skipped.append(Skipped(path, record.problem))
        self._embed_files(changed, known, leftovers, counts)
        if gone or changed:
            database.optimize()
        now = database.files()
        n_files = sum(_is_below(path, roots) and not record.problem for path, record in now.items())
        return Report(
            n_files=n_files,
            n_updated=len(counts.updated),
            n_removed=n_removed,
            n_chunks=database.count(),
            n_embedded=counts.n_embedded,
            n_ignored=found.n_ignored,
            skipped=tuple(sorted(counts.skipped, key=lambda one: one.path)),
        )

    @staticmethod
    def _is_gone(path: str, found: Scan) -> bool:
        return path not in found.files and not any(_is_below(path, [folder]) for folder in found.unread)

    def _embed_files(
        self,
        files: Sequence[Found],
        known: dict[str, FileRecord],
        leftovers: dict[str, dict[str, set[int]]],
        counts: _Counts,
    ) -> None:
        waiting: list[tuple[_Work, int, Chunk]] = []
        with Progress("indexing", sum(file.size for file in files), "B", enabled=self._shown) as progress:
            for file, extracted in self._extracted(files, known):
                record = known.get(file.path)
                if isinstance(extracted, ExtractError):
                    self._skip(file, str(extracted), counts, had_rows=record is not None or file.path in leftovers)
                    progress.advance(file.size)
                    continue
                new = FileRecord(file.path, extracted.size, _settled(extracted.mtime_ns), extracted.digest, 0)
                if extracted.known:
                    assert record is not None
                    self._database.record_files([_counted(new, record.n_chunks, record.problem)])
                    if record.problem:
                        counts.skipped.append(Skipped(file.path, record.problem))
                    progress.advance(file.size)
                    continue
                counts.updated.add(file.path)
                waiting += self._cut(new, file, extracted, record, leftovers)
                while len(waiting) >= self._size:
                    batch, waiting = waiting[: self._size], waiting[self._size :]
                    self._write(batch, counts, progress)
            if waiting:
                self._write(waiting, counts, progress)

    def _extracted(
        self, files: Sequence[Found], known: dict[str, FileRecord]
    ) -> Iterator[tuple[Found, Extracted | ExtractError]]:
        """Each file with its content or what is wrong with it; the next one is read while one is embedded."""
        with Extractor(max_bytes=self._rules.max_bytes) as extractor, ThreadPoolExecutor(1) as reader:

            def read(file: Found) -> Extracted | ExtractError:
                record = known.get(file.path)
                try:
                    return extractor.read(file.path, file.kind, "" if record is None else record.digest)
                except ExtractError as error:
                    return error

            coming = reader.submit(read, files[0]) if files else None
            for place, file in enumerate(files):
                assert coming is not None
                extracted = coming.result()
                if place + 1 < len(files):
                    coming = reader.submit(read, files[place + 1])
                yield file, extracted

    def _cut(
        self,
        new: FileRecord,
        file: Found,
        extracted: Extracted,
        record: FileRecord | None,
        leftovers: dict[str, dict[str, set[int]]],
    ) -> list[tuple[_Work, int, Chunk]]:
        """The chunks of a file that are to be embedded; old rows of it go now."""
        settings = self._database.record

        def count(texts: Sequence[str]) -> list[int]:
            return self._embedder.tokenizer.count(texts, prompt=settings.prompt)

        made = list(chunks(extracted.sections, count, settings.chunk_tokens, settings.overlap))
        rows = leftovers.get(file.path, {})
        done = rows.get(extracted.digest, set())
        if record is not None or set(rows) - {extracted.digest}:
            self._database.remove([file.path])
            done = set()
        work = _Work(file, _counted(new, len(made)), not done, len(made) - len(done))
        todo = [(work, place, chunk) for place, chunk in enumerate(made) if place not in done]
        if not todo:
            self._database.record_files([work.record])
        return todo

    def _write(self, batch: list[tuple[_Work, int, Chunk]], counts: _Counts, progress: Progress) -> None:
        """Embed chunks, write them, and note which files are complete."""
        started = time.monotonic()
        vectors, finite = self._vectors([chunk.text for _, _, chunk in batch])
        good = [
            (work.found.path, work.record.digest, work.found.kind, place, chunk)
            for (work, place, chunk), ok in zip(batch, finite, strict=True)
            if ok
        ]
        kept = vectors[finite]
        short = self._database.record.short
        self._database.add(good, kept, unit(kept[:, :short]) if short else None)
        counts.n_embedded += len(batch)
        complete: list[FileRecord] = []
        for (work, _, _), ok in zip(batch, finite, strict=True):
            work.left -= 1
            work.bad += not ok
            progress.advance(work.found.size // max(1, work.record.n_chunks))
            if not work.left:
                complete.append(_counted(work.record, work.record.n_chunks - work.bad))
                if work.bad:
                    reason = f"{work.bad} of {work.record.n_chunks} chunks make the model overflow, and are left out"
                    counts.skipped.append(Skipped(work.found.path, reason))
        self._database.record_files(complete)
        if time.monotonic() - started < _SECONDS:
            self._size = min(_MOST, self._size * 2)
        elif time.monotonic() - started > 2 * _SECONDS:
            self._size = max(_FIRST, self._size // 2)

    def _vectors(self, texts: list[str]) -> tuple[Float32Array, BoolArray]:
        """Unit vectors, and which of them are finite."""
        record = self._database.record
        try:
            result = self._embedder.embed(
                texts, prompt=record.prompt, truncate_dim=record.dimensions, normalize=True, truncate="error"
            )
        except NonFiniteError as error:
            result = error.partial
        vectors: Float32Array = np.asarray(result.vectors, dtype=np.float32)
        finite: BoolArray = np.asarray(np.isfinite(vectors).all(axis=1))
        return vectors, finite

    def _skip(self, file: Found, reason: str, counts: _Counts, *, had_rows: bool) -> None:
        """A file that is not read: its rows go, the reason is kept. One that could not be opened stays as it was."""
        counts.skipped.append(Skipped(file.path, reason))
        if reason.startswith(UNOPENED):  # which may be otherwise the next time, with the file unchanged
            return
        if had_rows:
            self._database.remove([file.path])
        self._database.record_files([FileRecord(file.path, file.size, _settled(file.mtime_ns), "", 0, reason)])


def _counted(record: FileRecord, n_chunks: int, problem: str = "") -> FileRecord:
    return FileRecord(record.path, record.size, record.mtime_ns, record.digest, n_chunks, problem)


def _settled(mtime_ns: int) -> int:
    return -1 if time.time_ns() - mtime_ns < _RACY_NS else mtime_ns


def _is_below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/\\") + _SEPARATOR) for root in roots)


_SEPARATOR: Final = str(Path("a", "b"))[1]
