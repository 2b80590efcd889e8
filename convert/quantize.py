"""A GGUF into a GGUF of another type, tensor by tensor in bounded memory, with all of its metadata.

The metadata is copied as the bytes that it is stored in, save what is no longer true: the file type, the recipe, the
fall-backs, figures of a verification. So a file quantized from the float32 GGUF of a checkpoint is, byte for byte,
the file that converting the checkpoint without a verification gives.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from edge_embed import keys
from edge_embed.errors import InvalidOptionError
from edge_embed.gguf_header import TensorInfo
from edge_embed.types import Float32Array

from .blocks import ggml
from .blocks.rows import encode_rows, tensor_bytes
from .blocks.types import EXACT, Recipe, TensorType, Traits, is_quantizable, override_notes, recipe_named, tensor_type
from .calibrate.imatrix import ImportanceMatrix, read_imatrix, weights_for
from .checkpoint import Progress
from .container.entries import KeyValue, text, texts, uint
from .container.output import GGUFOutput, OutputTensor
from .container.raw import encode_head, file_size, replace_entries
from .gguf_source import GGUFSource, kind_of
from .writing import ConversionReport, TensorSource, fallback_lines, make_report, output_path, write_tensors

_NO_LONGER_TRUE = (keys.FALLBACKS, keys.MEASURED, "general.alignment")  # written anew where they hold


@dataclass(frozen=True, slots=True)
class OutputPlan:
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
    infos: tuple[OutputTensor, ...]

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
) -> OutputPlan:
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
        OutputTensor(tensor.name, tensor.shape[::-1], kind.got, tensor_bytes(kind.got, tensor.shape[::-1]))
        for tensor, kind in zip(source.tensors, types, strict=True)
    )
    used_matrix = matrix if weights else None
    head = encode_head(_metadata(source, recipe, fallback_lines(names, types), used_matrix, extra), infos)
    notes += weight_notes + override_notes(
        recipe, [info.name for info in infos if is_quantizable(info.name, info.shape)]
    )
    return OutputPlan(source, recipe, types, weights, notes, head, infos)


def write_file(plan: OutputPlan, path: Path, *, threads: int = 2, progress: Progress | None = None) -> ConversionReport:
    """Write what was planned, whole or not at all.

    Raises:
        CheckpointError: a value is not finite or does not fit its type.
        OutputFileError: the file cannot be written.
    """
    started = time.perf_counter()
    source = plan.source
    sources = [
        TensorSource(info, tensor.n_bytes, partial(_encoded, plan, tensor, info.kind))
        for tensor, info in zip(source.tensors, plan.infos, strict=True)
    ]
    with GGUFOutput(path, source.arch, (), plan.infos, head=plan.head) as file:
        write_tensors(file, sources, threads=threads, progress=progress)
    return make_report(
        path, source.arch, source.name, plan.recipe, plan.infos, plan.types, (), plan.notes, file, started
    )


def _encoded(plan: OutputPlan, tensor: TensorInfo, kind: Kind, first: int, count: int) -> bytes:
    """Rows of a tensor of the source: as they are stored where the type stays, else encoded anew."""
    source = plan.source
    if kind_of(tensor) == kind:
        return source.bytes_of(tensor, first, count)
    where = f"{source.path}: tensor {tensor.name!r}"
    return encode_rows(source.rows(tensor, first, count), kind, where, plan.weights.get(tensor.name))


def _type_of(recipe: Recipe, tensor: TensorInfo, traits: Traits) -> TensorType:
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
