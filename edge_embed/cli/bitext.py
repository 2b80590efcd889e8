"""``edge-embed bitext``: the sentences of one file and their translations in another."""

from __future__ import annotations

from pathlib import Path

import click

from edge_embed.cli.corpus import WIDTH, ResultOptions, result_options, working
from edge_embed.cli.options import AT_LEAST_1, EncodeOptions, ModelOptions, TextSource, encode_options, model_options
from edge_embed.cli.terminal import note, shorten
from edge_embed.files import INPUT_FORMATS, InputFormat

_VECTORS = "Vectors of {} (.npy of `edge-embed embed`), if they are embedded already."


@click.command(
    epilog="""\b
Examples:
  edge-embed bitext -m paraphrase-multilingual-minilm-l12-v2 german.txt english.txt --table
  edge-embed bitext -m bge-m3 de.jsonl en.jsonl --field body --min-score 1.1 -o pairs.jsonl
"""
)
@click.argument("sources", type=click.Path(path_type=Path))
@click.argument("targets", type=click.Path(path_type=Path))
@click.option(
    "--input-format", type=click.Choice(INPUT_FORMATS), help="How both files store texts, if not as they are called."
)
@click.option("--field", metavar="NAME", help="Field or column that holds the text, in both files.")
@click.option(
    "--min-score",
    type=float,
    default=1.0,
    show_default=True,
    help="The least score of a pair: 1.05 to 1.2 leaves out most that are wrong, and, depending on the model, few or "
    "most that are right.",
)
@click.option(
    "--neighbours", type=AT_LEAST_1, default=4, show_default=True, help="Texts that a pair's cosine is compared with."
)
@click.option(
    "--source-vectors", type=click.Path(path_type=Path), metavar="FILE", help=_VECTORS.format("the first file")
)
@click.option(
    "--target-vectors", type=click.Path(path_type=Path), metavar="FILE", help=_VECTORS.format("the second file")
)
@result_options
@encode_options
@model_options
def bitext(
    sources: Path,
    targets: Path,
    input_format: InputFormat | None,
    field: str | None,
    min_score: float,
    neighbours: int,
    source_vectors: Path | None,
    target_vectors: Path | None,
    result: ResultOptions,
    encoding: EncodeOptions,
    engine: ModelOptions,
) -> None:
    """Find the texts of SOURCES and their translations among TARGETS.

    Both are files as `edge-embed embed` reads them, in any order; - is standard input. Each line of the output is a
    JSON object with a pair: where its texts stand ("source" and "target", counted from 0), its "score" (how much nearer
    they are to each other than to their next neighbours), its "cosine" and the texts. The best pair comes first, and no
    text is in two. The model must know both languages, which the bundled one does not.
    """
    from edge_embed.corpus.bitext import aligned

    if str(sources) == str(targets) == "-":
        raise click.UsageError("only one of the two can be standard input")
    left, right = (list(TextSource((), str(path), input_format, field).read()) for path in (sources, targets))
    with working(engine, encoding, result) as embedded:
        rows, others = embedded.of(left, source_vectors), embedded.of(right, target_vectors)
        with result.counting(len(left) + len(right)) as progress:
            every = aligned(rows, others, k=neighbours, advance=progress.advance)
        pairs = [pair for pair in every if pair.score >= min_score]
        result.say(
            (
                {
                    "source": pair.source,
                    "target": pair.target,
                    "score": pair.score,
                    "cosine": pair.cosine,
                    "source_text": left[pair.source],
                    "target_text": right[pair.target],
                }
                for pair in pairs
            ),
            ("score", "source", "", "target", ""),
            (
                (
                    f"{pair.score:.3f}",
                    str(pair.source),
                    shorten(left[pair.source], WIDTH),
                    str(pair.target),
                    shorten(right[pair.target], WIDTH),
                )
                for pair in pairs
            ),
        )
    note(f"{len(pairs)} pairs of {len(left)} and {len(right)} texts")
