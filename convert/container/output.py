"""One GGUF file: metadata, tensor table, and data streamed behind them; whole and in place, or not there at all.

Knows the container and the file system. Knows nothing of what the tensors mean. The metadata and the table are
written by gguf-py; the data is written here, in order, as it is computed, so nothing is held in memory and
there is no second pass.

Several conversions may write the same file at once: each has a part of its own, and the last to finish wins. A part
is locked while it is written, so one that a killed process left behind is told from one in use, and removed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import mmap
import os
import secrets
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from edge_embed.errors import OutputFileError

from .entries import KeyValue

if sys.platform != "win32":
    import fcntl

ALIGNMENT = 32  # GGUF's default, which needs no key


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A line of the tensor table; ``shape`` is row-major."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    nbytes: int


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some room, or write elsewhere (-o): nothing was left behind" if full else ""
        raise OutputFileError(f"{path} cannot be written: {error.strerror or error}", hint=hint) from error


class GGUFOutput:
    """A context that writes ``NAME.<random>.part``, renamed to ``NAME`` on success; any exception removes the part.

    The file is flushed to the disk before it is renamed, so a file of that name is always a whole one.
    """

    def __init__(
        self,
        path: Path,
        arch: str,
        key_values: Sequence[KeyValue],
        tensors: Sequence[OutputTensor],
        head: bytes | None = None,
    ) -> None:
        """``head``, where it is given, is everything in front of the data and its padding, and stands for the rest."""
        self.path = path
        self.part = path
        self.size = 0
        self._arch = arch
        self._key_values = key_values
        self._tensors = tensors
        self._head = head
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> GGUFOutput:
        """Write everything up to the data.

        Raises:
            OutputFileError: no such folder, no permission, not enough room.
        """
        with _as_output_error(self.path):
            if self.path.exists() and not self.path.is_file():
                raise OutputFileError(f"{self.path} is not a file")
            _remove_stale_parts(self.path)
            needed = sum(padded(t.nbytes) for t in self._tensors)
            free = shutil.disk_usage(self.path.parent).free
            if needed > free:
                raise OutputFileError(
                    f"{self.path} needs {needed} bytes, and its disk has {free} left",
                    hint="free some room, or write elsewhere (-o): nothing was written",
                )
            try:
                self._file = self._new_part()
                self._write_head()
                with self.part.open("rb") as head:
                    while chunk := head.read(2**20):
                        self._digest.update(chunk)
                        self.size += len(chunk)
                self._file.seek(0, os.SEEK_END)
                self.pad()
            except BaseException:
                self._discard()
                raise
        return self

    def write(self, data: bytes) -> None:
        """Append data of the tensor whose turn it is."""
        assert self._file is not None, "write outside the context"
        with _as_output_error(self.path):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def pad(self) -> None:
        """Fill up to the alignment; called after each tensor."""
        self.write(b"\0" * (padded(self.size) - self.size))

    def sha256(self) -> str:
        """Digest of everything written so far."""
        return self._digest.hexdigest()

    def flush(self) -> Path:
        """The part, with everything written so far in it."""
        assert self._file is not None, "flush outside the context"
        with _as_output_error(self.path):
            self._file.flush()
        return self.part

    def patch(self, values: Sequence[KeyValue]) -> None:
        """Put other numbers in the place of entries of the header, and read the part again for its digest."""
        with _as_output_error(self.path):
            patch_numbers(self.flush(), values)
            self._digest = hashlib.sha256()
            with self.part.open("rb") as file:
                while chunk := file.read(2**20):
                    self._digest.update(chunk)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._discard()
            return
        try:
            with _as_output_error(self.path):
                assert self._file is not None
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self.part.replace(self.path)
        except BaseException:
            self._discard()
            raise

    def _new_part(self) -> BinaryIO:
        """A new file beside the target, locked."""
        while True:
            part = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
            file = part.open("xb")
            self.part = part
            locked = _lock(file)
            if locked is None:
                return file
            with contextlib.suppress(OSError):
                if locked and os.path.samestat(part.stat(), os.fstat(file.fileno())):
                    return file
            file.close()  # taken for a stale one in the moment before the lock

    def _write_head(self) -> None:
        if self._head is not None:
            self.part.write_bytes(self._head)
            return
        writer = GGUFWriter(None, self._arch)
        try:
            for entry in self._key_values:
                if isinstance(entry.value, (list, tuple)):
                    if entry.value:  # GGUF has no type for an empty array's items
                        writer.add_key_value(entry.key, entry.value, GGUFValueType.ARRAY, entry.kind)
                else:
                    writer.add_key_value(entry.key, entry.value, entry.kind)
            for tensor in self._tensors:
                # NumPy's dtype is not looked at where raw_dtype is given, except for uint8.
                dtype = np.dtype(np.float32)
                writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.nbytes, raw_dtype=tensor.kind)
            writer.write_header_to_file(path=self.part)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            if self.part != self.path:
                self.part.unlink(missing_ok=True)


def _lock(file: BinaryIO) -> bool | None:
    """Whether this process now holds the file, or None without locks; it lasts as long as the file is open."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def _remove_stale_parts(path: Path) -> None:
    """Remove what killed conversions to this path left behind; one that is being written stays.

    Without ``flock`` (Windows) an open file cannot be removed, which comes to the same.
    """
    for part in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.part"):
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                part.unlink()
                continue
            with part.open("rb") as file:
                if _lock(file):
                    part.unlink()


def patch_numbers(path: Path, values: Sequence[KeyValue]) -> None:
    """Overwrite numbers in the metadata of a GGUF; nothing else in it moves.

    Args:
        path: a sound file.
        values: entries with the type that they have in the file, UINT32 or FLOAT32.

    Raises:
        KeyError: the file has no such entry of that type.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for entry in values:
            key = entry.key.encode()
            # The length before the key: eight bytes that no text holds, so no string is taken for it.
            start = struct.pack("<Q", len(key)) + key + struct.pack("<I", int(entry.kind))
            at = data.find(start)
            if at < 0:
                raise KeyError(entry.key)
            code = {GGUFValueType.UINT32: "<I", GGUFValueType.FLOAT32: "<f"}[entry.kind]
            struct.pack_into(code, data, at + len(start), entry.value)
        data.flush()


def padded(n: int) -> int:
    """``n`` rounded up to the alignment."""
    return -(-n // ALIGNMENT) * ALIGNMENT
