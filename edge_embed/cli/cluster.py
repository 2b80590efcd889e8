"""``edge-embed cluster``: which texts belong together, and a map of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_embed.cli.corpus import (
    WIDTH,
    ResultOptions,
    result_options,
    seed_option,
    vectors_option,
    working,
    write_whole,
)
from edge_embed.cli.options import (
    AT_LEAST_1,
    EncodeOptions,
    ModelOptions,
    TextSource,
    encode_options,
    model_options,
    text_source,
)
from edge_embed.cli.terminal import note, shorten

if TYPE_CHECKING:
    from edge_embed.corpus.clusters import Clustering
    from edge_embed.types import Float32Array

MAP_TEXTS = 5000
_EXAMPLES = 2  # texts of a cluster in the table


@click.command(
    epilog="""\b
Examples:
  edge-embed cluster -f questions.txt --table
  edge-embed cluster -f questions.jsonl --field body --clusters 12 -o clusters.jsonl --map map.html --map map.png
"""
)
@text_source
@click.option(
    "-n",
    "--clusters",
    type=AT_LEAST_1,
    metavar="N",
    help="How many; by default the number whose clusters are the most distinct (by silhouette).",
)
@click.option(
    "--map",
    "maps",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="Also a map: .html to look around in, or .png. May be given twice.",
)
@click.option(
    "--map-texts", type=AT_LEAST_1, default=MAP_TEXTS, show_default=True, metavar="N", help="Most texts on a map."
)
@seed_option
@vectors_option
@result_options
@encode_options
@model_options
def cluster(
    source: TextSource,
    clusters: int | None,
    maps: tuple[Path, ...],
    map_texts: int,
    seed: int,
    vectors: Path | None,
    result: ResultOptions,
    encoding: EncodeOptions,
    engine: ModelOptions,
) -> None:
    """Put texts into clusters of similar ones.

    TEXTS are the arguments, or the lines of standard input (also as -), or a --file. Each line of the output is a JSON
    object with the text's "index" (counted from 0), its "cluster" (0 is the largest), its "cosine" with the cluster's
    centre, and the "text". --table shows each cluster by the texts nearest to its centre.

    A map puts texts that are alike together; its distances and axes mean nothing else. Needs scikit-learn: pip install
    'edge-embed[corpus]'.
    """
    from edge_embed.corpus.clusters import clustered

    for path in maps:
        _check_map(path)
    texts = list(source.read())
    with working(engine, encoding, result) as embedded:
        rows = embedded.of(texts, vectors)
        found = clustered(rows, clusters, seed=seed)
        _draw(maps, rows, texts, found, map_texts, seed)
        result.say(
            (
                {"index": i, "cluster": int(found.labels[i]), "cosine": float(found.cosines[i]), "text": text}
                for i, text in enumerate(texts)
            ),
            ("cluster", "texts", *[f"nearest to its centre ({i + 1})" for i in range(_EXAMPLES)]),
            (_row(found, c, texts) for c in range(found.n_clusters)),
        )
    distinct = "" if math.isnan(found.silhouette) else f", silhouette {found.silhouette:.3f}"
    note(f"{len(texts)} texts in {found.n_clusters} clusters{distinct}")


def _row(found: Clustering, cluster: int, texts: Sequence[str]) -> tuple[str, ...]:
    members = found.members(cluster)
    examples = [shorten(texts[i], WIDTH) for i in members[:_EXAMPLES]]
    return (str(cluster), str(len(members)), *examples, *[""] * (_EXAMPLES - len(examples)))


def _check_map(path: Path) -> None:
    """What would fail after the work fails before it."""
    if path.suffix.lower() not in (".html", ".htm", ".png"):
        raise click.UsageError(f"--map {path}: give a .html or a .png file")
    if path.suffix.lower() == ".png":
        from edge_embed.convert.plot import require

        require(path)


def _draw(
    maps: Sequence[Path], rows: Float32Array, texts: Sequence[str], found: Clustering, most: int, seed: int
) -> None:
    if not maps:
        return
    import numpy as np

    from edge_embed.corpus.clusters import positions
    from edge_embed.corpus.drawing import page, picture

    chosen = np.arange(len(texts))
    if len(texts) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(texts), most, replace=False))
        note(f"the map shows {most} of {len(texts)} texts; --map-texts takes more")
    indices = chosen.tolist()
    places = positions(rows[chosen], seed=seed)
    title = f"{len(texts):,} texts in {found.n_clusters} clusters"
    for path in maps:
        if path.suffix.lower() == ".png":
            write_whole(path, [picture(places, found, indices, title)])
        else:
            write_whole(path, [page(places, [texts[i] for i in indices], found, indices, title)])
