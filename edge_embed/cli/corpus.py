"""What the commands over many texts at once have in common: texts and their vectors in, lines or a table out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_embed.cli.options import Command, EncodeOptions, ModelOptions, grouped
from edge_embed.cli.output import part_of
from edge_embed.cli.terminal import note, table, terminable
from edge_embed.errors import OutputFileError

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.progress import Progress
    from edge_embed.types import Float32Array

WIDTH = 60  # columns of a text in a table


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """Where results go, and whether progress is shown."""

    output: Path | None
    as_table: bool
    progress: bool | None

    @property
    def shown(self) -> bool:
        """Whether progress is to be shown."""
        return sys.stderr.isatty() if self.progress is None else self.progress

    def counting(self, total: int) -> Progress:
        """Progress of comparing that many texts."""
        from edge_embed.progress import Progress

        return Progress("comparing", total, "texts", enabled=self.shown)

    def say(self, records: Iterable[Mapping[str, Any]], head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The records, a line of JSON each, or for people the table of those rows; numbers stand on the right."""
        if self.as_table:
            cells = list(rows)
            right = [i for i in range(len(head)) if all(_is_number(row[i]) for row in cells)]
            lines: Iterable[str] = table(cells, head=head, right=right)
        else:
            lines = (json.dumps(record, ensure_ascii=False) for record in records)
        if self.output is None:
            for line in lines:
                click.echo(line)
        else:
            write_whole(self.output, (f"{line}\n".encode() for line in lines))


def result_options(command: Command) -> Command:
    """Adds them; the command gets ``result``, a ResultOptions."""
    return grouped(
        "result",
        ResultOptions,
        command,
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output by default."
        ),
        click.option("--table", "as_table", is_flag=True, help="A readable table instead of lines of JSON."),
        click.option(
            "--progress/--no-progress",
            default=None,
            help="Show progress on stderr, or not; by default where stderr is a terminal.",
        ),
    )


vectors_option = click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The texts' vectors (.npy of `edge-embed embed`), if they are embedded already.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Another one, another beginning."
)


class Vectors:
    """Unit vectors of texts, by a model that is opened when it is needed, or from files."""

    def __init__(self, engine: ModelOptions, encoding: EncodeOptions, *, shown: bool) -> None:
        self._engine, self._encoding, self._shown = engine, encoding, shown
        self._embedder: Embedder | None = None

    def of(self, texts: Sequence[str], path: Path | None = None) -> Float32Array:
        """float32 ``[n, d]``; what was cut is noted.

        Args:
            texts: the texts.
            path: vectors of theirs that were made before.
        """
        from edge_embed.corpus.neighbours import unit
        from edge_embed.two_stage import check_count, open_vectors

        if path is not None:
            found = open_vectors(path)
            check_count(len(found), len(texts))
            return unit(found)
        if self._embedder is None:
            self._embedder = self._engine.open()
        result = self._encoding.embed(self._embedder, texts, normalize=True, show_progress_bar=self._shown)
        if result.usage.n_truncated:
            cut = f"{result.usage.n_truncated} of {len(texts)} texts"
            note(f"{cut} were cut to {self._embedder.info.max_tokens} tokens; --truncate chunk reads all of them")
        return unit(result.vectors)

    def close(self) -> None:
        """Free the model."""
        if self._embedder is not None:
            self._embedder.close()


@contextmanager
def working(engine: ModelOptions, encoding: EncodeOptions, result: ResultOptions) -> Iterator[Vectors]:
    """Vectors for a block of work, which a signal ends as Ctrl-C does."""
    vectors = Vectors(engine, encoding, shown=result.shown)
    with terminable():
        try:
            yield vectors
        finally:
            vectors.close()


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """A file that is there whole or not at all.

    Raises:
        OutputFileError: it cannot be written.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.writelines(parts)
        part.replace(path.resolve())
    except OSError as error:
        raise OutputFileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()
