"""``edge-embed embed --engine``: tables in, tables with vectors out, by one process or by a cluster."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_embed.bulk.blocks import DEFAULT_ROWS
from edge_embed.bulk.job import TABLE_FORMATS, VECTOR_COLUMN, Request
from edge_embed.bulk.storage import is_uri, shown
from edge_embed.cli.options import AT_LEAST_1, Command, ModelOptions, TextSource, grouped, texts_of
from edge_embed.cli.pull import ensure
from edge_embed.cli.terminal import note, terminable

if TYPE_CHECKING:
    from edge_embed.bulk.running import Engine, Report

ENGINES: Final = ("local", "ray")
_TABLES: Final = (".parquet", ".pq", ".lance")  # what no text is kept in


@dataclass(frozen=True, slots=True)
class InputSource(TextSource):
    """Where texts come from: as everywhere, or, with an engine, from tables.

    Attributes:
        where: the engine.
    """

    where: str | None

    def check(self) -> InputSource:
        """Itself, if exactly one source is named; click.UsageError otherwise."""
        if self.where is None:
            super(InputSource, self).check()  # slots make another class of this one
            return self
        if bool(self.texts) == (self.file is not None):
            raise click.UsageError("--engine reads tables: name files, folders or URIs, or one with --file")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tables, paths made whole."""
        given = self.texts or (str(self.file),)
        return tuple(text if is_uri(text) else shown(text) for text in given)


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How tables are read, dealt out and written; None leaves the choice to the library."""

    address: str | None
    workers: int | None
    gpus: float | None
    keep: tuple[str, ...]
    vector_column: str | None
    block_rows: int | None
    storage: tuple[str, ...]

    def chosen(self, source: InputSource) -> bool:
        """Whether tables are meant; click.UsageError for options that do not go together."""
        tables = source.where is not None or Path(source.file or "").suffix.lower() in _TABLES
        given = {
            "--workers": self.workers, "--address": self.address, "--gpus": self.gpus, "--keep": self.keep or None,
            "--vector-column": self.vector_column, "--block-rows": self.block_rows,
            "--storage-option": self.storage or None,
        }  # fmt: skip
        named = [name for name, value in given.items() if value is not None]
        if named and not tables:
            raise click.UsageError(f"{named[0]} is about tables: it belongs to --engine")
        if [name for name in named if name in ("--workers", "--address", "--gpus")] and source.where != "ray":
            raise click.UsageError(f"{named[0]} is about a cluster: it belongs to --engine ray")
        return tables


def input_source(command: Command) -> Command:
    """Adds where texts come from; the command gets ``source``, an InputSource."""
    return texts_of(
        InputSource,
        command,
        click.option("--engine", "where", type=click.Choice(ENGINES), help="Embed tables: here, or on Ray; see above."),
    )


def table_options(command: Command) -> Command:
    """Adds what is asked of tables; the command gets ``tables``, a TableOptions."""
    return grouped(
        "tables",
        TableOptions,
        command,
        click.option(
            "--workers", type=AT_LEAST_1, metavar="N", help="Engines of --engine ray; one a machine by default."
        ),
        click.option(
            "--address", metavar="HOST", help="Ray cluster, as ray.init takes it; this machine alone by default."
        ),
        click.option(
            "--gpus", type=click.FloatRange(min=0), metavar="N", help="GPUs of each engine, as Ray counts them."
        ),
        click.option(
            "--keep", multiple=True, metavar="COLUMN", help="Columns of a table that the output has; all by default."
        ),
        click.option("--vector-column", metavar="NAME", help=f"The column of vectors; {VECTOR_COLUMN} by default."),
        click.option(
            "--block-rows",
            type=AT_LEAST_1,
            metavar="N",
            help=f"Rows of a table that are read, embedded and written at once; {DEFAULT_ROWS} by default.",
        ),
        click.option(
            "--storage-option", "storage", multiple=True, metavar="NAME=VALUE", help="An option of Lance's stores."
        ),
    )


def embed_tables(
    source: InputSource,
    tables: TableOptions,
    engine: ModelOptions,
    encode: dict[str, Any],
    output: str | None,
    output_format: str | None,
    resume: bool | None,
    progress: bool | None,
) -> None:
    """Do a job, and say what was done."""
    if output is None or output == "-":
        raise click.UsageError("tables need an --output: a folder, a URI, or a NAME.lance")
    if output_format is not None and output_format not in TABLE_FORMATS:
        raise click.UsageError(f"tables are written as {', '.join(TABLE_FORMATS)}, not as {output_format}")
    if source.input_format is not None:
        raise click.UsageError("what a table is, its extension says: leave --input-format out")
    model = ensure(engine.model, yes=engine.yes)
    from edge_embed.bulk.examine import job_of
    from edge_embed.bulk.running import Run

    request = Request(
        inputs=source.inputs,
        output=output if is_uri(output) else shown(output),
        output_format=output_format,
        column=source.field,
        keep=tables.keep or None,
        vector_column=tables.vector_column or VECTOR_COLUMN,
        block_rows=tables.block_rows or DEFAULT_ROWS,
        model=_portable(engine.model, model),
        options=_whole(engine.arguments()),
        encode=encode,
        storage=dict(_pair(text) for text in tables.storage),
    )
    with terminable():
        run = Run(job_of(request), _engine(source, tables, engine), again=resume is False)
        if run.complete:
            note(f"{output} was complete already")
            return
        if run.n_before:
            note(f"{run.n_before} of {run.job.n_rows} texts were done before")
        try:
            report = run.finish(shown=sys.stderr.isatty() if progress is None else progress)
        except BaseException:
            note(f"{run.n_done} of {run.job.n_rows} texts are kept: the same command goes on from there")
            raise
    _say(report)


def _engine(source: InputSource, tables: TableOptions, engine: ModelOptions) -> Engine:
    if source.where == "ray":
        from edge_embed.bulk.cluster import Cluster

        return Cluster(tables.address, tables.workers, engine.threads, tables.gpus or 0)
    from edge_embed.bulk.worker import in_this_process

    return in_this_process


def _portable(asked: str | None, found: str | Path | None) -> str | None:
    """The model as another machine finds it: a file by its whole path, a known model by its name."""
    if asked is not None and Path(asked).is_file():
        return shown(asked)
    from edge_embed.catalogue import resolve
    from edge_embed.errors import ModelMissingError

    try:
        resolve(asked)
    except ModelMissingError:  # it was fetched just now, under another name
        return str(found)
    return asked


def _whole(options: dict[str, Any]) -> dict[str, Any]:
    """Paths made whole, as workers may stand in other folders."""
    return {
        name: shown(value) if value is not None and name in ("lora", "projection") else value
        for name, value in options.items()
    }


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--storage-option is NAME=VALUE, not {text!r}")
    return name, value


def _say(report: Report) -> None:
    now = report.n_rows - report.n_before
    if not report.n_rows:
        note("the input holds no texts")
        return
    rate = now / report.seconds if report.seconds else 0.0
    note(
        f"{now} texts in {report.seconds:.1f} s ({rate:.0f} texts/s, {report.n_tokens} tokens), "
        f"{report.n_blocks} blocks in all; {report.workers} worker{'' if report.workers == 1 else 's'}"
    )
    if report.n_truncated:
        note(f"{report.n_truncated} of {now} texts were cut; --truncate error refuses instead")
