"""``edge-embed index``: folders in, a database out that ``edge-embed search`` answers from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_embed.cli.options import AT_LEAST_1, Command, ModelOptions, grouped, model_options
from edge_embed.cli.recipe import n_bytes
from edge_embed.cli.terminal import note, say_json, shorten, terminable

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.search.database import Database
    from edge_embed.search.types import Record, Report

SKIPPED = 1  # the exit code where files were skipped
_SHOWN = 20  # of skipped files, without --json


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What a new database is made with; of one that is there, what it has to have been made with."""

    prompt: str | None
    query_prompt: str | None
    dimensions: int | None
    short: int | None
    chunk_tokens: int | None
    overlap: int | None
    language: str | None


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Which files are read."""

    max_file_size: int
    hidden: bool
    ignore: bool
    follow_links: bool
    exclude: tuple[str, ...]
    as_text: tuple[str, ...]


def _index_options(command: Command) -> Command:
    return grouped(
        "made",
        IndexOptions,
        command,
        click.option("--prompt", metavar="TEXT", help="Text put before documents, if not the model's own."),
        click.option("--query-prompt", metavar="TEXT", help="Text put before questions, if not the model's own."),
        click.option("-d", "--dimensions", type=AT_LEAST_1, metavar="N", help="Values kept of each vector (MRL)."),
        click.option(
            "--short",
            type=click.IntRange(min=0),
            metavar="N",
            help="Values of the short vectors that a search compares first; 0 for none. By default a third, or the "
            "model's trained size above that.",
        ),
        click.option(
            "--chunk-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a chunk; the model's, up to 512."
        ),
        click.option(
            "--overlap", type=click.IntRange(min=0), metavar="N", help="Tokens that neighbours share; an eighth."
        ),
        click.option(
            "--language", metavar="NAME", help="Whose words are reduced to their stems (English name); English."
        ),
    )  # fmt: skip


def _file_options(command: Command) -> Command:
    return grouped(
        "files",
        FileOptions,
        command,
        click.option(
            "--max-file-size",
            default="50MB",
            show_default=True,
            metavar="SIZE",
            callback=n_bytes,
            help="Larger files are skipped by name.",
        ),
        click.option("--hidden", is_flag=True, help="Also files and folders whose names begin with a dot."),
        click.option(
            "--ignore/--no-ignore",
            default=True,
            help="Leave out what .gitignore and .ignore name, and folders such as node_modules, or read them, too.",
        ),
        click.option("--follow-links", is_flag=True, help="Follow symbolic links, but no link into its own folder."),
        click.option(
            "--exclude", multiple=True, metavar="PATTERN", help="Leave these out, as .gitignore has it; repeatable."
        ),
        click.option(
            "--as-text", multiple=True, metavar="PATTERN", help='Read these as plain text: "*.json"; repeatable.'
        ),
    )  # fmt: skip


def db_option(command: Command) -> Command:
    """Adds ``--db``."""
    option = click.option(
        "--db",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Folder of the database; $EDGE_EMBED_DB, or one beside the models, by default.",
    )
    return option(command)


@click.command(
    epilog="""\b
Examples:
  edge-embed index ~/notes
  edge-embed index ~/notes ~/papers --db ~/search -m qwen3-embedding-0.6b
  edge-embed index . --exclude "tests/" --as-text "*.json"
  edge-embed index ~/notes --watch

