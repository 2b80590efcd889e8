"""The metadata of a GGUF as the bytes that it is stored in: copied untouched where nothing is to be changed.

Knows the container's layout. Reading a vocabulary of 150,000 tokens into Python and writing it again would cost
seconds and hundreds of megabytes, and would have to preserve every value's type. The file was checked by
``gguf_header.read_header`` before, so lengths are trusted here.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gguf import GGUFValueType

from edge_embed.types import Float32Array

from .entries import KeyValue
from .output import ALIGNMENT, OutputTensor, padded

_STRING, _ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
_SCALARS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip
_SIZES = {int(kind): struct.calcsize(code) for kind, code in _SCALARS.items()}


def read_entries(path: Path) -> dict[str, bytes]:
    """Key -> the whole entry (key, type, value) of a GGUF that was checked, in the file's order."""
    entries = {}
    with path.open("rb") as file:

        def number(code: str) -> int:
            return int(struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0])

        def skip_strings(count: int) -> None:
            for _ in range(count):
                file.seek(number("Q"), 1)

        file.seek(16)
        for _ in range(number("Q")):
            start = file.tell()
            key = file.read(number("Q")).decode()
            kind = number("I")
            if kind == _STRING:
                skip_strings(1)
            elif kind == _ARRAY:
                items, length = number("I"), number("Q")
                if items == _STRING:
                    skip_strings(length)
                else:
                    file.seek(length * _SIZES[items], 1)
            else:
                file.seek(_SIZES[kind], 1)
            end = file.tell()
            file.seek(start)
            entries[key] = file.read(end - start)
    return entries


def encode_entry(entry: KeyValue) -> bytes:
    """One entry as it is stored."""
    key = _string(entry.key)
    if isinstance(entry.value, (list, tuple)):
        items = b"".join(_value(value, entry.kind) for value in entry.value)
        return key + struct.pack("<IIQ", _ARRAY, int(entry.kind), len(entry.value)) + items
    return key + struct.pack("<I", int(entry.kind)) + _value(entry.value, entry.kind)


def encode_floats(key: str, values: Float32Array) -> bytes:
    """An array of float32, in row-major order, as it is stored; millions of them make no list."""
    head = struct.pack("<IIQ", _ARRAY, int(GGUFValueType.FLOAT32), values.size)
    return _string(key) + head + values.astype("<f4", copy=False).tobytes()


def replace_entries(
    entries: Mapping[str, bytes], changes: Sequence[KeyValue], *, after: str, drop: Iterable[str] = ()
) -> list[bytes]:
    """The entries with some replaced where they stand, new ones put behind ``after`` (or at the end), some dropped."""
    changed = {entry.key: encode_entry(entry) for entry in changes}
    new = [data for key, data in changed.items() if key not in entries]
    dropped = set(drop) - changed.keys()
    result: list[bytes] = []
    for key, data in entries.items():
        if key not in dropped:
            result.append(changed.get(key, data))
        if key == after:
            result += new
            new = []
    return result + new


def encode_head(entries: Sequence[bytes], tensors: Sequence[OutputTensor]) -> bytes:
    """Everything in front of the tensors' data, without the padding that follows it."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries)), *entries]
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", int(tensor.kind), offset))
        offset += padded(tensor.nbytes)
    return b"".join(parts)


def file_size(head: bytes, tensors: Sequence[OutputTensor]) -> int:
    """Bytes of the file that has this head."""
    assert ALIGNMENT == 32, "padded() aligns the head as well"
    return padded(len(head)) + sum(padded(tensor.nbytes) for tensor in tensors)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: object, kind: GGUFValueType) -> bytes:
    if kind == GGUFValueType.STRING:
        return _string(str(value))
    return struct.pack("<" + _SCALARS[kind], value)
