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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edge_embed import keys
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array, Pooling

from . import ggml
from .architectures.family import (
    KeyValue,
    PlannedTensor,
    SkippedTensor,
    text,
    texts,
    uint,
)
from .checkpoint import Checkpoint, Progress, is_encodable
from .container import GGUFOutput, TensorInfo
from .imatrix import read_imatrix, weights_for
from .lora import MergedCheckpoint
from .modules import are_dimensions
from .plan import Plan, mrl_entries, opened_plan
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
from .values import read_rows
from .verify import Verification, check, figures, require_passed, require_runtime


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
        verification: how close it came to the checkpoint, where that was asked for.
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
    verification: Verification | None = None

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
    imatrix: Path | str | None = None,
    name: str | None = None,
    license: str | None = None,  # noqa: A002 - the field's word, and what the metadata calls it
    repository: str | None = None,
    revision: str | None = None,
    pooling: Pooling | None = None,
    mrl_dimensions: Sequence[int] = (),
    merge_lora: Path | str | None = None,
    reranker: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
    verify: bool = False,
    min_cosine: float | None = None,
    verify_progress: Progress | None = None,
) -> ConversionReport:
    """Convert a local checkpoint folder into one GGUF.

    Args:
        source: folder with config.json, tokenizer.json and safetensors, as ``save_pretrained`` writes it.
        output: file to write, or a folder for it; ``<name>-<TYPE>.gguf`` in the working directory by default.
            An existing file is replaced, and only by a whole one.
        ftype: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, iq4_xs, q4_0 or q3_k_m, in any
            case.
        overrides: pairs of a regular expression and a type (``("attn_v", "f16")``): matrices whose GGUF name it is
            found in get that type instead; the first that matches counts.
        imatrix: an importance matrix for this model, which quantizers weigh errors with.
        name: ``general.name``; the folder's name by default.
        license: ``general.license``, an SPDX identifier.
        repository: where the weights come from, ``organization/model``.
        revision: the commit of that repository.
        pooling: mean, cls or last, for a checkpoint that does not say (one without modules.json).
        mrl_dimensions: sizes that the model was trained to be cut to, where the checkpoint does not say.
        merge_lora: folder of a PEFT adapter that is added to the weights.
        reranker: that a Qwen3 checkpoint is a Qwen3-Reranker, where it does not say so itself.
        threads: how many threads quantize.
        progress: called as the weights are read for their digest, and from 0 again as chunks are written.
        verify: compare the result with the checkpoint before it gets its name, and record how close it came
            (``edge-embed convert`` does so unless it is told not to). A file that fails is not kept.
        min_cosine: what ``verify`` demands of every text's vector, instead of what is usual for the type.
        verify_progress: called as tensors are read again.

    Returns:
        What became of every tensor, and the totals.

    Raises:
        CheckpointError: something in the folder is missing, malformed or not finite.
        UnsupportedCheckpointError: the model would not be computed faithfully.
        InvalidOptionError: an unknown type, or an option that contradicts the checkpoint.
        OutputFileError: the file cannot be written.
        VerificationError: the file does not compute what the checkpoint does.
        EngineUnavailableError: ggml's quantizers are missing (not needed for f32, f16 and bf16 without ``verify``).
    """
    started = time.perf_counter()
    folder = Path(source)
    recipe = recipe_named(ftype, overrides)
    if threads < 1:
        raise InvalidOptionError(f"threads is {threads}, expected 1 or more")
    if verify:
        require_runtime()
    matrix = None if imatrix is None else read_imatrix(imatrix)
    title = name or "-".join(Path(f).resolve().name for f in (folder, merge_lora) if f is not None)
    check_texts(name=title, license=license, repository=repository, revision=revision)
    lora = None if merge_lora is None else Path(merge_lora)
    with opened_plan(folder, merge_lora=lora, reranker=reranker, pooling=pooling) as plan:
        family, planned, checkpoint = plan.family, plan.tensors, plan.checkpoint
        traits = Traits(plan.hyper.n_layer, n_gqa_of(family.arch, plan.hyper.key_values), matrix is not None)
        types = [tensor_type(recipe, tensor.name, tensor.ref.shape, traits) for tensor in planned]
        for kind in sorted({t.got for t in types if t.got.name.startswith(("Q", "IQ"))}):
            ggml.prepare(kind)  # a missing library is found before anything is written
        weights, weight_notes = weights_for(
            matrix, [(t.name, t.ref.n_cols, kind.got) for t, kind in zip(planned, types, strict=True)]
        )

        size = plan.modules.vector_size(plan.hyper.n_embd)
        if not are_dimensions(list(mrl_dimensions), size):
            raise InvalidOptionError(f"mrl_dimensions {mrl_dimensions!r} are not integers from 1 to {size}")
        dimensions = tuple(sorted(set(mrl_dimensions))) or plan.settings.mrl_dimensions
        key_values = [
            *_general(recipe, title, license),
            *plan.key_values,
            *mrl_entries(dimensions),
            *_provenance(recipe, planned, types, checkpoint, repository, revision, progress),
            *(matrix.key_values if matrix is not None and weights else ()),
            *(figures(None, scores=plan.settings.pooling == "rank") if verify else ()),
        ]
        infos = [
            TensorInfo(t.name, t.ref.shape, kind.got, tensor_bytes(kind.got, t.ref.shape))
            for t, kind in zip(planned, types, strict=True)
        ]
        path = output_path(output, f"{title}-{recipe.name.upper()}.gguf".replace("/", "-"))
        verification = None
        with GGUFOutput(path, family.arch, key_values, infos) as file:
            _write_tensors(file, checkpoint, planned, types, weights, threads, progress)
            if verify:
                verification = _verified(file, plan, min_cosine, verify_progress)
    matrices = [tensor.name for tensor in planned if is_quantizable(tensor.name, tensor.ref.shape)]
    notes = plan.notes + weight_notes + override_notes(recipe, matrices)
    report = make_report(path, family.arch, title, recipe, infos, types, plan.skipped, notes, file, started)
    seen = verification.notes if verification is not None else ()
    return replace(report, verification=verification, notes=report.notes + seen)


