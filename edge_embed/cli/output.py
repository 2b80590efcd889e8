"""Vectors to a file or to standard output, batch after batch, in one of several formats.

A file appears whole or not at all: it is written beside its place as ``NAME.part`` and renamed at the end. Every format
only grows until then, so a part that is cut after any batch can be continued.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Literal

import click

from edge_embed.bulk.writing import number_format
from edge_embed.cli.terminal import mute_stdout
from edge_embed.errors import OutputFileError, ResumeError

if TYPE_CHECKING:
    from edge_embed.types import AnyArray

if sys.platform != "win32":
    import fcntl

OutputFormat = Literal["json", "jsonl", "csv", "npy", "f32", "base64"]
OUTPUT_FORMATS: Final[tuple[OutputFormat, ...]] = ("json", "jsonl", "csv", "npy", "f32", "base64")
BINARY: Final = ("npy", "f32")

_BY_EXTENSION: Final[dict[str, OutputFormat]] = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".npy": "npy", ".f32": "f32",
    ".b64": "base64", ".base64": "base64",
}  # fmt: skip


def choose_format(path: Path | None, asked: OutputFormat | None) -> OutputFormat:
    """The format asked for, else the one of the extension, else JSON for standard output; click.UsageError if none."""
    chosen = asked
    if chosen is None:
        if path is not None and path.suffix.lower() not in _BY_EXTENSION:
            known = ", ".join(_BY_EXTENSION)
            raise click.UsageError(
                f"the extension of {path.name!r} names no format: give --output-format, or use {known}"
            )
        chosen = "json" if path is None else _BY_EXTENSION[path.suffix.lower()]
    if path is None and chosen in BINARY and sys.stdout.isatty():
        raise click.UsageError(f"{chosen} is binary and would garble the terminal: give --output, or pipe it on")
    return chosen


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two batches, from which a part can be continued.

    Attributes:
        n_bytes: where in the part it lies.
        n_rows: vectors before it.
        columns: values of each.
        descr: their type, as NumPy writes it.
    """

    n_bytes: int
    n_rows: int
    columns: int
    descr: str


def part_of(path: Path) -> Path:
    """Where a file is written until it is whole; a link stays a link."""
    whole = path.resolve()
    return whole.with_name(whole.name + ".part")


