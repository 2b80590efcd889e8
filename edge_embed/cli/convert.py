"""``edge-embed convert``: a checkpoint folder in, one GGUF out, and what became of its tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_embed.cli.conversion import (
    TYPE,
    offline_option,
    pooling_option,
    progress_option,
    quantizing_threads_option,
    tensor_type_option,
)
from edge_embed.cli.options import AT_LEAST_1
from edge_embed.cli.pull import announce_checkpoint
from edge_embed.cli.recipe import RecipeOptions, Shown, recipe_options, show_choice
from edge_embed.cli.terminal import facts, note, size, table, terminable
from edge_embed.cli.verify import lines_of, one_blas_thread

if TYPE_CHECKING:
    from edge_embed.convert import ConversionReport
    from edge_embed.types import Pooling

MOST_SKIPPED = 12  # shown one by one; where there are more, they are alike


@click.command(
    epilog="""\b
Examples:
  edge-embed convert ./all-MiniLM-L6-v2
  edge-embed convert ./Qwen3-Embedding-0.6B --type q4_k_m -o qwen3-0.6b.gguf
  edge-embed convert Qwen/Qwen3-Embedding-4B --type q4_k_m
  edge-embed convert google/embeddinggemma-300m --revision main --offline
  edge-embed convert ./model --license apache-2.0 --repository Qwen/Qwen3-Embedding-0.6B
  edge-embed convert ./model --merge-lora ./adapter --type q4_k_m
  edge-embed convert ./adapter --base ./model -o adapter.gguf
