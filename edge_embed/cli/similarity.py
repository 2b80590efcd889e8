"""``edge-embed similarity``: how alike texts are, as a table for people or as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from edge_embed.cli.options import (
    EncodeOptions,
    ModelOptions,
    TextSource,
    encode_options,
    model_options,
    text_source,
)
from edge_embed.cli.terminal import note, pad, say_json, shorten, style, width

if TYPE_CHECKING:
    from edge_embed.types import Float32Array

MAX_TEXTS = 2000  # a matrix of this size is 4 million cosines
CELL = 6  # columns of a cosine, with the space around it that is shaded too
PAGE = 80
# From this cosine on: foreground and background of xterm's 256 colours, from dark blue to yellow.
HEAT = ((0.8, 16, 220), (0.6, 16, 214), (0.45, 231, 130), (0.3, 231, 60), (0.15, 231, 237))


@click.command(
    epilog="""\b
Examples:
  edge-embed similarity "a cat" "a kitten" "a bank"
  edge-embed similarity --plain "a cat" "a kitten"
  edge-embed similarity -f sentences.txt --json
"""
)
@text_source
@click.option("--table", "as_table", is_flag=True, help="A readable table; this is the default.")
@click.option("--json", "as_json", is_flag=True, help='JSON: {"texts": [...], "similarity": [[...]]}.')
@click.option("--plain", is_flag=True, help="Numbers only, tab-separated rows; a single number for two texts.")
@encode_options
@model_options
def similarity(
    source: TextSource,
    encoding: EncodeOptions,
    engine: ModelOptions,
    as_table: bool,
    as_json: bool,
    plain: bool,
) -> None:
    """Compare texts: the cosine of each with each.

    TEXTS are two or more arguments, or the lines of standard input (also as -), or a --file. 1 means the same
    direction, 0 means unrelated. How high is high depends on the model; compare cosines of one model only.
    """
    if as_table + as_json + plain > 1:
        raise click.UsageError("give one of --table, --json and --plain")
    texts = _bounded(source.read())
    with engine.open() as embedder:
        result = encoding.embed(embedder, texts)
        cosines = embedder.similarity(result.vectors, result.vectors)
        name, limit = embedder.info.name, embedder.info.max_tokens
    if as_json:
        rows = [[round(value, 6) for value in row] for row in cosines.tolist()]
        say_json({"model": name, "texts": texts, "similarity": rows})
    elif plain:
        for row in [[cosines[0, 1]]] if len(texts) == 2 else cosines.tolist():
            click.echo("\t".join(f"{value:.6f}" for value in row))
    else:
        for line in _matrix(texts, cosines):
            click.echo(line)
    if result.usage.n_truncated:
        note(f"{result.usage.n_truncated} of {len(texts)} texts were cut to {limit} tokens")


def _bounded(texts: Iterator[str]) -> list[str]:
    found = []
    for text in texts:
        found.append(text)
        if len(found) > MAX_TEXTS:
            raise click.UsageError(f"more than {MAX_TEXTS} texts: use `edge-embed embed` and compare the vectors")
    if len(found) < 2:
        raise click.UsageError(f"{'one text' if found else 'no texts'}: give at least two")
    return found


def _matrix(texts: Sequence[str], cosines: Float32Array) -> Iterator[str]:
    """The table, in panels of as many columns as fit on a page."""
    digits = len(str(len(texts)))
    labels = [shorten(text, PAGE) or "(empty)" for text in texts]
    per_panel = min(len(texts), 8)
    space = PAGE - digits - 3 - CELL * per_panel
    labels = [shorten(label, space) for label in labels]
    longest = max(map(width, labels))
    for first in range(0, len(texts), per_panel):
        columns = range(first, min(first + per_panel, len(texts)))
        if first:
            yield ""
        numbers = "".join(f"{i + 1:>{CELL - 1}} " for i in columns)
        yield style(f"{' ' * (digits + 3 + longest)}{numbers}".rstrip(), dim=True)
        for i, label in enumerate(labels):
            cells = "".join(_cell(float(cosines[i, j]), same=i == j) for j in columns)
            yield f"{style(f'{i + 1:>{digits}}', dim=True)}  {pad(label, longest)} {cells}".rstrip()


def _cell(value: float, *, same: bool) -> str:
    shown = f"{value:{CELL - 1}.2f} "
    if same:
        return style(shown, dim=True)
    look: dict[str, Any] = next(({"fg": fg, "bg": bg} for least, fg, bg in HEAT if value >= least), {})
    return style(shown, **look)