class VectorOutput:
    """A context manager that takes matrices of one width and dtype one after another, and writes them.

    Leaving the block without an exception completes the output; with one, nothing is left of a file, unless it is kept.

    Args:
        path: the file, or None for standard output.
        output_format: one of ``OUTPUT_FORMATS``.
        keep: what an exception leaves of a file stays, and no other process may write it meanwhile.
        mark: where a part that was kept is continued; what lies behind is cut off.

    Raises:
        OutputFileError: it cannot be written.
        ResumeError: another process writes the part, or it ends before the mark.
        BrokenPipeError: the reader went away.
    """

    def __init__(
        self, path: Path | None, output_format: OutputFormat, *, keep: bool = False, mark: Mark | None = None
    ) -> None:
        self._path, self._format = path, output_format
        self._keep, self._from = keep, mark
        self._part: Path | None = None
        self._target: IO[bytes] = io.BytesIO()  # until there is something to write to
        self._stream: IO[bytes] = self._target
        self._count = self._columns = 0
        self._descr = ""
        self._end = 0

    def __enter__(self) -> VectorOutput:
        try:
            with self._writing():
                self._open()
        except BaseException:  # an interrupt, when there is a file already
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with self._writing():
                self._complete()
        except BaseException:
            self._discard()
            raise

    def write(self, vectors: AnyArray) -> None:
        """Append rows, ``[n, d]``."""
        little = vectors.astype(vectors.dtype.newbyteorder("<"), copy=False)
        self._descr, self._columns = little.dtype.str, little.shape[1]
        with self._writing():
            if self._format in BINARY:
                self._stream.write(little.tobytes())
            elif self._format == "base64":
                self._stream.write(b"".join(base64.b64encode(row.tobytes()) + b"\n" for row in little))
            else:
                self._stream.write("".join(self._text(vectors)).encode())
            self._end = 0 if self._part is None else self._stream.tell()
        self._count += len(vectors)

    def mark(self) -> Mark:
        """The place behind the last batch of a file."""
        return Mark(self._end, self._count, self._columns, self._descr)

    def sync(self) -> None:
        """Everything that was written is on the disk when this returns."""
        with self._writing():
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def _open(self) -> None:
        if self._path is None:
            self._target = sys.stdout.buffer
        elif self._path.exists() and not self._path.is_file():  # a device or a pipe: there is nothing to rename
            self._target = self._path.open("wb")
        else:
            self._whole = self._path.resolve()
            self._part = part_of(self._path)  # known before it is there: an interrupt may come right behind
            self._target = _open_locked(self._part) if self._keep else self._part.open("wb")
        # The header of .npy holds the number of rows, which is known at the end: what cannot seek gets it then
        spooled = self._format == "npy" and self._part is None
        self._stream = tempfile.TemporaryFile() if spooled else self._target  # noqa: SIM115 - closed by __exit__
        if self._from is not None:
            self._continue(self._from)
        else:
            if self._keep and self._part is not None:
                self._target.truncate(0)
            if self._format == "npy":
                self._stream.write(self._npy_header())
        self._end = 0 if self._part is None else self._stream.tell()

    def _continue(self, mark: Mark) -> None:
        size = self._target.seek(0, os.SEEK_END)
        if size < mark.n_bytes:
            raise ResumeError(
                f"{self._part} has {size} bytes, and the interrupted job had written {mark.n_bytes}",
                hint="it was changed since: --no-resume starts again",
            )
        self._target.truncate(mark.n_bytes)
        self._target.seek(mark.n_bytes)
        self._count, self._columns, self._descr = mark.n_rows, mark.columns, mark.descr

    def _text(self, vectors: AnyArray) -> Iterator[str]:
        row = ",".join([number_format(vectors.dtype.name)] * vectors.shape[1])
        for index, values in enumerate(map(tuple, vectors.tolist()), self._count):
            if self._format == "csv":
                yield row % values + "\n"
            elif self._format == "jsonl":
                yield f'{{"index":{index},"embedding":[{row % values}]}}\n'
            else:
                yield ("[\n[" if index == 0 else ",\n[") + row % values + "]"

    def _npy_header(self) -> bytes:
        """Always 128 bytes, so that the number of rows can be filled in later.

        Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0
        """
        shape = f"({self._count}, {self._columns})"
        text = f"{{'descr': {self._descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"

    def _complete(self) -> None:
        if self._format == "json":
            self._stream.write(b"\n]\n" if self._count else b"[]\n")
        if self._format == "npy":
            self._stream.seek(0)
            self._stream.write(self._npy_header())
        if self._stream is not self._target:
            self._stream.seek(0)
            shutil.copyfileobj(self._stream, self._target)
            self._stream.close()
        self._target.flush()
        if self._keep:
            os.fsync(self._target.fileno())
        if self._path is not None:
            self._target.close()
        if self._part is not None:
            self._part.replace(self._whole)

    def _discard(self) -> None:
        for stream in (self._stream, self._target):
            if stream is not sys.stdout.buffer:
                with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                    stream.close()
        if self._part is not None and not self._keep:
            with contextlib.suppress(OSError):
                self._part.unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._path is None:
                mute_stdout()
            name = "standard output" if self._path is None else str(self._path)
            raise OutputFileError(f"cannot write {name}: {error.strerror or error}") from error


def lock(file: IO[bytes]) -> bool:
    """Whether no other process holds the file; where there are locks, this one does as long as it is open."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # some network file systems
            return True
    return True


def _open_locked(part: Path) -> IO[bytes]:
    """The part for writing, as it is; it is not touched before it is known to be nobody else's."""
    file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
    # Whoever held it may have completed it after it was opened here: then this is the whole file by now
    if not lock(file) or not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
        file.close()
        raise ResumeError(f"another process is writing {part}", hint="let it finish, or write to another file")
    return file
