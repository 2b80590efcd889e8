"""The table of contents of a GGUF file, read strictly: metadata and tensor directory, never tensor data.

The engine ends the process on some malformed files, so every count, length and offset is checked here first, against
the bytes that are really there. What the metadata means is ``model_info``'s business.

Format: a little-endian header (magic ``GGUF``, version, counts), key-value pairs, tensor infos, padding, tensor data.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edge_embed.errors import ModelFileError, ModelNotFoundError

# id -> (name, values per block, bytes per block). Source: ggml.h / ggml-common.h; compared with gguf-py by a test.
TENSOR_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip

_SCALARS: Final[dict[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY, _BOOL = 8, 9, 7
_MAX_KEY_BYTES, _MAX_NAME_BYTES, _MAX_DIMS = 65535, 63, 4
# Far more than any model has. What is read becomes Python objects of many times the bytes in the file.
_MAX_ENTRIES, _MAX_ITEMS = 1 << 16, 1 << 25
_MIN_KV_BYTES, _MIN_TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the tensor directory.

    Attributes:
        name: e.g. ``blk.0.attn_q.weight``.
        shape: ggml order, the contiguous axis first: a ``[rows, columns]`` matrix is ``(columns, rows)``.
        type_name: e.g. ``Q8_0``.
        n_bytes: size of its data.
        offset: where in the file its data begins.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensor directory of one file.

    Attributes:
        path: the file.
        size_bytes: its size.
        metadata: key -> int, float, bool, str, or a list of one of these.
        tensors: name -> entry.
        kinds: key -> GGUF's number of its type, for what is handed to code that does not ask.
    """

    path: Path
    size_bytes: int
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    kinds: dict[str, int] = field(default_factory=dict, repr=False)


