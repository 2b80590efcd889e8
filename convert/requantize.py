"""A GGUF into a GGUF of another type, tensor by tensor in bounded memory, with all of its metadata.

The metadata is copied as the bytes that it is stored in, save what is no longer true: the file type, the recipe, the
fall-backs, figures of a verification. So a file quantized from the float32 GGUF of a checkpoint is, byte for byte,
the file that converting the checkpoint without a verification gives.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from edge_embed import keys
from edge_embed.errors import CheckpointError, InvalidOptionError, UnsupportedCheckpointError
from edge_embed.gguf_header import GgufHeader, read_header
from edge_embed.gguf_header import TensorInfo as SourceTensor
from edge_embed.types import Float32Array

from . import ggml
from .architectures import FAMILIES
from .architectures.family import KeyValue, text, texts, uint
from .checkpoint import Progress
from .container import GGUFOutput, TensorInfo
from .container_raw import encode_head, file_size, read_entries, replace_entries
from .convert import ConversionReport, fallback_lines, make_report, output_path
from .imatrix import ImportanceMatrix, read_imatrix, weights_for
from .quantize import (
    Recipe,
    TensorType,
    Traits,
    chunks,
    encode_rows,
    in_order,
    is_quantizable,
    override_notes,
    recipe_named,
    tensor_bytes,
    tensor_type,
)

EXACT = (Kind.F32, Kind.F16, Kind.BF16)
_ARCHITECTURES = frozenset(family.arch for family in FAMILIES)
_NO_LONGER_TRUE = (keys.FALLBACKS, keys.MEASURED, "general.alignment")  # written anew where they hold


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
        self.tensors: tuple[SourceTensor, ...] = tuple(self.header.tensors.values())
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

    def bytes_of(self, tensor: SourceTensor, first: int, count: int) -> bytes:
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

    def rows(self, tensor: SourceTensor, first: int, count: int) -> Float32Array:
        """The same as float32 ``[count, n_cols]``.

        Raises:
            CheckpointError: as above, or a value is NaN or infinite.
        """
        data, kind, n_cols = self.bytes_of(tensor, first, count), kind_of(tensor), tensor.shape[0]
        if kind == Kind.F32:
            values = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
        elif kind == Kind.F16:
            values = np.frombuffer(data, "<f2").astype(np.float32)
        elif kind == Kind.BF16:  # the upper half of a float32
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = ggml.dequantize(data, kind, n_cols)
        values = values.reshape(count, n_cols)
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file will be, before any of it is written.

    Attributes:
        source: what it is made of.
        recipe: the types that were asked for.
        types: the type of each tensor, in the source's order.
        weights: importance of the columns, by tensor.
        notes: what should be known, one sentence each.
        head: everything in front of the tensors' data.
        infos: the table of tensors.
    """

    source: GGUFSource
    recipe: Recipe
    types: tuple[TensorType, ...]
    weights: Mapping[str, Float32Array]
    notes: tuple[str, ...]
    head: bytes
    infos: tuple[TensorInfo, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return file_size(self.head, self.infos)


def quantize(
    source: Path | str,
    output: Path | str | None = None,
    *,
    ftype: str | Recipe = "q8_0",
    overrides: Sequence[tuple[str, str]] = (),
    imatrix: Path | str | None = None,
    allow_requantize: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write a GGUF again with another type.

    Args:
        source: a GGUF of an architecture that is converted, F32, F16 or BF16.
        output: file to write, or a folder for it; ``<name>-<TYPE>.gguf`` in the working directory by default.
            An existing file is replaced, and only by a whole one.
        ftype: as for ``convert``.
        overrides: as for ``convert``.
        imatrix: an importance matrix for this model.
        allow_requantize: take a source that is quantized already, whose errors then add to the new ones.
        threads: how many threads quantize.
        progress: called with (bytes of the source done, bytes in all, tensor's name).

    Raises:
        ModelNotFoundError, ModelFileError: no such file, or not a sound GGUF.
        UnsupportedCheckpointError: not a whole model of a known architecture.
        CheckpointError: a value is not finite or does not fit, or the importance matrix is of another model.
        InvalidOptionError: an unknown type, or a source that is quantized already.
        OutputFileError: the file cannot be written.
        EngineUnavailableError: ggml's quantizers are missing.
    """
    recipe = ftype if isinstance(ftype, Recipe) else recipe_named(ftype, overrides)
    if threads < 1:
        raise InvalidOptionError(f"threads is {threads}, expected 1 or more")
    matrix = None if imatrix is None else read_imatrix(imatrix)
    with GGUFSource(source) as opened:
        plan = plan_file(opened, recipe, matrix, allow_requantize=allow_requantize)
        path = output_path(output, f"{opened.name}-{recipe.name.upper()}.gguf".replace("/", "-"))
        return write_file(plan, path, threads=threads, progress=progress)


def plan_file(
    source: GGUFSource,
    recipe: Recipe,
    matrix: ImportanceMatrix | None = None,
    *,
    allow_requantize: bool = False,
    extra: Sequence[KeyValue] = (),
) -> Plan:
    """Decide every tensor's type, and what the metadata will say; ``extra`` entries are added to it.

    Raises:
        InvalidOptionError: a tensor would be quantized twice, and that was not allowed.
        CheckpointError: the importance matrix is of another model.
        EngineUnavailableError: ggml's quantizers are missing.
    """
    traits = Traits(source.traits.n_layer, source.traits.n_gqa, matrix is not None)
    types = tuple(_type_of(recipe, tensor, traits) for tensor in source.tensors)
    twice = [
        (tensor, kind)
        for tensor, kind in zip(source.tensors, types, strict=True)
        if kind_of(tensor) not in EXACT and kind_of(tensor) != kind.got
    ]
    notes: tuple[str, ...] = ()
    if twice:
        tensor, kind = twice[0]
        changes = f"{len(twice)} tensors ({tensor.name} from {tensor.type_name} to {kind.got.name}, ...)"
        if not allow_requantize:
            raise InvalidOptionError(
                f"{source.path} is quantized already, and {changes} would be quantized a second time",
                hint="quantize the F32, F16 or BF16 file, or convert the checkpoint; allow_requantize "
                "(--allow-requantize) does it all the same: the errors of both types add up",
            )
        notes = (f"{changes} were quantized a second time: the errors of both types add up",)
    names = [tensor.name for tensor in source.tensors]
    used = [
        (tensor.name, tensor.shape[0], kind.got)
        for tensor, kind in zip(source.tensors, types, strict=True)
        if kind_of(tensor) != kind.got
    ]
    weights, weight_notes = weights_for(matrix, used)
    for kind_needed in sorted({kind for _, _, kind in used if GGML_QUANT_SIZES[kind][0] > 1}):
        ggml.prepare(kind_needed)
    infos = tuple(
        TensorInfo(tensor.name, tensor.shape[::-1], kind.got, tensor_bytes(kind.got, tensor.shape[::-1]))
        for tensor, kind in zip(source.tensors, types, strict=True)
    )
    used_matrix = matrix if weights else None
    head = encode_head(_metadata(source, recipe, fallback_lines(names, types), used_matrix, extra), infos)
    notes += weight_notes + override_notes(
        recipe, [info.name for info in infos if is_quantizable(info.name, info.shape)]
    )
    return Plan(source, recipe, types, weights, notes, head, infos)


def write_file(plan: Plan, path: Path, *, threads: int = 2, progress: Progress | None = None) -> ConversionReport:
    """Write what was planned, whole or not at all.

    Raises:
        CheckpointError: a value is not finite or does not fit its type.
        OutputFileError: the file cannot be written.
    """
    started = time.perf_counter()
    source = plan.source
    steps = [
        (index, first, count)
        for index, info in enumerate(plan.infos)
        for first, count in chunks(_n_rows(info), info.shape[-1])
    ]

    def encode(index: int, first: int, count: int) -> bytes:
        tensor, kind = source.tensors[index], plan.types[index].got
        if kind_of(tensor) == kind:
            return source.bytes_of(tensor, first, count)
        where = f"{source.path}: tensor {tensor.name!r}"
        return encode_rows(source.rows(tensor, first, count), kind, where, plan.weights.get(tensor.name))

    def jobs() -> Iterator[Callable[[], bytes]]:
        for step in steps:
            yield partial(encode, *step)

    total = sum(tensor.n_bytes for tensor in source.tensors)
    done = 0
    with (
        GGUFOutput(path, source.arch, (), plan.infos, head=plan.head) as file,
        contextlib.closing(in_order(jobs(), threads)) as results,
    ):
        for (index, first, count), data in zip(steps, results, strict=True):
            tensor, n_rows = source.tensors[index], _n_rows(plan.infos[index])
            file.write(data)
            if first + count == n_rows:
                file.pad()
            done += count * (tensor.n_bytes // n_rows)
            if progress is not None:
                progress(done, total, tensor.name)
    return make_report(
        path, source.arch, source.name, plan.recipe, plan.infos, plan.types, (), plan.notes, file, started
    )


def kind_of(tensor: SourceTensor) -> Kind:
    """The type of a tensor of the source."""
    return Kind[tensor.type_name]


def _type_of(recipe: Recipe, tensor: SourceTensor, traits: Traits) -> TensorType:
    shape = tensor.shape[::-1]
    if not is_quantizable(tensor.name, shape):
        return TensorType(kind_of(tensor), kind_of(tensor))
    return tensor_type(recipe, tensor.name, shape, traits)


def _metadata(
    source: GGUFSource,
    recipe: Recipe,
    fallbacks: list[str],
    matrix: ImportanceMatrix | None,
    extra: Sequence[KeyValue],
) -> list[bytes]:
    entries = source.entries
    changes = [
        uint("general.file_type", int(recipe.file_type)),
        uint("general.quantization_version", 2),  # GGML_QNT_VERSION of ggml.h
        text(keys.RECIPE, recipe.label),
    ]
    if fallbacks:
        changes.append(texts(keys.FALLBACKS, fallbacks))
    changes += extra
    if matrix is not None:
        changes += matrix.key_values
    after = keys.SOURCE_LORA_SHA256 if keys.SOURCE_LORA_SHA256 in entries else keys.SOURCE_SHA256
    stale = [key for key in entries if key.startswith(keys.VERIFY)]
    if all(kind_of(tensor) in EXACT for tensor in source.tensors):  # no matrix had a part in any of its values
        stale += [key for key in entries if key.startswith("quantize.imatrix.") or key == keys.IMATRIX_SHA256]
    return replace_entries(entries, changes, after=after, drop=[*_NO_LONGER_TRUE, *stale])


def _n_rows(info: TensorInfo) -> int:
    return int(np.prod(info.shape[:-1], dtype=np.int64))
