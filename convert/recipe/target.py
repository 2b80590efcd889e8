"""What is asked of a choice, how it is made, and what comes of it: the values that this package's modules pass on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_embed.errors import InvalidOptionError

from ..checkpoint import Progress
from ..verify import Verification
from ..writing import ConversionReport
from .measure import Figures

Log = Callable[[str], None]
"""Called with a sentence about what is being done."""
Verify = Callable[[Path], Verification]
"""Compares a finished file with the checkpoint."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a file must keep to; exactly one is set.

    Attributes:
        max_bytes: largest size of the file.
        min_cosine: lowest cosine of any calibration text to its unquantized vector.
    """

    max_bytes: int | None = None
    min_cosine: float | None = None

    def __post_init__(self) -> None:
        if (self.max_bytes is None) == (self.min_cosine is None):
            raise InvalidOptionError("a target is either a largest size or a lowest cosine")
        if self.min_cosine is not None and not 0 < self.min_cosine < 1:
            raise InvalidOptionError(f"min_cosine is {self.min_cosine}", hint="give a number between 0 and 1")

    @property
    def label(self) -> str:
        """For names and metadata, e.g. ``max-size=20000000``."""
        return f"max-size={self.max_bytes}" if self.min_cosine is None else f"min-cosine={self.min_cosine:g}"


@dataclass(frozen=True, slots=True)
class Point:
    """A file that could be made: ``recipe``, or the plain type of that name, its size and how close it is."""

    name: str
    size_bytes: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and among what.

    Attributes:
        report: of the file that was written.
        figures: of the file, run by the engine over all calibration texts.
        frontier: what the recipe gives at several sizes, and the plain types, measured before.
        n_texts: calibration texts.
        n_runs: how often the model ran over them to measure.
    """

    report: ConversionReport
    figures: Figures
    frontier: tuple[Point, ...]
    n_texts: int
    n_runs: int


@dataclass(frozen=True, slots=True)
class Measuring:
    """How a choice is made: on which texts, with what, and who is told.

    Attributes:
        texts: what the loss is measured on; the built-in ones for None.
        dataset: what the texts are called in the file.
        imatrix: an importance matrix for this model.
        threads: how many threads quantize and compute.
        log: told what is going on.
        progress: called with (runs of the model done, in all, what was measured), from 1 again after a ``log``.
        verify: compares the file with the checkpoint before it gets its name; the figures are recorded.
    """

    texts: Iterable[str] | None = None
    dataset: str = "built-in texts"
    imatrix: Path | str | None = None
    threads: int = 2
    log: Log = lambda _: None
    progress: Progress | None = None
    verify: Verify | None = None


BY_DEFAULT = Measuring()