\b
Exit codes: 0 all is indexed, 1 done, but some files were skipped (each is named with the reason), others as elsewhere.
"""
)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path))
@db_option
@_index_options
@_file_options
@model_options
@click.option("--watch", is_flag=True, help="Stay, and follow changes until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON, with every file that was skipped.")
@click.option(
    "--progress/--no-progress", default=None, help="Show progress on stderr, or not; by default on a terminal."
)
def index(
    folders: tuple[Path, ...],
    db: Path | None,
    made: IndexOptions,
    files: FileOptions,
    engine: ModelOptions,
    watch: bool,
    as_json: bool,
    progress: bool | None,
) -> None:
    """Read folders into a database that `edge-embed search` answers from.

    Text, Markdown, HTML, PDF, Word (.docx), e-mail, notebooks and source code are cut by their headings and functions
    into chunks that fit the model. Run again, it embeds only what is new or changed, and removes what is gone. Whatever
    ends a run (Ctrl-C, a crash, no power), the same command goes on where it was. Nothing is written into the folders.

    A database belongs to one model, prompt and size. They are taken from it the next time, and refused if others are
    given. Files that cannot be read are named with the reason and skipped.
    """
    from edge_embed.search.indexing import Indexer
    from edge_embed.search.place import database_path
    from edge_embed.search.scan import Rules, root_of

    roots = [root_of(folder) for folder in folders]
    rules = Rules(files.max_file_size, files.hidden, files.ignore, files.follow_links, files.exclude, files.as_text)
    shown = sys.stderr.isatty() if progress is None else progress
    with terminable(), _open(database_path(db), made, engine) as (database, embedder):
        indexer = Indexer(database, embedder, rules, show_progress_bar=shown)
        try:
            if watch:
                from edge_embed.search.watching import watch as follow

                for report in follow(indexer, roots):
                    _say(report, database, as_json)
                return
            report = indexer.update(roots)
        except KeyboardInterrupt:
            if not watch:
                note("what was indexed is kept: the same command goes on from there")
            raise
    _say(report, database, as_json)
    if report.skipped:
        click.get_current_context().exit(SKIPPED)


@contextmanager
def _open(path: Path, made: IndexOptions, engine: ModelOptions) -> Iterator[tuple[Database, Embedder]]:
    """The database, made if it is not there, and its model."""
    from edge_embed.errors import DatabaseMissingError
    from edge_embed.search.database import Database
    from edge_embed.search.record import check_model, check_same, make_record

    record: Record | None = None
    try:
        with Database(path) as there:
            record = there.record
    except DatabaseMissingError:
        pass
    if record is not None:
        engine = settled(engine, record)
        recorded = asdict(record)
        made = replace(made, **{name: recorded[name] for name, value in asdict(made).items() if value is None})
    lora, scale = engine.lora
    with engine.open() as embedder:
        if record is not None:
            check_model(record, embedder.info, where=str(path))
        asked = make_record(
            embedder,
            model=engine.model,
            lora=(lora, scale) if lora else None,
            projection=engine.projection,
            **{name: value for name, value in asdict(made).items() if value is not None},
        )
        if record is not None:
            check_same(record, asked, where=str(path))
        with Database(path, asked) as database:
            yield database, embedder


def settled(engine: ModelOptions, record: Record) -> ModelOptions:
    """What was not said of the model, as the database has it."""
    pooling = {name: record.pooling for name in ("pooling",) if engine.pooling is None}
    return replace(
        engine,
        model=record.model if engine.model is None else engine.model,
        lora=engine.lora if engine.lora[0] or record.adapter is None else (record.adapter[0], record.adapter[2]),
        projection=engine.projection or (None if record.projection is None else record.projection[0]),
        **pooling,  # type: ignore[arg-type]  # one of the names, for it came from a model
    )


def _say(report: Report, database: Database, as_json: bool) -> None:
    """What was done, on stdout; what was skipped, on stderr."""
    if as_json:
        say_json({"database": str(database.path), **asdict(report)})
        return
    done = f"{report.n_files} files, {report.n_chunks} chunks in {database.path}: {report.n_updated} new or changed"
    click.echo(f"{done}, {report.n_removed} removed, {report.n_embedded} chunks embedded")
    for one in report.skipped[:_SHOWN]:
        note(f"skipped {one.path}: {shorten(one.reason, 200)}")
    if len(report.skipped) > _SHOWN:
        note(f"skipped {len(report.skipped) - _SHOWN} more; --json names all of them")
