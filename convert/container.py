"""One GGUF file: metadata, tensor table, and data streamed behind them; whole and in place, or not there at all.

Knows the container and the file system. Knows nothing of what the tensors mean. The metadata and the table are
written by gguf-py; the data is written here, in order, as it is computed, so nothing is held in memory and
there is no second pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from edge_embed.errors import OutputFileError

from .architectures.family import KeyValue

ALIGNMENT = 32  # GGUF's default, which needs no key


@dataclass(frozen=True, slots=True)
class TensorInfo:
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
        raise OutputFileError(f"{path} cannot be written: {error}") from error


class GGUFOutput:
    """A context that writes ``NAME.part`` and renames it to ``NAME`` on success; any exception removes the part.

    The file is flushed to the disk before it is renamed, so a file of that name is always a whole one.
    """

    def __init__(self, path: Path, arch: str, key_values: Sequence[KeyValue], tensors: Sequence[TensorInfo]) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.size = 0
        self._arch = arch
        self._key_values = key_values
        self._tensors = tensors
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
            needed = sum(padded(t.nbytes) for t in self._tensors)
            free = shutil.disk_usage(self.path.parent).free
            if needed > free:
                raise OutputFileError(f"{self.path} needs {needed} bytes, and its disk has {free} left")
            try:
                self._write_head()
                with self.part.open("rb") as head:
                    while chunk := head.read(2**20):
                        self._digest.update(chunk)
                        self.size += len(chunk)
                self._file = self.part.open("ab")
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

    def _write_head(self) -> None:
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
            self.part.unlink(missing_ok=True)


def padded(n: int) -> int:
    """``n`` rounded up to the alignment."""
    return -(-n // ALIGNMENT) * ALIGNMENT
