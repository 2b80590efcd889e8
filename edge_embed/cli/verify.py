"""``edge-embed verify``: a GGUF held against its original; and what a verification says, also behind ``convert``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_embed.cli.conversion import offline_option, pooling_option, progress_option
from edge_embed.cli.options import AT_LEAST_1
from edge_embed.cli.pull import announce_checkpoint
from edge_embed.cli.terminal import facts, note, say_json, shorten, table
from edge_embed.errors import VerificationError

if TYPE_CHECKING:
    from edge_embed.types import Pooling

SHOWN = 60  # columns of a text


@click.command(
    epilog="""\b
Examples:
  edge-embed verify model-Q4_K_M.gguf --reference ./Qwen3-Embedding-0.6B
  edge-embed verify model.gguf --reference ./all-MiniLM-L6-v2 -f texts.txt --min-cosine 0.995
  edge-embed verify model.gguf --reference ./bge-reranker-v2-m3 --json
"""
)
@click.argument("gguf", metavar="GGUF")
@click.option(
    "--reference",
    required=True,
    metavar="DIR|REPOSITORY",
    help="The original: a folder or a repository of the hub, as for `edge-embed convert`.",
)
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    help="Texts to compare with, all of them; a built-in set in many languages by default.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(-1.0, 1.0),
    metavar="X",
    help="Fail where a text's vector is farther off; by default what breaks a file of its type.",
)
@pooling_option
@click.option(
    "--merge-lora", metavar="ADAPTER", type=click.Path(path_type=Path), help="The PEFT adapter that was merged."
)
@click.option("--reranker", is_flag=True, help="The original is a Qwen3-Reranker.")
@offline_option
@click.option("--record", "keep", is_flag=True, help="Put the figures into the file, where they replace the old ones.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--threads", type=AT_LEAST_1, metavar="N", help="CPU threads of the runtime.")
@progress_option
def verify(
    gguf: str,
    reference: str,
    file: Path | None,
    min_cosine: float | None,
    pooling: Pooling | None,
    merge_lora: Path | None,
    reranker: bool,
    offline: bool,
    keep: bool,
    as_json: bool,
    threads: int | None,
    progress: bool,
) -> None:
    """Compare a GGUF with the checkpoint that it was made from.

    GGUF is a file or a name of `edge-embed list`. Settings, token ids, every tensor and the vectors (of a reranker: the
    scores) are held against the original, whose network is computed in NumPy float32. What a type loses by itself is no
    failure; a wrong network, tokenizer, prompt or tensor is, and ends with exit code 4. `convert` does the same on its
    own results, with less of each tensor.
    """
    one_blas_thread()
    from edge_embed.catalogue import resolve
    from edge_embed.convert.verify import record
    from edge_embed.convert.verify import verify as run
    from edge_embed.files import read_file
    from edge_embed.progress import BytesProgress
    from edge_embed.sources import find_checkpoint

    path = resolve(gguf)
    texts = None if file is None else list(read_file(file))
    original = find_checkpoint(reference, offline=offline, show_progress_bar=progress, before=announce_checkpoint)
    with BytesProgress("verifying", enabled=progress) as shown:
        found = run(
            path,
            original.folder,
            texts=texts,
            min_cosine=min_cosine,
            pooling=pooling,
            merge_lora=merge_lora,
            reranker=reranker or original.reranker,
            n_threads=threads,
            progress=shown,
        )
    if as_json:
        say_json(asdict(found) | {"path": str(found.path), "passed": found.passed})
    else:
        for line in facts({"file": str(path), "reference": str(original.folder)}):
            click.echo(line)
        for line in lines_of(found):
            click.echo(line)
        for sentence in found.notes:
            note(sentence)
    if not found.passed:
        raise VerificationError(
            "\n".join(found.problems), hint="the file does not compute what the original does: convert it again"
        )
    if keep:
        record(path, found)


def one_blas_thread() -> None:
    """Have NumPy multiply on the thread that asks, if it is not loaded yet.

    The reference network brings threads of its own. Those of OpenBLAS wait for each other by spinning, which on a busy
    machine cost five times what the products themselves did.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def lines_of(found: Any) -> Iterator[str]:
    """What a Verification says; its type cannot be named here, where the converter is not imported."""
    failed = {problem.split(":")[0].split()[0] for problem in found.problems}
    values = {
        "settings": f"{found.n_settings} entries" + ("" if "settings" in failed else ", all as the original's"),
        "ids": f"{found.n_texts} texts" + ("" if "ids" in failed else ", all as the original tokenizer's"),
        "tensors": f"{found.n_tensors}",
    }
    if not found.n_texts:
        del values["ids"]
    if found.tensors:
        worst = found.tensors[0]
        values["tensors"] += f", relative error at most {worst.error:.2g} ({worst.name}, {worst.type_name})"
    if found.vectors is not None:
        vectors = found.vectors
        values["cosine"] = (
            f"{vectors.min_cosine:.5f} at least, {vectors.mean_cosine:.5f} on average "
            f"({found.type_name} breaks below {found.limit.cosine:g})"
        )
        values["top 10"] = f"{100 * vectors.overlap:.1f} % of each text's nearest stay among them"
    if found.scores is not None:
        breaks = f"{found.type_name} breaks above {found.limit.score:g}"
        values["scores"] = f"differ by {found.scores.max_difference:.5f} at most ({breaks})"
    values["verified in"] = f"{found.seconds:.1f} s"
    yield from facts(values)
    worst_texts = (found.vectors or found.scores).worst if found.vectors or found.scores else ()
    if worst_texts:
        yield ""
        head = ("cosine" if found.vectors else "differs", "worst texts")
        yield from table([(f"{value:.5f}", shorten(text, SHOWN)) for text, value in worst_texts], head=head)
