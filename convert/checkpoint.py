"""A checkpoint folder: its JSON files and its safetensors, checked, read lazily.

Knows files, JSON fields, the safetensors container and numeric dtypes. Knows nothing of architectures,
tokenizers or GGUF. Nothing in the folder is trusted and nothing in it is executed: names may not leave the
folder, sizes are checked before they are used, pickle is refused.

Tensors are read by seek and read under a lock rather than through a memory map: resident memory then stays
bounded by the chunks in flight, and a file that shrinks while it is read is an error, not a SIGBUS.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeGuard, TypeVar

import numpy as np

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.types import Float32Array

MAX_JSON_BYTES = 256 * 2**20  # the largest tokenizer.json in use is about 35 MB
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
READABLE = ("F32", "F16", "BF16")
ADAPTER_CONFIG = "adapter_config.json"
Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what they belong to)."""
_Opened = TypeVar("_Opened", bound="Weights")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor lies. ``shape`` is row-major, ``offset`` counts from the start of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def n_cols(self) -> int:
        """Values of one row: the last dimension (a 1-D tensor is one row)."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1]) if self.shape else 1


class Fields:
    """A JSON object whose fields are read with their type and range; every error names file and field."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values = values
        self.file = file

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, *, low: int = 0, high: int = 2**31 - 1, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, *, low: float, high: float, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.error(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def mapping(self, key: str, default: Mapping[str, Any] | None = None) -> Fields:
        value = self._value(key, default)
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return Fields(value, f"{self.file}: {key}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.file}: the field {key!r} is missing")
        return value

    def error(self, key: str, expected: str) -> CheckpointError:
        """The error that says what a field is and what was expected."""
        return CheckpointError(f"{self.file}: {key!r} is {short(self.values.get(key))}, expected {expected}")


class Weights:
    """Safetensors files of one folder: ``tensors`` by name, read in chunks of rows; ``close()`` closes the files.

    Attributes:
        folder: where the files lie.
        tensors: every tensor of every file.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        """Read the headers of the files.

        Raises:
            CheckpointError: a file is missing, truncated or corrupt, or a tensor is in two of them.
        """
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._lock = threading.Lock()
        self.tensors: dict[str, TensorRef] = {}
        try:
            for file in files:
                for ref in self._read_header(file):
                    if ref.name in self.tensors:
                        raise CheckpointError(f"{file}: tensor {ref.name!r} is also in another shard")
                    self.tensors[ref.name] = ref
        except BaseException:
            self.close()
            raise

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(ref.nbytes for ref in self.tensors.values())

    def read_rows(self, ref: TensorRef, first: int, count: int) -> Float32Array:
        """Rows ``first .. first+count`` as float32 ``[count, n_cols]``; bf16 and f16 are widened exactly.

        Raises:
            CheckpointError: the file ended early, or a value is NaN or infinite (the message names the row).
        """
        assert ref.dtype in READABLE, "the plan has no others"
        row_bytes = ref.n_cols * ITEM_BYTES[ref.dtype]
        data = bytearray(count * row_bytes)
        try:
            with self._lock:
                file = self._files[ref.file]
                file.seek(ref.offset + first * row_bytes)
                n_read = file.readinto(data)  # type: ignore[attr-defined]  # a BufferedReader has it
        except OSError as error:
            raise CheckpointError(f"{ref.file}: cannot be read: {error}") from error
        if n_read != len(data):
            raise CheckpointError(f"{ref.file}: ended inside tensor {ref.name!r}")
        values = widen(data, ref.dtype).reshape(count, ref.n_cols)
        if not np.isfinite(values).all():
            row = first + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise CheckpointError(f"{ref.file}: tensor {ref.name!r} has NaN or infinity in row {row}")
        return values

    def sha256(self, progress: Progress | None = None) -> str:
        """Digest of the weights: of the file where there is one, else of the lines ``digest  name`` of the shards.

        Two shards are read at a time: one core hashes more slowly than a good disk reads.
        """
        names = sorted(self._files)
        total, done, lock = sum((self.folder / name).stat().st_size for name in names), 0, threading.Lock()
        stopped = threading.Event()

        def digest_of(name: str) -> str:
            nonlocal done
            digest = hashlib.sha256()
            with (self.folder / name).open("rb") as file:
                while not stopped.is_set() and (chunk := file.read(2**18)):
                    digest.update(chunk)
                    with lock:
                        done += len(chunk)
                        if progress is not None:
                            progress(done, total, name)
            return digest.hexdigest()

        with ThreadPoolExecutor(2, thread_name_prefix="sha256") as pool:
            try:
                digests = list(pool.map(digest_of, names))
            except OSError as error:
                raise CheckpointError(f"{error.filename or self.folder} cannot be read: {error}") from error
            finally:
                stopped.set()  # on an interrupt the other shard need not be read to its end
        lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
        return lines[0][:64] if len(lines) == 1 else hashlib.sha256("".join(lines).encode()).hexdigest()

    def _read_header(self, name: str) -> list[TensorRef]:
        try:
            file = (self.folder / name).open("rb")
        except FileNotFoundError:
            raise CheckpointError(f"{name} is missing", hint="the download is incomplete") from None
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error}") from error
        self._files[name] = file
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{name} is truncated or not a safetensors file: {size} bytes")
        header = parse_json(file.read(length), name)
        start = 8 + length
        header.pop("__metadata__", None)
        refs = [_tensor_ref(tensor, entry, name, start, size) for tensor, entry in header.items()]
        end = start
        for ref in sorted(refs, key=lambda r: (r.offset, r.nbytes)):
            if ref.offset != end:
                raise CheckpointError(f"{name}: tensor {ref.name!r} overlaps another or leaves a hole")
            end += ref.nbytes
        if end != size:
            raise CheckpointError(f"{name}: {size - end} bytes belong to no tensor")
        return refs


class Checkpoint(Weights):
    """An opened folder: ``config`` and ``tensors`` by name; ``close()`` (or ``with``) closes the weight files.

    Attributes:
        folder: where the weights, config.json and tokenizer lie.
        config: config.json.
        tensors: every tensor of every shard.
        notes: what was decided while opening it, one sentence each.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        """Read config.json and the headers of the weights.

        Raises:
            CheckpointError: a file is missing, truncated or corrupt.
            UnsupportedCheckpointError: only pickled weights, or an adapter without its base.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder", hint="pass the folder of a downloaded checkpoint")
        if (folder / ADAPTER_CONFIG).is_file():
            raise UnsupportedCheckpointError(
                f"{folder.name} is an adapter ({ADAPTER_CONFIG}), not a whole model",
                hint="convert its base model with --merge-lora ADAPTER, or the adapter itself with --base DIR",
            )
        self.config = read_json(folder, "config.json")
        index = _index(folder)
        super().__init__(folder, sorted(set(index.values())) if index else [_single_file(folder)])
        try:
            for name, file in index.items():
                if name not in self.tensors or self.tensors[name].file != file:
                    raise CheckpointError(f"{file}: tensor {name!r} is in the index but not in the file")
        except BaseException:
            self.close()
            raise

    def json(self, name: str) -> Fields:
        """A JSON object of the folder; CheckpointError where it is missing or malformed."""
        return read_json(self.folder, name)

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> shard, as the index of the shards says; empty where there is one file."""
    if (folder / "model.safetensors").is_file() or not (folder / "model.safetensors.index.json").is_file():
        return {}
    weight_map = read_json(folder, "model.safetensors.index.json").mapping("weight_map")
    for tensor, file in weight_map.values.items():
        if not isinstance(file, str) or not is_plain_name(file) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{weight_map.file}: tensor {tensor!r} is said to be in {short(file)}, "
                "expected the name of a .safetensors file of the folder"
            )
    if not weight_map.values:
        raise CheckpointError(f"{weight_map.file} is empty")
    return dict(weight_map.values)