def _verified(file: GGUFOutput, plan: Plan, min_cosine: float | None, progress: Progress | None) -> Verification:
    """Hold the finished part against its checkpoint, and put the figures into the place that its header has for them.

    Raises:
        VerificationError: it does not compute what the checkpoint does; the file is not kept then.
    """
    found = require_passed(check(file.flush(), plan, min_cosine=min_cosine, progress=progress))
    file.patch(figures(found, scores=found.scores is not None))
    return replace(found, path=file.path)


def n_gqa_of(arch: str, key_values: Sequence[KeyValue]) -> int:
    """Query heads for each key/value head, from the metadata."""
    values = {entry.key: entry.value for entry in key_values}
    heads = values.get(f"{arch}.attention.head_count", 1)
    return int(heads) // int(values.get(f"{arch}.attention.head_count_kv", heads))


def _write_tensors(
    file: GGUFOutput,
    checkpoint: Checkpoint,
    planned: Sequence[PlannedTensor],
    types: Sequence[TensorType],
    weights: Mapping[str, Float32Array],
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
        rows = read_rows(checkpoint, planned[index], first, count)
        where = f"{ref.file}: tensor {ref.name!r}"
        return encode_rows(rows, types[index].got, where, weights.get(planned[index].name))

    def jobs() -> Iterator[Callable[[], bytes]]:
        for step in steps:
            yield partial(encode, *step)

    total = sum(t.ref.nbytes for t in planned)
    done = 0
    # Closed here and not when it is collected: after an error no thread may read on from files that are closed.
    with contextlib.closing(in_order(jobs(), threads)) as results:
        for (index, first, count), data in zip(steps, results, strict=True):
            tensor = planned[index]
            file.write(data)
            if first + count == tensor.ref.n_rows:
                file.pad()
            done += count * (tensor.ref.nbytes // tensor.ref.n_rows)
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


def _provenance(
    recipe: Recipe,
    planned: Sequence[PlannedTensor],
    types: Sequence[TensorType],
    checkpoint: Checkpoint,
    repository: str | None,
    revision: str | None,
    progress: Progress | None,
) -> list[KeyValue]:
    fallbacks = fallback_lines([tensor.name for tensor in planned], types)
    entries = [text(keys.RECIPE, recipe.label), text(keys.SOURCE_SHA256, checkpoint.sha256(progress))]
    if isinstance(checkpoint, MergedCheckpoint):
        entries.append(text(keys.SOURCE_LORA_SHA256, checkpoint.adapter.weights.sha256()))
    if fallbacks:
        entries.append(texts(keys.FALLBACKS, fallbacks))
    if repository:
        entries.append(text(keys.SOURCE_REPOSITORY, repository))
    if revision:
        entries.append(text(keys.SOURCE_REVISION, revision))
    return entries


def fallback_lines(names: Sequence[str], types: Sequence[TensorType]) -> list[str]:
    """One line for each tensor that got another type than was asked for."""
    return [
        f"{name}: {kind.asked.name} -> {kind.got.name} ({kind.why})"
        for name, kind in zip(names, types, strict=True)
        if kind.why
    ]


def check_texts(**options: str | None) -> None:
    """Refuse what UTF-8 cannot carry (a folder's undecodable name, too) and what C would end early."""
    for option, value in options.items():
        if value is not None and ("\0" in value or not is_encodable(value)):
            raise InvalidOptionError(f"{option} {value!r} holds a character that a GGUF cannot")


def output_path(output: Path | str | None, default_name: str) -> Path:
    """The file to write: as asked for, or of that name in the folder that was asked for, or in this one."""
    path = Path.cwd() if output is None else Path(output)
    return path / default_name if path.is_dir() else path


def make_report(
    path: Path,
    architecture: str,
    title: str,
    recipe: Recipe,
    infos: Sequence[TensorInfo],
    types: Sequence[TensorType],
    skipped: tuple[SkippedTensor, ...],
    notes: tuple[str, ...],
    file: GGUFOutput,
    started: float,
) -> ConversionReport:
    """The report on a file that was written."""
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
        notes=notes,
        n_parameters=n_parameters,
        size_bytes=file.size,
        bits_per_weight=8 * sum(t.nbytes for t in tensors) / n_parameters,
        sha256=file.sha256(),
        seconds=time.perf_counter() - started,
    )
