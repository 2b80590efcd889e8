"""The spine: a checkpoint folder in, one GGUF out.

checkpoint -> family -> settings and vocabulary -> a type for each tensor -> header -> each tensor's rows,
quantized in chunks, straight into the file. One pass, no intermediate file, bounded memory. The same input and
options give the same bytes, whatever the number of threads: nothing of the clock, the machine or the path is
written (the default name is the folder's).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from edge_embed import keys
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array, Pooling

from .architectures.family import PlannedTensor
from .blocks import ggml
from .blocks.rows import encode_rows, tensor_bytes
from .blocks.types import Recipe, TensorType, Traits, is_quantizable, override_notes, recipe_named, tensor_type
from .calibrate.imatrix import read_imatrix, weights_for
from .checkpoint import Checkpoint, Progress
from .container.entries import KeyValue, text, texts, uint
from .container.output import GGUFOutput, OutputTensor
from .lora.merge import MergedCheckpoint
from .modules import are_dimensions
from .plan import Plan, mrl_entries, opened_plan
from .values import read_rows
from .verify import Verification, check, figures, require_passed, require_runtime
from .writing import (
    ConversionReport,
    TensorSource,
    check_texts,
    fallback_lines,
    make_report,
    output_path,
    write_tensors,
)


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
            OutputTensor(t.name, t.ref.shape, kind.got, tensor_bytes(kind.got, t.ref.shape))
            for t, kind in zip(planned, types, strict=True)
        ]
        path = output_path(output, f"{title}-{recipe.name.upper()}.gguf".replace("/", "-"))
        verification = None
        with GGUFOutput(path, family.arch, key_values, infos) as file:
            sources = [
                TensorSource(info, t.ref.nbytes, partial(_encoded, checkpoint, t, info, weights.get(info.name)))
                for t, info in zip(planned, infos, strict=True)
            ]
            write_tensors(file, sources, threads=threads, progress=progress)
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


def _encoded(
    checkpoint: Checkpoint,
    tensor: PlannedTensor,
    info: OutputTensor,
    importance: Float32Array | None,
    first: int,
    count: int,
) -> bytes:
    """Rows of a planned tensor in its type."""
    rows = read_rows(checkpoint, tensor, first, count)
    return encode_rows(rows, info.kind, f"{tensor.ref.file}: tensor {tensor.ref.name!r}", importance)


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
