"""A GGUF as a source of tensors: its header checked, its metadata as bytes, its rows as numbers.

Knows the file, and which architectures are converted. Knows nothing of what is made of it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType as Kind

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.gguf_header import GgufHeader, TensorInfo, read_header
from edge_embed.types import Float32Array

from .architectures import FAMILIES
from .blocks.rows import decode_rows, tensor_bytes
from .blocks.types import Traits
from .container.raw import read_entries

_ARCHITECTURES = frozenset(family.arch for family in FAMILIES)


class GGUFSource:
    """An opened GGUF whose tensors are read row by row; ``close()`` (or ``with``) closes the file.

    Attributes:
        path: the file.
        header: its table of contents.
        tensors: those that it holds, in its order.
        arch: ``general.architecture``.
        name: ``general.name``, or the file's.
        traits: what the mixes look at.
        entries: the metadata as it is stored, by key.
    """

    def __init__(self, path: Path | str) -> None:
        """Read and check the header.

        Raises:
            ModelNotFoundError, ModelFileError: no such file, or not a sound GGUF.
            UnsupportedCheckpointError: an adapter, one part of several, or an architecture that is not known.
        """
        self.path = Path(path)
        self.header: GgufHeader = read_header(self.path)
        self.tensors: tuple[TensorInfo, ...] = tuple(self.header.tensors.values())
        self.arch = str(self.header.metadata.get("general.architecture", ""))
        self.name = str(self.header.metadata.get("general.name", self.path.stem))
        self._check()
        self.entries = read_entries(self.path)
        self.traits = Traits(self._count("block_count"), self._n_gqa())
        self._file: BinaryIO = self.path.open("rb")
        self._lock = threading.Lock()

    def __enter__(self) -> GGUFSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def bytes_of(self, tensor: TensorInfo, first: int, count: int) -> bytes:
        """Rows ``first .. first+count`` as they are stored.

        Raises:
            CheckpointError: the file ended early or cannot be read.
        """
        row_bytes = tensor_bytes(kind_of(tensor), (tensor.shape[0],))
        try:
            with self._lock:
                self._file.seek(tensor.offset + first * row_bytes)
                data = self._file.read(count * row_bytes)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        if len(data) != count * row_bytes:
            raise CheckpointError(f"{self.path} ended inside tensor {tensor.name!r}")
        return data

    def rows(self, tensor: TensorInfo, first: int, count: int) -> Float32Array:
        """The same as float32 ``[count, n_cols]``.

        Raises:
            CheckpointError: as above, or a value is NaN or infinite.
        """
        data, kind, n_cols = self.bytes_of(tensor, first, count), kind_of(tensor), tensor.shape[0]
        values = decode_rows(data, kind, n_cols)
        if not np.isfinite(values).all():
            row = first + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise CheckpointError(f"{self.path}: tensor {tensor.name!r} has NaN or infinity in row {row}")
        return values

    def _check(self) -> None:
        metadata = self.header.metadata
        kind = metadata.get("general.type", "model")
        if kind != "model":
            raise UnsupportedCheckpointError(f"{self.path} is not a model but of general.type {kind!r}")
        if int(metadata.get("split.count", 1)) > 1:
            raise UnsupportedCheckpointError(
                f"{self.path} is one of {metadata['split.count']} parts of a model",
                hint="merge them first: llama-gguf-split --merge FIRST-PART OUT",
            )
        if self.arch not in _ARCHITECTURES:
            raise UnsupportedCheckpointError(
                f"{self.path}: which types suit the architecture {self.arch!r} is not known",
                hint=f"known: {', '.join(sorted(_ARCHITECTURES))}",
            )
        for tensor in self.tensors:
            if tensor.type_name not in Kind.__members__:
                raise UnsupportedCheckpointError(f"{self.path}: tensor {tensor.name!r} is {tensor.type_name}")

    def _count(self, key: str, default: int = 0) -> int:
        value = self.header.metadata.get(f"{self.arch}.{key}", default)
        value = value[0] if isinstance(value, list) and value else value
        return value if type(value) is int and value >= 0 else default

    def _n_gqa(self) -> int:
        heads = self._count("attention.head_count", 1)
        return heads // (self._count("attention.head_count_kv", heads) or 1)


def kind_of(tensor: TensorInfo) -> Kind:
    """The type of a tensor of the source."""
    return Kind[tensor.type_name]
