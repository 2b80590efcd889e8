"""``edge-embed search``: a question in, the best places of the indexed files out."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edge_embed.cli.index import db_option, settled
from edge_embed.cli.options import AT_LEAST_1, ModelOptions, device_option, low_memory_option
from edge_embed.cli.pull import ensure
from edge_embed.cli.terminal import clean, colours, note, say_json, style

if TYPE_CHECKING:
    from edge_embed.search.types import Hit, Kind, Mode, Snippet

# Spelled out here because their module is no part of what `--help` should load; a test compares them.
MODES: Final = ("hybrid", "dense", "text")
KINDS: Final = ("text", "markdown", "html", "pdf", "docx", "mail", "notebook", "code")
PER_FILE: Final = 3


@click.command(
    epilog="""\b
Examples:
  edge-embed search "how is memory planned?"
  edge-embed search "invoice from March" --db ~/search --kind pdf -k 5
  edge-embed search "E1234" --mode text --in ~/notes/work
  edge-embed search "how do bees navigate?" --rerank qwen3-reranker-0.6b --json
"""
)
@click.argument("question")
@db_option
@click.option(
    "-k",
    "--top-k",
    "limit",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="Places to show.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="hybrid",
    show_default=True,
    help="By meaning (dense), by words (text, BM25), or both orders joined by reciprocal ranks.",
)
@click.option("--rerank", "reranker", metavar="MODEL", help="A reranker that orders the candidates again.")
@click.option("--in", "below", type=click.Path(path_type=Path), metavar="PATH", help="Only this file, or this folder.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only files of this kind; repeatable.")
@click.option(
    "--per-file",
    type=click.IntRange(min=0),
    default=PER_FILE,
    show_default=True,
    metavar="N",
    help="Most places of one file; 0 for any number.",
)
@click.option(
    "--short/--full",
    default=True,
    help="Whether short vectors find what full ones then order (the default), or full ones do both.",
)
@click.option(
    "--candidates",
    type=AT_LEAST_1,
    metavar="N",
    help="Chunks that each order looks at, no fewer than --top-k; ten times that, and at least 100, by default.",
)
@click.option("-m", "--model", metavar="MODEL", help="Where the database's model lies now; another is refused.")
@click.option("--query-prompt", metavar="TEXT", help="Refuse unless this is what the database puts before questions.")
@click.option("-d", "--dimensions", type=AT_LEAST_1, metavar="N", help="Refuse unless its vectors have this size.")
@click.option("--threads", type=AT_LEAST_1, metavar="N", help="CPU threads, if not all physical cores.")
@device_option()
@low_memory_option()
@click.option(
    "-y", "--yes", is_flag=True, envvar="EDGE_EMBED_DOWNLOAD", help="Download a model that is missing unasked."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text for people.")
def search(
    question: str,
    db: Path | None,
    limit: int,
    mode: Mode,
    reranker: str | None,
    below: Path | None,
    kinds: tuple[Kind, ...],
    per_file: int,
    short: bool,
    candidates: int | None,
    model: str | None,
    query_prompt: str | None,
    dimensions: int | None,
    threads: int | None,
    device: str | None,
    low_memory: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Find the places in indexed files that answer a question.

    The database of `edge-embed index` says which model, prompt and size the question is embedded with; what differs
    from that is refused. Each place is shown with its file and line (or page), headings, score, and a part of its text.
    """
    from edge_embed.search.database import Database
    from edge_embed.search.place import database_path
    from edge_embed.search.record import check_model, check_same
    from edge_embed.search.searching import Query, embed_query
    from edge_embed.search.searching import search as find
    from edge_embed.search.snippets import snippet

    asked = Query(
        question,
        limit=limit,
        mode=mode,
        short=short,
        per_file=per_file or None,
        below=None if below is None else str(below.expanduser().resolve()),
        kinds=kinds,
        candidates=candidates,
    )
    with ExitStack() as opened:
        database = opened.enter_context(Database(database_path(db)))
        record = database.record
        given = {"query_prompt": query_prompt, "dimensions": dimensions}
        wanted = replace(record, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        check_same(record, wanted, where=str(database.path))
        vector = None
        if asked.needs_vector:
            options = ModelOptions(
                model=model,
                pooling=None,
                max_tokens=None,
                threads=threads,
                batch_tokens=None,
                device=device,
                gpu_layers=None,
                low_memory=low_memory,
                kv_type="f16",
                deterministic=False,
                lora=("", 1.0),
                projection=None,
                cache=False,
                yes=yes,
            )
            with settled(options, record).open() as embedder:
                check_model(record, embedder.info, where=str(database.path))
                vector = embed_query(embedder, database, question)
        second = None
        if reranker is not None:
            from edge_embed.reranker import Reranker

            path = str(ensure(reranker, yes=yes))
            second = opened.enter_context(Reranker(path, n_threads=threads, device=device, low_memory=low_memory))
        hits = find(database, asked, vector, second)
    shown = [(hit, snippet(hit.text, question)) for hit in hits]
    if as_json:
        say_json({"query": question, "results": [{**asdict(hit), "snippet": asdict(part)} for hit, part in shown]})
        return
    for place, (hit, part) in enumerate(shown, 1):
        _print(place, hit, part)
    if not hits:
        note("nothing was found")


def _print(place: int, hit: Hit, part: Snippet) -> None:
    path = Path(hit.path)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    where = f":{hit.line}" if hit.line is not None else f", page {hit.page}" if hit.page is not None else ""
    heading = f"  {clean(hit.heading)}" if hit.heading else ""
    click.echo(
        f"{place:2d}  {style(f'{hit.score:.4f}', fg='cyan')}  {style(clean(str(path)) + where, bold=True)}{heading}"
    )
    click.echo(f"    {_marked(part)}\n")


def _marked(part: Snippet) -> str:
    """The snippet with the question's words in bold, where colours are wanted."""
    text = clean(part.text)
    if not colours(sys.stdout):
        return text
    pieces, done = [], 0
    for start, stop in part.marks:
        pieces += [text[done:start], style(text[start:stop], fg="yellow", bold=True)]
        done = stop
    return "".join([*pieces, text[done:]])
