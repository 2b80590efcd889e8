"""What ``convert`` and ``quantize`` have in common: tensors written in chunks on threads, and the report on it.

Knows types, rows and the file. Knows nothing of where the rows come from: each tensor brings a function for that.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge_embed.errors import InvalidOptionError

from .architectures.family import SkippedTensor
from .blocks.rows import chunks, in_order
from .blocks.types import Recipe, TensorType
from .checkpoint import Progress, is_encodable
from .container.output import GGUFOutput, OutputTensor
from .verify.result import Verification


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor: row-major shape, the type asked for, the type it got, why where they differ, and its bytes."""

    name: str
    shape: tuple[int, ...]
    asked: str
    got: str
    why: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        path: the file.
        architecture: ``general.architecture``.
        name: ``general.name``.
        ftype: the type asked for.
        tensors: those written, in the file's order.
        skipped: those left out, with the reason.
        notes: what was decided without the checkpoint saying so, one sentence each.
        n_parameters: values in the tensors written.
        size_bytes: size of the file.
        bits_per_weight: of the tensors, without the metadata.
        sha256: digest of the file.
        seconds: wall time.
        verification: how close it came to the checkpoint, where that was asked for.
    """

    path: Path
    architecture: str
    name: str
    ftype: str
    tensors: tuple[TensorReport, ...]
    skipped: tuple[SkippedTensor, ...]
    notes: tuple[str, ...]
    n_parameters: int
    size_bytes: int
    bits_per_weight: float
    sha256: str
    seconds: float
    verification: Verification | None = None

    @property
    def fallbacks(self) -> tuple[TensorReport, ...]:
        """The tensors that did not get the type that was asked for."""
        return tuple(t for t in self.tensors if t.why)


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a tensor of the output comes from.

    Attributes:
        info: its line in the output's table.
        n_bytes: its size in what is read, for the progress.
        encode: rows ``first .. first+count`` as they are written, called as ``encode(first, count)`` on any thread.
    """

    info: OutputTensor
    n_bytes: int
    encode: Callable[[int, int], bytes]


def write_tensors(
    file: GGUFOutput, sources: Sequence[TensorSource], *, threads: int, progress: Progress | None
) -> None:
    """Write every tensor, chunk by chunk, in the table's order, and the padding behind each.

    Raises:
        CheckpointError: what ``encode`` raises; no thread reads on then.
        OutputFileError: the file cannot be written.
    """
    steps = [(source, first, count) for source in sources for first, count in chunks(*_plane(source.info.shape))]

    def jobs() -> Iterator[Callable[[], bytes]]:
        for source, first, count in steps:
            yield partial(source.encode, first, count)

    total = sum(source.n_bytes for source in sources)
    done = 0
    # Closed here and not when it is collected: after an error no thread may read on from files that are closed.
    with contextlib.closing(in_order(jobs(), threads)) as results:
        for (source, first, count), data in zip(steps, results, strict=True):
            n_rows, _ = _plane(source.info.shape)
            file.write(data)
            if first + count == n_rows:
                file.pad()
            done += count * (source.n_bytes // n_rows)
            if progress is not None:
                progress(done, total, source.info.name)


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a row-major shape; a vector is one row."""
    return math.prod(shape[:-1]), shape[-1]


def fallback_lines(names: Sequence[str], types: Sequence[TensorType]) -> list[str]:
    """One line for each tensor that got another type than was asked for."""
    return [
        f"{name}: {kind.asked.name} -> {kind.got.name} ({kind.why})"
        for name, kind in zip(names, types, strict=True)
        if kind.why
    ]


def check_texts(**options: str | None) -> None:
    """Refuse what UTF-8 cannot carry (a folder's undecodable name, too) and what C would end early."""
    for option, value in options.items():
        if value is not None and ("\0" in value or not is_encodable(value)):
            raise InvalidOptionError(f"{option} {value!r} holds a character that a GGUF cannot")


def output_path(output: Path | str | None, default_name: str) -> Path:
    """The file to write: as asked for, or of that name in the folder that was asked for, or in this one."""
    path = Path.cwd() if output is None else Path(output)
    return path / default_name if path.is_dir() else path


def make_report(
    path: Path,
    architecture: str,
    title: str,
    recipe: Recipe,
    infos: Sequence[OutputTensor],
    types: Sequence[TensorType],
    skipped: tuple[SkippedTensor, ...],
    notes: tuple[str, ...],
    file: GGUFOutput,
    started: float,
) -> ConversionReport:
    """The report on a file that was written."""
    tensors = tuple(
        TensorReport(info.name, info.shape, kind.asked.name, kind.got.name, kind.why, info.nbytes)
        for info, kind in zip(infos, types, strict=True)
    )
    n_parameters = sum(math.prod(t.shape) for t in tensors)
    return ConversionReport(
        path=path,
        architecture=architecture,
        name=title,
        ftype=recipe.label,
        tensors=tensors,
        skipped=skipped,
        notes=notes,
        n_parameters=n_parameters,
        size_bytes=file.size,
        bits_per_weight=8 * sum(t.nbytes for t in tensors) / n_parameters,
        sha256=file.sha256(),
        seconds=time.perf_counter() - started,
    )
