"""What something costs as a picture: size against loss and retrieval overlap. Needs matplotlib, an optional extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_embed.errors import InvalidOptionError, OutputFileError

if TYPE_CHECKING:
    from edge_embed.projection import Cost

    from .recipe import Point
    from .recipe.measure import Figures


def require(path: Path) -> None:
    """Find out before an hour of measuring whether the picture can be drawn.

    Raises:
        InvalidOptionError: matplotlib is not installed, or the file would not be a PNG.
        OutputFileError: its folder does not exist.
    """
    if path.suffix.lower() != ".png":
        raise InvalidOptionError(f"{path} is not a .png", hint="the plot is a PNG")
    if not path.parent.is_dir():
        raise OutputFileError(f"{path} cannot be written: there is no such folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidOptionError("a plot needs matplotlib", hint="pip install 'edge-embed[plots]'")


def draw(frontier: Sequence[Point], size_bytes: int, figures: Figures, path: Path, *, title: str) -> None:
    """Two panels, loss (1 - cosine, logarithmic) and top-10 overlap over size; plain types are named.

    Args:
        frontier: what was measured.
        size_bytes: size of the file that was written.
        figures: how close it is.
        path: the PNG.
        title: the model's name.

    Raises:
        OutputFileError: it cannot be written.
    """
    figure, loss, overlap = _panels()
    recipe = sorted((p for p in frontier if p.name == "recipe"), key=lambda p: p.size_bytes)
    plain = [p for p in frontier if p.name != "recipe"]
    megabytes = [p.size_bytes / 1e6 for p in recipe]
    floor = 1e-7  # of a logarithmic axis: a lossless point has none
    loss.plot(megabytes, [max(floor, 1 - p.figures.mean_cosine) for p in recipe], "o-", label="recipe, mean")
    loss.plot(megabytes, [max(floor, 1 - p.figures.min_cosine) for p in recipe], "o--", label="recipe, worst text")
    overlap.plot(megabytes, [p.figures.overlap for p in recipe], "o-", label="recipe")
    for p in plain:
        x = p.size_bytes / 1e6
        loss.plot(x, max(floor, 1 - p.figures.mean_cosine), "kx")
        loss.annotate(p.name, (x, max(floor, 1 - p.figures.mean_cosine)), fontsize=7)
        overlap.plot(x, p.figures.overlap, "kx")
        overlap.annotate(p.name, (x, p.figures.overlap), fontsize=7)
    loss.plot(size_bytes / 1e6, max(floor, 1 - figures.mean_cosine), "r*", markersize=12, label="this file")
    overlap.plot(size_bytes / 1e6, figures.overlap, "r*", markersize=12, label="this file")
    loss.set_yscale("log")
    loss.set(xlabel="MB", ylabel="1 - cosine to the unquantized vector")
    overlap.set(xlabel="MB", ylabel="of the nearest ten, share that stays")
    _save(figure, path, title)


def draw_costs(costs: Sequence[Cost], path: Path, *, title: str) -> None:
    """Two panels, change of the cosines and top-10 overlap over the size, each with a projection and with a plain cut.

    Args:
        costs: smallest size first.
        path: the PNG.
        title: the model's name.

    Raises:
        OutputFileError: it cannot be written.
    """
    figure, drift, overlap = _panels()
    sizes = [cost.dimensions for cost in costs]
    for label, style, found in (
        ("projected", "o-", [cost.projected for cost in costs]),
        ("plain cut", "x--", [cost.plain for cost in costs]),
    ):
        drift.plot(sizes, [quality.drift for quality in found], style, label=label)
        overlap.plot(sizes, [quality.overlap for quality in found], style, label=label)
    drift.set(xlabel="values of a vector", ylabel="mean change of the cosine of two texts")
    overlap.set(xlabel="values of a vector", ylabel="of the nearest ten, share that stays")
    for axes in (drift, overlap):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.minorticks_off()
    _save(figure, path, title)


def _panels() -> tuple[Any, Any, Any]:
    """A figure, its left and its right axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    return figure, left, right


def _save(figure: Any, path: Path, title: str) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=120, metadata={"Software": None})
    except OSError as error:
        raise OutputFileError(f"{path} cannot be written: {error}") from error
