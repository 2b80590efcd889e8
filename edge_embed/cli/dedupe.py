"""``edge-embed dedupe``: texts without those that say almost the same."""

from __future__ import annotations

from pathlib import Path

import click

from edge_embed.cli.corpus import WIDTH, ResultOptions, result_options, vectors_option, working
from edge_embed.cli.options import EncodeOptions, ModelOptions, TextSource, encode_options, model_options, text_source
from edge_embed.cli.terminal import note, shorten


@click.command(
    epilog="""\b
Examples:
  edge-embed dedupe -f questions.jsonl --field body -o unique.jsonl
  edge-embed dedupe -f questions.txt --duplicates --table
  edge-embed dedupe -f questions.txt --vectors questions.npy --threshold 0.9 > unique.jsonl
"""
)
@text_source
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="The least cosine of duplicates. What suits depends on the model: look with --duplicates --table.",
)
@click.option("--duplicates", is_flag=True, help="The duplicates, and of what, instead of the texts that are kept.")
@vectors_option
@result_options
@encode_options
@model_options
def dedupe(
    source: TextSource,
    threshold: float,
    duplicates: bool,
    vectors: Path | None,
    result: ResultOptions,
    encoding: EncodeOptions,
    engine: ModelOptions,
) -> None:
    """Leave out texts that say almost what an earlier one says.

    TEXTS are the arguments, or the lines of standard input (also as -), or a --file. The first of its kind is kept: a
    line of JSON with its "index" (counted from 0) and "text". With --duplicates, a line for each other text, with the
    text that it is a duplicate "of" and their "cosine". Time grows with the square of the number of texts.
    """
    from edge_embed.corpus.duplicates import near_duplicates

    texts = list(source.read())
    with working(engine, encoding, result) as embedded:
        rows = embedded.of(texts, vectors)
        with result.counting(len(texts)) as progress:
            found = near_duplicates(rows, threshold, progress.advance)
        if duplicates:
            result.say(
                (
                    {"index": d.index, "text": texts[d.index], "of": d.of, "original": texts[d.of], "cosine": d.cosine}
                    for d in found
                ),
                ("cosine", "text", "", "of", ""),
                (
                    (
                        f"{d.cosine:.3f}",
                        str(d.index),
                        shorten(texts[d.index], WIDTH),
                        str(d.of),
                        shorten(texts[d.of], WIDTH),
                    )
                    for d in sorted(found, key=lambda d: -d.cosine)
                ),
            )
        else:
            left_out = {d.index for d in found}
            kept = [i for i in range(len(texts)) if i not in left_out]
            result.say(
                ({"index": i, "text": texts[i]} for i in kept),
                ("index", "text"),
                ((str(i), shorten(texts[i], 2 * WIDTH)) for i in kept),
            )
    note(f"{len(found)} of {len(texts)} texts are near duplicates")
