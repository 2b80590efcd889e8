"""``edge-embed embed``: texts in, vectors out, in batches that do not depend on how many texts there are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_embed.cli.options import (
    PRECISIONS,
    EncodeOptions,
    ModelOptions,
    TextSource,
    encode_options,
    model_options,
    text_source,
)
from edge_embed.cli.output import OUTPUT_FORMATS, OutputFormat, VectorOutput, choose_format
from edge_embed.cli.terminal import note
from edge_embed.errors import InvalidTextError, NonFiniteError, TextTooLongError

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.types import EmbedResult, Precision

# The first step of the work, and how often it doubles: small, so that a slow model shows progress soon; then large
# enough to pack well, and no larger, so that memory stays small. By size and never by time, because the company that
# a text is computed in moves the last digits of its vector: the same input gives the same bytes.
STEP_TEXTS, STEP_CHARACTERS, DOUBLINGS = 64, 1 << 12, 4


@click.command(
    epilog="""\b
Examples:
  edge-embed embed "a text" "another text"
  cat lines.txt | edge-embed embed --output-format jsonl
  edge-embed embed -f articles.csv --field body -o vectors.npy
  edge-embed embed -f corpus.jsonl --document -d 256 --precision int8 -o corpus.npy
  edge-embed embed --query "how do bees navigate?" -m qwen3-0.6b-q8_0.gguf
"""
)
@text_source
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output by default.")
@click.option(
    "--output-format",
    type=click.Choice(OUTPUT_FORMATS),
    help="How vectors are written; by default the extension of --output says so, and standard output is json.",
)
@encode_options
@click.option(
    "--no-normalize", is_flag=True, help="Keep the vectors' lengths, even where the original model makes each 1."
)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True, help="What each value becomes."
)
@model_options
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress of a file on stderr, or not; by default where stderr is a terminal.",
)
def embed(
    source: TextSource,
    encoding: EncodeOptions,
    engine: ModelOptions,
    output: Path | None,
    output_format: OutputFormat | None,
    no_normalize: bool,
    precision: Precision,
    progress: bool | None,
) -> None:
    """Turn texts into vectors.

    TEXTS are the arguments, or the lines of standard input (also as -), or a --file. Vector i belongs to text i.

    \b
    Input formats:
      txt     a text per line; a blank line is an empty text, so that vector i is line i
      jsonl   a JSON string or object per line (.jsonl, .ndjson); blank lines are skipped
      csv     a header and rows, a column is the text; tsv the same with tabs

    \b
    Output formats:
      json    a list of lists                      npy     a NumPy array [n, d]
      jsonl   {"index":0,"embedding":[...]}        f32     little-endian float32, no header
      csv     a row per vector, no header          base64  a line per vector, little-endian values

    A --file is read through once before the work begins, so that a mistake in its last line is found at once.
    """
    output = None if output == Path("-") else output
    chosen = choose_format(output, output_format)
    if chosen == "f32" and precision != "float32":
        raise click.UsageError(f"f32 holds float32, not {precision}: use npy or base64")
    if output is not None and source.file is not None and output.exists() and output.samefile(source.file):
        raise click.UsageError("--output would replace the --file that is read")
    total = source.count()
    shown = sys.stderr.isatty() if progress is None else progress
    n_texts = n_truncated = 0
    with VectorOutput(output, chosen) as vectors, engine.open() as embedder:
        for result in _run(
            embedder, source.read(), encoding, False if no_normalize else None, precision, total if shown else None
        ):
            vectors.write(result.vectors)
            n_texts += result.usage.n_texts
            n_truncated += result.usage.n_truncated
        limit = embedder.info.max_tokens
    if n_texts == 0:
        note("the input holds no texts")
    if n_truncated:
        cut = f"{n_truncated} of {n_texts} texts {'was' if n_truncated == 1 else 'were'} cut to {limit} tokens"
        note(f"{cut}; --truncate error refuses instead")


def _run(
    embedder: Embedder,
    texts: Iterable[str],
    encoding: EncodeOptions,
    normalize: bool | None,
    precision: Precision,
    total: int | None,
) -> Iterator[EmbedResult]:
    """Results of one step after another; at least one, possibly of no texts."""
    from edge_embed.progress import Progress

    done = 0
    with Progress("embedding", total or 0, "texts", enabled=total is not None) as progress:
        for step in _steps(texts):
            try:
                result = encoding.embed(embedder, step, normalize=normalize, precision=precision)
            except TextTooLongError as error:
                raise TextTooLongError(error.index + done, error.n_tokens, error.limit) from None
            except NonFiniteError as error:
                raise NonFiniteError([index + done for index in error.indices]) from None
            except InvalidTextError as error:
                where = f" (counted from text {done})" if done else ""
                raise InvalidTextError(error.message + where, hint=error.hint) from None
            yield result
            done += len(step)
            progress.advance(len(step))


def _steps(texts: Iterable[str]) -> Iterator[list[str]]:
    step: list[str] = []
    characters = made = 0
    for text in texts:
        step.append(text)
        characters += len(text)
        scale = 1 << min(made, DOUBLINGS)
        if len(step) >= STEP_TEXTS * scale or characters >= STEP_CHARACTERS * scale:
            yield step
            step, characters, made = [], 0, made + 1
    if step or not made:
        yield step
