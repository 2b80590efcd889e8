"""The spine: a checkpoint folder in, one GGUF out.

checkpoint -> family -> settings and vocabulary -> a type for each tensor -> header -> each tensor's rows,
quantized in chunks, straight into the file. One pass, no intermediate file, bounded memory. The same input and
options give the same bytes, whatever the number of threads: nothing of the clock, the machine or the path is
written (the default name is the folder's).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge_embed import keys
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Pooling

from . import ggml
from .architectures import family_of
from .architectures.family import (
    KeyValue,
    PlannedTensor,
    SkippedTensor,
    flag,
    plan_tensors,
    text,
    texts,
    uint,
)
from .checkpoint import Checkpoint, is_encodable
from .container import GGUFOutput, TensorInfo
from .modules import Settings, are_dimensions, read_modules, read_settings
from .quantize import Recipe, TensorType, chunks, encode_rows, in_order, recipe_named, tensor_bytes, tensor_type
from .vocab import Vocabulary, read_vocabulary

Progress = Callable[[int, int, str], None]
"""Called with (values done, values in all, tensor's name) as chunks are written."""

_POOLING_TYPES: dict[Pooling, int] = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama.h


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor: row-major shape, the type asked for, the type it got, why where they differ, and its bytes."""

    name: str
    shape: tuple[int, ...]
    asked: str
    got: str
    why: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        path: the file.
        architecture: ``general.architecture``.
        name: ``general.name``.
        ftype: the type asked for.
        tensors: those written, in the file's order.
        skipped: those left out, with the reason.
        notes: what was decided without the checkpoint saying so, one sentence each.
        n_parameters: values in the tensors written.
        size_bytes: size of the file.
        bits_per_weight: of the tensors, without the metadata.
        sha256: digest of the file.
        seconds: wall time.
    """

    path: Path
    architecture: str
    name: str
    ftype: str
    tensors: tuple[TensorReport, ...]
    skipped: tuple[SkippedTensor, ...]
    notes: tuple[str, ...]
    n_parameters: int
    size_bytes: int
    bits_per_weight: float
    sha256: str
    seconds: float

    @property
    def fallbacks(self) -> tuple[TensorReport, ...]:
        """The tensors that did not get the type that was asked for."""
        return tuple(t for t in self.tensors if t.why)


def convert(
    source: Path | str,
    output: Path | str | None = None,
    *,
    ftype: str = "q8_0",
    overrides: Sequence[tuple[str, str]] = (),
    name: str | None = None,
    license: str | None = None,  # noqa: A002 - the field's word, and what the metadata calls it
    repository: str | None = None,
    revision: str | None = None,
    pooling: Pooling | None = None,
    mrl_dimensions: Sequence[int] = (),
    threads: int = 2,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a local checkpoint folder into one GGUF.

    Args:
        source: folder with config.json, tokenizer.json and safetensors, as ``save_pretrained`` writes it.
        output: file to write, or a folder for it; ``<name>-<TYPE>.gguf`` in the working directory by default.
            An existing file is replaced, and only by a whole one.
        ftype: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, q4_0 or q3_k_m, in any case.
        overrides: pairs of a regular expression and a type (``("attn_v", "f16")``): matrices whose GGUF name it is
            found in get that type instead; the first that matches counts.
        name: ``general.name``; the folder's name by default.
        license: ``general.license``, an SPDX identifier.
        repository: where the weights come from, ``organization/model``.
        revision: the commit of that repository.
        pooling: mean, cls or last, for a checkpoint that does not say (one without modules.json).
        mrl_dimensions: sizes that the model was trained to be cut to, where the checkpoint does not say.
        threads: how many threads quantize.
        progress: called as chunks are written.

    Returns:
        What became of every tensor, and the totals.

    Raises:
        CheckpointError: something in the folder is missing, malformed or not finite.
        UnsupportedCheckpointError: the model would not be computed faithfully.
        InvalidOptionError: an unknown type, or an option that contradicts the checkpoint.
        OutputFileError: the file cannot be written.
        EngineUnavailableError: ggml's quantizers are missing (not needed for f32, f16 and bf16).
    """
    started = time.perf_counter()
    folder = Path(source)
    recipe = recipe_named(ftype, overrides)
    if threads < 1:
        raise InvalidOptionError(f"threads is {threads}, expected 1 or more")
    title = name or folder.resolve().name
    _check_texts(name=title, license=license, repository=repository, revision=revision)
    modules = read_modules(folder)
    with Checkpoint(modules.transformer) as checkpoint:
        family = family_of(checkpoint.config)
        hyper = family.hyper(checkpoint.config)
        planned, skipped = plan_tensors(family, hyper, checkpoint.tensors)
        vocabulary = read_vocabulary(checkpoint, family.tokenizer, hyper.n_rows)
        settings = read_settings(
            folder,
            modules,
            checkpoint,
            n_embd=hyper.n_embd,
            max_positions=hyper.max_positions,
            default_pooling=family.default_pooling,
            asked_pooling=pooling,
            lowercase=vocabulary.lowercase,
        )
        types = [tensor_type(recipe, tensor.name, tensor.ref.shape, hyper.n_layer) for tensor in planned]
        for kind in sorted({t.got for t in types if t.got.name.startswith("Q")}):
            ggml.prepare(kind)  # a missing library is found before anything is written

        if not are_dimensions(list(mrl_dimensions), hyper.n_embd):
            raise InvalidOptionError(f"mrl_dimensions {mrl_dimensions!r} are not integers from 1 to {hyper.n_embd}")
        dimensions = tuple(sorted(set(mrl_dimensions))) or settings.mrl_dimensions
        key_values = [
            *_general(recipe, title, license),
            *hyper.key_values,
            uint(f"{family.arch}.pooling_type", _POOLING_TYPES[settings.pooling]),
            *vocabulary.key_values,
            *_own(settings, dimensions),
            *_provenance(recipe, planned, types, checkpoint.sha256(), repository, revision),
        ]
        infos = [
            TensorInfo(t.name, t.ref.shape, kind.got, tensor_bytes(kind.got, t.ref.shape))
            for t, kind in zip(planned, types, strict=True)
        ]
        path = _output_path(output, f"{title}-{recipe.name.upper()}.gguf".replace("/", "-"))
        with GGUFOutput(path, family.arch, key_values, infos) as file:
            _write_tensors(file, checkpoint, planned, types, threads, progress)
    return _report(path, family.arch, title, recipe, infos, types, skipped, settings, vocabulary, file, started)


def _write_tensors(
    file: GGUFOutput,
    checkpoint: Checkpoint,
    planned: Sequence[PlannedTensor],
    types: Sequence[TensorType],
    threads: int,
    progress: Progress | None,
) -> None:
    """Read, quantize and write every tensor, chunk by chunk, in the table's order."""
    steps = [
        (index, first, count)
        for index, tensor in enumerate(planned)
        for first, count in chunks(tensor.ref.n_rows, tensor.ref.n_cols)
    ]

    def encode(index: int, first: int, count: int) -> bytes:
        ref = planned[index].ref
        rows = checkpoint.read_rows(ref, first, count)
        return encode_rows(rows, types[index].got, f"{ref.file}: tensor {ref.name!r}")

    def jobs() -> Iterator[Callable[[], bytes]]:
        for step in steps:
            yield partial(encode, *step)

    total = sum(t.ref.n_rows * t.ref.n_cols for t in planned)
    done = 0
    # Closed here and not when it is collected: after an error no thread may read on from files that are closed.
    with contextlib.closing(in_order(jobs(), threads)) as results:
        for (index, first, count), data in zip(steps, results, strict=True):
            tensor = planned[index]
            file.write(data)
            if first + count == tensor.ref.n_rows:
                file.pad()
            done += count * tensor.ref.n_cols
            if progress is not None:
                progress(done, total, tensor.name)


def _general(recipe: Recipe, title: str, license_id: str | None) -> list[KeyValue]:
    entries = [text("general.type", "model"), text("general.name", title)]
    if license_id:
        entries.append(text("general.license", license_id))
    return [
        *entries,
        uint("general.file_type", int(recipe.file_type)),
        uint("general.quantization_version", 2),  # GGML_QNT_VERSION of ggml.h
    ]


def _own(settings: Settings, dimensions: Sequence[int]) -> list[KeyValue]:
    """What the runtime needs and the standard has no key for."""
    entries = [
        uint(keys.VERSION, 1),
        uint(keys.MAX_TOKENS, settings.max_tokens),
        flag(keys.NORMALIZE, settings.normalize),
        *(text(keys.PROMPT + name, prompt) for name, prompt in settings.prompts.items()),
    ]
    if settings.default_prompt_name is not None:
        entries.append(text(keys.DEFAULT_PROMPT_NAME, settings.default_prompt_name))
    if settings.instruction_template is not None:
        entries.append(text(keys.INSTRUCTION_TEMPLATE, settings.instruction_template))
    if dimensions:
        entries.append(KeyValue(keys.MRL_DIMENSIONS, list(dimensions), uint("", 0).kind))
    return entries


def _provenance(
    recipe: Recipe,
    planned: Sequence[PlannedTensor],
    types: Sequence[TensorType],
    source_sha256: str,
    repository: str | None,
    revision: str | None,
) -> list[KeyValue]:
    fallbacks = [
        f"{tensor.name}: {kind.asked.name} -> {kind.got.name} ({kind.why})"
        for tensor, kind in zip(planned, types, strict=True)
        if kind.why
    ]
    entries = [text(keys.RECIPE, recipe.label), text(keys.SOURCE_SHA256, source_sha256)]
    if fallbacks:
        entries.append(texts(keys.FALLBACKS, fallbacks))
    if repository:
        entries.append(text(keys.SOURCE_REPOSITORY, repository))
    if revision:
        entries.append(text(keys.SOURCE_REVISION, revision))
    return entries


def _check_texts(**options: str | None) -> None:
    """Refuse what UTF-8 cannot carry (a folder's undecodable name, too) and what C would end early."""
    for option, value in options.items():
        if value is not None and ("\0" in value or not is_encodable(value)):
            raise InvalidOptionError(f"{option} {value!r} holds a character that a GGUF cannot")


def _output_path(output: Path | str | None, default_name: str) -> Path:
    path = Path.cwd() if output is None else Path(output)
    return path / default_name if path.is_dir() else path


def _report(
    path: Path,
    architecture: str,
    title: str,
    recipe: Recipe,
    infos: Sequence[TensorInfo],
    types: Sequence[TensorType],
    skipped: tuple[SkippedTensor, ...],
    settings: Settings,
    vocabulary: Vocabulary,
    file: GGUFOutput,
    started: float,
) -> ConversionReport:
    tensors = tuple(
        TensorReport(info.name, info.shape, kind.asked.name, kind.got.name, kind.why, info.nbytes)
        for info, kind in zip(infos, types, strict=True)
    )
    n_parameters = sum(math.prod(t.shape) for t in tensors)
    return ConversionReport(
        path=path,
        architecture=architecture,
        name=title,
        ftype=recipe.label,
        tensors=tensors,
        skipped=skipped,
        notes=settings.notes + vocabulary.notes,
        n_parameters=n_parameters,
        size_bytes=file.size,
        bits_per_weight=8 * sum(t.nbytes for t in tensors) / n_parameters,
        sha256=file.sha256(),
        seconds=time.perf_counter() - started,
    )
