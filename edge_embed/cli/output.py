"""Vectors to a file or to standard output, batch after batch, in one of several formats.

A file appears whole or not at all: it is written beside its place as ``NAME.part`` and renamed at the end.
"""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Literal

import click

from edge_embed.cli.terminal import mute_stdout
from edge_embed.errors import OutputFileError

if TYPE_CHECKING:
    from edge_embed.types import AnyArray

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


class VectorOutput:
    """A context manager that takes matrices of one width and dtype one after another, and writes them.

    Leaving the block without an exception completes the output; with one, nothing is left of a file.

    Args:
        path: the file, or None for standard output.
        output_format: one of ``OUTPUT_FORMATS``.

    Raises:
        OutputFileError: it cannot be written.
        BrokenPipeError: the reader went away.
    """

    def __init__(self, path: Path | None, output_format: OutputFormat) -> None:
        self._path, self._format = path, output_format
        self._part: Path | None = None
        self._target: IO[bytes] = io.BytesIO()  # until there is something to write to
        self._stream: IO[bytes] = self._target
        self._count = self._columns = 0
        self._descr = ""

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
        self._count += len(vectors)

    def _open(self) -> None:
        if self._path is None:
            self._target = sys.stdout.buffer
        elif self._path.exists() and not self._path.is_file():  # a device or a pipe: there is nothing to rename
            self._target = self._path.open("wb")
        else:
            whole = self._path.resolve()  # a link stays a link
            self._part, self._whole = whole.with_name(whole.name + ".part"), whole
            self._target = self._part.open("wb")
        # The header of .npy holds the number of rows, which is known at the end: what cannot seek gets it then
        spooled = self._format == "npy" and self._part is None
        self._stream = tempfile.TemporaryFile() if spooled else self._target  # noqa: SIM115 - closed by __exit__
        if self._format == "npy":
            self._stream.write(self._npy_header())

    def _text(self, vectors: AnyArray) -> Iterator[str]:
        # 9 and 5 digits are what float32 and float16 need to be read back bit for bit
        number = {"float32": "%.9g", "float16": "%.5g"}.get(vectors.dtype.name, "%d")
        row = ",".join([number] * vectors.shape[1])
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
        if self._path is not None:
            self._target.close()
        if self._part is not None:
            self._part.replace(self._whole)

    def _discard(self) -> None:
        for stream in (self._stream, self._target):
            if stream is not sys.stdout.buffer:
                with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                    stream.close()
        if self._part is not None:
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