def _single_file(folder: Path) -> str:
    if (folder / "model.safetensors").is_file():
        return "model.safetensors"
    pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        raise UnsupportedCheckpointError(
            f"{folder.name} has its weights only as pickle ({pickles[0]}); loading a pickle runs "
            "whatever code is in it, so it is refused",
            hint="save the model as safetensors where you trust it: model.save_pretrained(folder)",
        )
    raise CheckpointError(f"{folder.name}: model.safetensors is missing, and so is its index")


def _tensor_ref(name: str, entry: Any, file: str, start: int, size: int) -> TensorRef:
    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{file}: tensor {name!r}: {what}")

    if not isinstance(entry, dict):
        raise bad("its header entry is not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise bad(f"unknown dtype {short(dtype)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise bad("its shape or offsets are not lists of non-negative integers")
    begin, end = offsets
    if end < begin or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise bad(f"its {end - begin} bytes do not fit shape {shape} of {dtype}")
    if start + end > size:
        raise bad(f"ends at byte {start + end}, and the file has {size}: the file is truncated")
    return TensorRef(name, file, dtype, tuple(shape), start + begin, end - begin)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= 8 and all(type(v) is int and 0 <= v < 2**48 for v in value)


def widen(data: bytes | bytearray, dtype: str) -> Float32Array:
    """Little-endian numbers of a dtype of ``READABLE`` as float32 ``[n]``, exactly; a view of ``data`` for F32."""
    if dtype == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    # bfloat16 is the upper half of a float32.
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def is_plain_name(name: str) -> bool:
    """Whether this is the name of a file in a folder and not a way out of it, on any system."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0")


def is_inner_path(path: str) -> bool:
    """Whether a relative path with forward slashes stays inside its folder; the empty path does."""
    return not path.startswith("/") and all(is_plain_name(part) for part in PurePosixPath(path).parts)


class _Short(reprlib.Repr):
    """``repr`` with bounds on length and depth: a value nested deep enough would exhaust the stack of repr itself."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist = 8, 16, 16
        self.maxstring = self.maxlong = limit


def short(value: Any, limit: int = 80) -> str:
    """A value from a file, quoted for a message."""
    text = _Short(limit).repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can carry it: no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(folder: Path, name: str) -> Fields:
    """The JSON object in ``folder/name``; CheckpointError where it is missing, too large or malformed."""
    return Fields(parse_json(_read_file(folder, name), name), name)


def read_text(folder: Path, name: str) -> str:
    """The text of ``folder/name``; CheckpointError where it is missing, too large or not UTF-8."""
    try:
        return _read_file(folder, name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name} is not UTF-8: {error}") from error


def read_json_list(folder: Path, name: str) -> list[Any]:
    """The JSON array in ``folder/name``; CheckpointError where it is missing, too large or malformed."""
    value = _parse(_read_file(folder, name), name)
    if not isinstance(value, list):
        raise CheckpointError(f"{name} is not a JSON array")
    return value


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object from bytes; ``name`` is for messages."""
    value = _parse(data, name)
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is not a JSON object")
    return value


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{name} is larger than {MAX_JSON_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{name} is missing in {folder.name}", hint="the download is incomplete") from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error}") from error


def _parse(data: bytes, name: str) -> Any:
    try:
        value = json.loads(data.decode("utf-8"))
        if _SURROGATE.search(data):  # JSON can spell half of a pair, which no encoding carries
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not valid JSON: {error}") from error
    return value