"""
)
@click.argument("source", metavar="DIR|REPOSITORY")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write, or a folder for it.")
@click.option(
    "--type",
    "ftype",
    type=TYPE,
    help="What weights are stored as: q8_0 by default, f32 for an adapter. Fewer bits are smaller and less exact.",
)
@tensor_type_option
@recipe_options
@click.option("--name", help="The model's name in the file; the folder's name by default.")
@click.option("--license", "license_id", metavar="SPDX", help="Licence of the weights, recorded in the file.")
@click.option("--repository", metavar="ORG/MODEL", help="Where the weights come from, recorded in the file.")
@click.option("--revision", metavar="COMMIT", help="Commit, tag or branch of the repository; a folder's is recorded.")
@pooling_option
@click.option(
    "--mrl-dimension", "mrl", type=AT_LEAST_1, metavar="N", multiple=True, help="A size trained with MRL; repeat it."
)
@click.option(
    "--merge-lora", metavar="ADAPTER", type=click.Path(path_type=Path), help="A PEFT adapter to add to the weights."
)
@click.option(
    "--reranker", is_flag=True, help="It is a Qwen3-Reranker: keep the rows of yes and no, and its card's template."
)
@click.option(
    "--base", metavar="DIR", type=click.Path(path_type=Path), help="The model of the adapter DIR, to convert just that."
)
@offline_option
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Compare the result with the original before it gets its name, or not; see `edge-embed verify -h`.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(-1.0, 1.0),
    metavar="X",
    help="Keep no file that loses more at any text. Without --type: choose each matrix's type by measuring what it "
    "costs, for the smallest file that keeps to this.",
)
@quantizing_threads_option
@progress_option
def convert(
    source: str,
    output: Path | None,
    ftype: str | None,
    overrides: list[tuple[str, str]],
    recipe: RecipeOptions,
    name: str | None,
    license_id: str | None,
    repository: str | None,
    revision: str | None,
    pooling: Pooling | None,
    mrl: tuple[int, ...],
    merge_lora: Path | None,
    reranker: bool,
    base: Path | None,
    offline: bool,
    verify: bool,
    min_cosine: float | None,
    threads: int | None,
    progress: bool,
) -> None:
    """Convert a Hugging Face checkpoint into one GGUF file.

    DIR is a local folder with config.json, tokenizer.json and safetensors. REPOSITORY is one of the hub
    (organization/name, organization/name@revision, its address, or a name of `edge-embed list`): what the conversion
    needs of it is downloaded into the cache that programs of Hugging Face share, after its size has been said. The file
    is written whole or not at all, and holds all that is needed to run it: tokenizer, pooling, prompts, limits,
    provenance.
    """
    one_blas_thread()
    from edge_embed.convert import convert as run
    from edge_embed.convert import convert_adapter
    from edge_embed.convert.recipe import convert_to_target
    from edge_embed.convert.verify import verify as verify_file
    from edge_embed.engine.devices import default_threads
    from edge_embed.progress import BytesProgress
    from edge_embed.sources import find_checkpoint

    if min_cosine is not None and (base is not None or not verify):
        raise click.UsageError("--min-cosine is about the verification, which --no-verify and --base leave out")
    found = find_checkpoint(
        source, revision=revision, offline=offline, show_progress_bar=progress, before=announce_checkpoint
    )
    folder = found.folder
    if name is None and found.name is not None:
        name = found.name if merge_lora is None else f"{found.name}-{merge_lora.resolve().name}"
    license_id = license_id or found.license
    threads = threads or default_threads()
    repository, revision = repository or found.repository, found.revision
    target = recipe.target(ftype, min_cosine, others=bool(overrides))
    choice = None
    if base is not None:
        if target or recipe.imatrix or overrides or pooling or mrl or merge_lora or reranker:
            raise click.UsageError("--base converts an adapter alone, which has no pooling, sizes or types of its own")
        report = convert_adapter(
            folder,
            base,
            output,
            ftype=ftype or "f32",
            name=name,
            license=license_id,
            repository=repository,
            revision=revision,
        )
    else:

        def converted(path: Path | None, kind: str, at_least: float | None, imatrix: Path | None) -> ConversionReport:
            with BytesProgress("hashing", "converting", "verifying", enabled=progress) as shown:
                return run(
                    folder,
                    path,
                    ftype=kind,
                    overrides=overrides,
                    imatrix=imatrix,
                    name=name,
                    license=license_id,
                    repository=repository,
                    revision=revision,
                    pooling=pooling,
                    mrl_dimensions=mrl or found.mrl_dimensions,
                    merge_lora=merge_lora,
                    reranker=reranker or found.reranker,
                    threads=threads,
                    progress=shown,
                    verify=verify,
                    min_cosine=at_least,
                    verify_progress=shown,
                )

        with terminable():
            if target is None:
                report = converted(output, ftype or "q8_0", min_cosine, recipe.imatrix)
            else:
                held = partial(
                    verify_file,
                    source=folder,
                    pooling=pooling,
                    merge_lora=merge_lora,
                    reranker=reranker or found.reranker,
                    n_threads=threads,
                )
                with Shown(enabled=progress) as shown:
                    choice = convert_to_target(
                        folder,
                        output,
                        target,
                        recipe.measuring(threads, shown, verify=held if verify else None),
                        convert_exact=lambda path, kind: converted(path, kind, None, None),
                        merged=merge_lora is not None,
                    )
                report = choice.report
    for line in summary(report):
        click.echo(line)
    if choice is not None:
        show_choice(choice, recipe)
    for sentence in report.notes:
        note(sentence)


def summary(report: Any) -> Iterator[str]:
    """What a ConversionReport says; its type cannot be named here, where the converter is not imported."""
    yield from facts(
        {
            "file": str(report.path),
            "model": f"{report.name} ({report.architecture})",
            "weights": f"{report.n_parameters / 1e6:,.1f} million, {report.bits_per_weight:.2f} bits each",
            "size": f"{size(report.size_bytes)} ({report.size_bytes:,} bytes)",
            "sha256": report.sha256,
            "time": f"{report.seconds:.1f} s",
        }
    )
    counts = Counter(tensor.got for tensor in report.tensors)
    n_bytes: Counter[str] = Counter()
    n_weights: Counter[str] = Counter()
    for tensor in report.tensors:
        n_bytes[tensor.got] += tensor.nbytes
        n_weights[tensor.got] += math.prod(tensor.shape)
    yield ""
    yield from table(
        [
            (kind, str(counts[kind]), f"{n_weights[kind]:,}", f"{8 * total / n_weights[kind]:.4g}", size(total))
            for kind, total in n_bytes.most_common()
        ],
        head=("type", "tensors", "weights", "bits", "size"),
        right=(1, 2, 3, 4),
    )
    if report.fallbacks:
        yield f"\n{len(report.fallbacks)} tensors got another type than {report.ftype} asks for:"
        reasons = Counter((tensor.asked, tensor.got, tensor.why) for tensor in report.fallbacks)
        first = {(t.asked, t.got, t.why): t.name for t in reversed(report.fallbacks)}
        rows = [
            (str(count), *reason, first[reason] + (", ..." if count > 1 else ""))
            for reason, count in reasons.most_common()
        ]
        yield from table(rows, head=("tensors", "asked", "got", "because", "which"), right=(0,))
    if report.skipped:
        yield f"\n{len(report.skipped)} tensors were left out:"
        yield from table([(t.name, t.reason) for t in report.skipped[:MOST_SKIPPED]], head=("tensor", "why"))
        if len(report.skipped) > MOST_SKIPPED:
            yield f"... and {len(report.skipped) - MOST_SKIPPED} more"
    if report.verification is not None:
        yield ""
        yield from lines_of(report.verification)
