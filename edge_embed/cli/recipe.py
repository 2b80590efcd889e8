"""Options of ``convert`` and ``quantize`` for types chosen by measurement, and what is said of a choice."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_embed.cli.terminal import facts, note, size, table
from edge_embed.files import read_file

if TYPE_CHECKING:
    from edge_embed.convert.recipe import Choice, Log, Measuring, Target, Verify
    from edge_embed.progress import Progress

_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def n_bytes(_ctx: click.Context | None, _param: click.Parameter | None, value: str | None) -> int | None:
    """Bytes of ``3GB``, ``2.5GiB``, ``400MB`` or a number; click.BadParameter for anything else."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise click.BadParameter(f"{value!r} is not a size such as 3GB, 2.5GiB or 400MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """What the types are chosen by; None where they are not."""

    imatrix: Path | None
    max_size: int | None
    calibration: Path | None
    plot: Path | None

    def target(self, ftype: str | None, min_cosine: float | None, *, others: bool = False) -> Target | None:
        """What the file must keep to, where types are to be measured; click.UsageError where options contradict.

        Args:
            ftype: the type asked for, or None.
            min_cosine: ``--min-cosine``; beside a type it is no target.
            others: whether other options choose types.
        """
        measured = self.max_size is not None or (min_cosine is not None and ftype is None)
        if self.max_size is not None and (ftype is not None or min_cosine is not None):
            raise click.UsageError("--max-size chooses the types: it goes neither with --type nor with --min-cosine")
        if measured and others:
            raise click.UsageError("--max-size and --min-cosine choose every type: they do not go with --tensor-type")
        if not measured and (self.calibration is not None or self.plot is not None):
            raise click.UsageError("--calibration and --plot belong to --max-size or --min-cosine without --type")
        if not measured:
            return None
        from edge_embed.convert.plot import require
        from edge_embed.convert.recipe import Target

        if self.plot is not None:
            require(self.plot)
        return Target(max_bytes=self.max_size) if self.max_size is not None else Target(min_cosine=min_cosine)

    def measuring(self, threads: int, shown: Shown, verify: Verify | None = None) -> Measuring:
        """How the types are chosen, for the converter; reads the calibration texts."""
        from edge_embed.convert.recipe import Measuring

        how = Measuring(imatrix=self.imatrix, threads=threads, log=shown.log, progress=shown, verify=verify)
        if self.calibration is None:
            return how
        return replace(how, texts=list(read_file(self.calibration)), dataset=self.calibration.name)


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--imatrix --max-size --calibration --plot``; the command gets ``recipe``, a RecipeOptions."""
    names = [field.name for field in fields(RecipeOptions)]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        command(recipe=RecipeOptions(**{name: values.pop(name) for name in names}), **values)

    result: Callable[..., None] = call
    for option in (
        click.option(
            "--plot",
            metavar="PNG",
            type=click.Path(path_type=Path),
            help="Draw size against cosine and overlap (needs the extra `plots`).",
        ),
        click.option(
            "--calibration",
            metavar="PATH",
            type=click.Path(path_type=Path),
            help="Texts to measure on, .txt, .jsonl, .csv or .tsv; built-in ones in many languages by default.",
        ),
        click.option(
            "--max-size",
            metavar="SIZE",
            callback=n_bytes,
            help="Choose each matrix's type by measuring what it costs the vectors, for the closest file no larger "
            "than this, e.g. 3GB.",
        ),
        click.option(
            "--imatrix",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Importance matrix of `edge-embed calibrate` or llama.cpp.",
        ),
    ):
        result = option(result)
    return result


class Shown:
    """Progress of measuring, and what is being done; a context, for its last line."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._bar: Progress | None = None
        self._done = 0
        self.log: Log = self._say

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar, self._done = None, 0

    def __call__(self, done: int, total: int, what: str) -> None:
        """A measurement of ``total`` is done."""
        from edge_embed.progress import Progress

        del what
        if self._bar is None:
            self._bar = Progress("measuring", total, "runs", enabled=self._enabled)
        self._bar.advance(done - self._done)
        self._done = done

    def _say(self, sentence: str) -> None:
        self.__exit__()
        if self._enabled:
            click.echo(sentence, err=True)


def lines_of(choice: Choice) -> Iterator[str]:
    """What was chosen and what else was measured."""
    found = choice.figures
    yield ""
    yield from facts(
        {
            "cosine": f"{found.mean_cosine:.6f} on average, {found.min_cosine:.6f} at the worst text",
            "top-10": f"{found.overlap:.1%} of the nearest ten stay among them",
            "measured": f"{choice.n_texts} texts, {choice.n_runs} runs of the model",
        }
    )
    yield "\nwhat a file of another size, or of a plain type, loses:"
    rows = [
        (
            size(point.size_bytes),
            point.name,
            f"{point.figures.mean_cosine:.6f}",
            f"{point.figures.min_cosine:.6f}",
            f"{point.figures.overlap:.1%}",
        )
        for point in sorted(choice.frontier, key=lambda point: (point.size_bytes, point.name))
    ]
    yield from table(rows, head=("size", "types", "cosine", "lowest", "top-10"), right=(0, 2, 3, 4))


def show_choice(choice: Choice, recipe: RecipeOptions) -> None:
    """Print it, and draw it where that was asked for."""
    for line in lines_of(choice):
        click.echo(line)
    if recipe.plot is not None:
        from edge_embed.convert.plot import draw

        draw(choice.frontier, choice.report.size_bytes, choice.figures, recipe.plot, title=choice.report.name)
        note(f"the frontier is drawn in {recipe.plot}")