def read_header(path: str | Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: it is not a whole, well-formed little-endian GGUF of version 2 or 3.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(
            f"there is no model file at {path}", hint="`edge-embed list` shows the models that are known"
        )
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise _MalformedError(f"{size} bytes are too few for a header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(data, size)
                metadata, tensors = reader.read()
    except _MalformedError as error:
        raise ModelFileError(f"{path} is not a sound GGUF file: {error}", hint="download or convert it again") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    return GgufHeader(path, size, metadata, tensors, reader.kinds)


class _MalformedError(Exception):
    """What is wrong with the bytes; becomes a ModelFileError that names the file."""


class _Reader:
    """A cursor over the bytes. Every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 0
        self.kinds: dict[str, int] = {}

    def read(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        magic = self._take(4)
        if magic != b"GGUF":
            raise _MalformedError(f"it begins with {magic!r} instead of b'GGUF'")
        version = self._scalar("I")
        if version not in (2, 3):
            what = "a big-endian file" if version in (2 << 24, 3 << 24) else f"version {version}"
            raise _MalformedError(f"{what} is not supported (little-endian version 2 or 3 is)")
        n_tensors, n_kv = self._scalar("Q"), self._scalar("Q")
        if n_kv > self._left // _MIN_KV_BYTES or n_tensors > self._left // _MIN_TENSOR_BYTES:
            raise _MalformedError(f"it announces {n_kv} keys and {n_tensors} tensors, more than fit into the file")
        if max(n_kv, n_tensors) > _MAX_ENTRIES:
            raise _MalformedError(f"it announces {n_kv} keys and {n_tensors} tensors, more than {_MAX_ENTRIES}")
        metadata: dict[str, Any] = {}
        for _ in range(n_kv):
            key = self._string("a key", _MAX_KEY_BYTES)
            if not key:
                raise _MalformedError("a key is empty")
            if key in metadata:
                raise _MalformedError(f"the key {key!r} occurs twice")
            self.kinds[key] = self._scalar("I")
            metadata[key] = self._value(key, self.kinds[key])
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 8 or alignment > 1 << 20 or alignment & (alignment - 1):
            raise _MalformedError(f"general.alignment is {alignment!r}, not a power of two of at least 8")
        entries = [self._tensor_info() for _ in range(n_tensors)]
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for info, offset in entries:
            if info.name in tensors:
                raise _MalformedError(f"the tensor {info.name!r} occurs twice")
            if offset != expected:
                raise _MalformedError(f"tensor {info.name!r} begins at {offset}, where {expected} was expected")
            if start + offset + info.n_bytes > self._size:
                missing = start + offset + info.n_bytes - self._size
                raise _MalformedError(
                    f"tensor {info.name!r} ends {missing} bytes behind the end: the file is truncated"
                )
            expected = -(-(offset + info.n_bytes) // alignment) * alignment
            tensors[info.name] = replace(info, offset=start + offset)
        return metadata, tensors

    @property
    def _left(self) -> int:
        return self._size - self._at

    def _take(self, n: int) -> bytes:
        if n > self._left:
            raise _MalformedError(f"it ends in the middle of its header, at byte {self._size}")
        chunk = self._data[self._at : self._at + n]
        self._at += n
        return chunk

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self, what: str, limit: int | None = None) -> str:
        length = self._scalar("Q")
        if limit is not None and length > limit:
            raise _MalformedError(f"{what} of {length} bytes is longer than {limit}")
        return _decode(self._take(length), what)

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self._bools(key, self._take(1))[0] if kind == _BOOL else self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string(f"the value of {key!r}")
        if kind == _ARRAY:
            return self._array(key)
        raise _MalformedError(f"{key!r} has the unknown value type {kind}")

    def _array(self, key: str) -> Sequence[Any]:
        kind, length = self._scalar("I"), self._scalar("Q")
        if kind != _STRING and kind not in _SCALARS:
            raise _MalformedError(f"{key!r} is an array of the unsupported type {kind}")
        code = _SCALARS.get(kind, "Q")  # a string begins with its length
        if length > self._left // struct.calcsize(code):
            raise _MalformedError(f"{key!r} announces {length} values, more than fit into the file")
        if length > _MAX_ITEMS:
            raise _MalformedError(f"{key!r} has {length} values, more than {_MAX_ITEMS}")
        if kind == _STRING:
            return self._strings(key, length)
        if kind == _BOOL:
            return self._bools(key, self._take(length))
        return list(struct.unpack(f"<{length}{code}", self._take(length * struct.calcsize("<" + code))))

    def _strings(self, key: str, length: int) -> list[str]:
        data, at, size, result = self._data, self._at, self._size, []
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(length):  # the hot loop: 300,000 rounds for a Qwen3 vocabulary
            if at + 8 > size:
                raise _MalformedError(f"it ends inside the array {key!r}")
            end = at + 8 + unpack(data, at)[0]
            if end > size:
                raise _MalformedError(f"a string of {key!r} is longer than the file")
            result.append(data[at + 8 : end])
            at = end
        self._at = at
        try:
            return [raw.decode() for raw in result]
        except UnicodeDecodeError:
            return [
                raw.decode("utf-8", errors="replace") for raw in result
            ]  # byte-level vocabularies of old converters

    def _bools(self, key: str, raw: bytes) -> list[bool]:
        if raw.strip(b"\0\1"):
            raise _MalformedError(f"{key!r} holds a byte that is neither true nor false")
        return [byte == 1 for byte in raw]

    def _tensor_info(self) -> tuple[TensorInfo, int]:
        name = self._string("a tensor name", _MAX_NAME_BYTES)
        n_dims = self._scalar("I")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise _MalformedError(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(n_dims))
        type_id, offset = self._scalar("I"), self._scalar("Q")
        if type_id not in TENSOR_TYPES:
            raise _MalformedError(f"tensor {name!r} has the unknown type {type_id}")
        type_name, block, block_bytes = TENSOR_TYPES[type_id]
        n_values = 1
        for dim in shape:
            n_values *= dim
        if n_values == 0 or n_values >= 1 << 48:
            raise _MalformedError(f"tensor {name!r} has the impossible shape {shape}")
        if shape[0] % block:
            raise _MalformedError(
                f"tensor {name!r} of type {type_name} has rows of {shape[0]}, not a multiple of {block}"
            )
        return TensorInfo(name, shape, type_name, n_values // block * block_bytes), offset


def _decode(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _MalformedError(f"{what} is not UTF-8") from None
