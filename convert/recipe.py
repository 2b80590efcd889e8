"""Which type each matrix gets, from what it costs the final vectors: a file no larger, or no worse, than asked for.

1. The unquantized model runs in the engine over calibration texts, and each matrix (of a large model: all of one kind
   in a quarter of the layers) is given each type in turn: its loss is 1 - cosine to the unquantized vector.
2. Losses of different matrices add up nearly (measured on all-MiniLM-L6-v2 in Q4_0: 0.04254 added, 0.04250 together),
   so ``tradeoff.py`` chooses, and what it chose is measured as a whole. Where a lowest cosine was asked for, the
   smallest choice that really has it is searched for.
3. The file is written and run by the engine as a user runs it. It gets its name only if it keeps to the target there,
   too; where its kernels lose more than expected, more bytes are bought.

The figures depend on the processor's kernels in their last digits; on one machine the same input gives the same file.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType

from edge_embed import keys
from edge_embed.errors import InvalidOptionError, UnsupportedCheckpointError
from edge_embed.gguf_header import TensorInfo
from edge_embed.types import Float32Array

from .architectures.family import text
from .calibrate import framed, framings, texts_or_default
from .checkpoint import Checkpoint, Progress
from .container import padded
from .convert import ConversionReport, output_path
from .imatrix import ImportanceMatrix, read_imatrix, weights_for
from .measure import Figures, Losses, MeasuredModel, compare, fits
from .modules import read_modules
from .quantize import RECIPES, Recipe, is_quantizable, recipe_named, tensor_bytes
from .requantize import EXACT, GGUFSource, Plan, kind_of, plan_file, write_file
from .tradeoff import Assignment, Frontier, Unit, weighted_frontier
from .verify import Verification, figures, require_passed

Log = Callable[[str], None]
"""Called with a sentence about what is being done."""
Verify = Callable[[Path], Verification]
"""Compares a finished file with the checkpoint."""

_FILE_TYPES = {
    Kind.F16: LlamaFileType.MOSTLY_F16,
    Kind.BF16: LlamaFileType.MOSTLY_BF16,
    Kind.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Kind.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    Kind.Q5_K: LlamaFileType.MOSTLY_Q5_K_M,
    Kind.Q5_1: LlamaFileType.MOSTLY_Q5_1,
    Kind.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Kind.Q4_K: LlamaFileType.MOSTLY_Q4_K_M,
    Kind.IQ4_XS: LlamaFileType.MOSTLY_IQ4_XS,
    Kind.IQ4_NL: LlamaFileType.MOSTLY_IQ4_NL,
    Kind.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    Kind.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Kind.Q3_K: LlamaFileType.MOSTLY_Q3_K_M,
}
# Products of a weight and an activation that measuring may take: a quarter of an hour on two cores. Counted, not
# timed, so that the choice does not depend on what else the machine does.
_BUDGET = 5e13
_PER_SECOND = 5e10  # of those, on two cores; for the announcement only
_TOKENS_PER_TEXT = 25  # of the built-in texts, about; for the plan only
_BANDS = 4  # of layers
_FEWEST_TEXTS = 16
_TYPES = 7  # that a matrix is given in turn
_POINTS = 8  # of the frontier that are measured
_MEASURED_TYPE = 4  # of a matrix's types, largest first, where only one is measured: one of about 4.5 bits
_EXTRA_STEPS = 6  # corrections after the file itself was run


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
class Scheme:
    """How finely a model is measured.

    Attributes:
        banded: whether the matrices of one kind in a band of layers share a type.
        scaled: whether one type is measured and the others' loss is scaled by the error of the weights.
        texts: those that matrices are measured on.
        products: of a weight and an activation that this takes.
    """

    banded: bool
    scaled: bool
    texts: tuple[str, ...]
    products: float


def quantize_to_target(
    source: Path | str,
    output: Path | str | None,
    target: Target,
    *,
    texts: Iterable[str] | None = None,
    dataset: str = "built-in texts",
    imatrix: Path | str | None = None,
    threads: int = 2,
    log: Log = lambda _: None,
    progress: Progress | None = None,
    verify: Verify | None = None,
) -> Choice:
    """Write a GGUF again with the types that lose least at a size, or weigh least at a loss.

    Args:
        source: an F32, F16 or BF16 GGUF of an embedding model, which this machine can hold in memory.
        output: file to write, or a folder for it.
        target: the size or the cosine.
        texts: what the loss is measured on; the built-in ones for None.
        dataset: what the texts are called in the file.
        imatrix: an importance matrix for this model.
        threads: how many threads quantize and compute.
        log: told what is going on.
        progress: called with (measurements done, in all, tensor's name).
        verify: compares the file with the checkpoint before it gets its name; the figures are recorded.

    Raises:
        VerificationError: ``verify`` found that it computes something else.
        InvalidOptionError: the target cannot be met, or the source is quantized already.
        ModelError, ConversionError, EngineError: as ``quantize`` and ``Embedder``.
    """
    (choice,) = quantize_to_targets(
        source,
        [(output, target)],
        texts=texts,
        dataset=dataset,
        imatrix=imatrix,
        threads=threads,
        log=log,
        progress=progress,
        verify=verify,
    )
    return choice


def quantize_to_targets(
    source: Path | str,
    targets: Sequence[tuple[Path | str | None, Target]],
    *,
    texts: Iterable[str] | None = None,
    dataset: str = "built-in texts",
    imatrix: Path | str | None = None,
    threads: int = 2,
    log: Log = lambda _: None,
    progress: Progress | None = None,
    verify: Verify | None = None,
) -> list[Choice]:
    """``quantize_to_target`` for several outputs, measuring once; the frontier is the first target's."""
    chosen = texts_or_default(texts)
    matrix = None if imatrix is None else read_imatrix(imatrix)
    with GGUFSource(source) as opened:
        quantized = [t.name for t in opened.tensors if kind_of(t) not in EXACT]
        if quantized:
            raise InvalidOptionError(
                f"{opened.path} is quantized already ({quantized[0]}, ...): what more of it costs cannot be measured",
                hint="give the F32, F16 or BF16 file, or convert the checkpoint",
            )
        chooser = _Chooser(opened, chosen, dataset, matrix, threads, log, progress, verify)
        return chooser.run(
            [
                (output_path(output, f"{opened.name}-{target.label}.gguf".replace("/", "-")), target)
                for output, target in targets
            ]
        )


class _Chooser:
    """The steps, which share the source, the texts and what was measured."""

    def __init__(
        self,
        source: GGUFSource,
        texts: Sequence[str],
        dataset: str,
        matrix: ImportanceMatrix | None,
        threads: int,
        log: Log,
        progress: Progress | None,
        verify: Verify | None,
    ) -> None:
        self._verify = verify
        self._source, self._texts, self._dataset = source, texts, dataset
        self._matrix, self._threads, self._log, self._progress = matrix, threads, log, progress
        self._n_runs = 0
        self._groups: list[list[TensorInfo]] = []

    def run(self, targets: Sequence[tuple[Path, Target]]) -> list[Choice]:
        matrices = [t for t in self._source.tensors if is_quantizable(t.name, t.shape[::-1])]
        weights, _ = weights_for(self._matrix, [(t.name, t.shape[0], Kind.Q8_0) for t in matrices])
        scheme = scheme_for(matrices, self._texts)
        self._announce(scheme)
        with MeasuredModel(
            self._source, scheme.texts, weights, threads=self._threads, engine_threads=self._threads
        ) as model:
            self._groups = groups_of(model.matrices, banded=scheme.banded)
            units = self._measure(model, scheme)
            decisions = []
            points: list[Point] = []
            for path, target in targets:
                frontier = weighted_frontier(units, partial(self._pick, target))
                chosen = self._choose(model, frontier, target)
                decisions.append((path, target, frontier, chosen))
                points = points or self._points(model, frontier)
        reference = self._vectors(self._source.path)
        return [self._write(*decision, points, reference) for decision in decisions]

    # 1. measure

    def _announce(self, scheme: Scheme) -> None:
        what = "each matrix" if not scheme.banded else f"each kind of matrix in {_BANDS} bands of layers"
        how = "in one type, and scaling the others" if scheme.scaled else "in each type"
        minutes = scheme.products / _PER_SECOND / 60
        self._log(
            f"measuring {what} {how} on {len(scheme.texts)} of {len(self._texts)} texts: "
            f"about {max(1, round(minutes))} min on two cores"
        )

    def _measure(self, model: MeasuredModel, scheme: Scheme) -> list[Unit]:
        total = sum(1 if scheme.scaled else len(model.candidates(group[0])) for group in self._groups)
        units, done = [], 0
        for group in self._groups:
            possible = [k for k in model.candidates(group[0]) if all(fits(model, t, k) for t in group)]
            if not possible:
                raise UnsupportedCheckpointError(f"{self._source.path}: {group[0].name} fits none of the types")
            losses: dict[Kind, Losses] = {}
            for kind in possible[_MEASURED_TYPE:][:1] or possible[-1:] if scheme.scaled else possible:
                for tensor in group:
                    model.replace(tensor, kind)
                losses[kind] = np.maximum(model.losses(), 0.0)
                self._n_runs += 1
                done += 1
                if self._progress is not None:
                    self._progress(done, total, group[0].name)
            for tensor in group:
                model.restore(tensor)
            if scheme.scaled:
                losses = _scaled(model, group, possible, losses)
            sizes = {k: sum(padded(tensor_bytes(k, t.shape[::-1])) for t in group) for k in possible}
            units.append(Unit(sizes, losses))
        return units

    # 2. choose

    def _pick(self, target: Target, frontier: Frontier) -> Assignment | None:
        """The assignment that counts while texts are weighed."""
        if target.min_cosine is not None:
            return frontier.first_within(1 - target.min_cosine)
        assert target.max_bytes is not None, "a target has one of the two"
        overhead = self._plan(frontier.at(0), target).size_bytes - frontier.size(frontier.at(0))
        return frontier.within(target.max_bytes - overhead)

    def _choose(self, model: MeasuredModel, frontier: Frontier, target: Target) -> Assignment:
        if target.min_cosine is None:
            picked = self._pick(target, frontier)
            if picked is None:
                smallest = self._plan(frontier.at(0), target).size_bytes
                raise InvalidOptionError(
                    f"no file of this model fits into {target.max_bytes:,} bytes: the smallest has {smallest:,}",
                    hint="allow more bytes, or choose a smaller model",
                )
            return picked
        low, high = 0, len(frontier) - 1
        best = self._measured(model, frontier, frontier.at(high)).min_cosine
        if best < target.min_cosine:
            raise InvalidOptionError(
                f"the closest choice has a lowest cosine of {best:.6f}, below {target.min_cosine:g}",
                hint="ask for less, or keep the model as it is",
            )
        while low < high:  # the loss falls along the frontier, nearly
            middle = (low + high) // 2
            if self._measured(model, frontier, frontier.at(middle)).min_cosine >= target.min_cosine:
                high = middle
            else:
                low = middle + 1
        return frontier.at(high)

    def _measured(self, model: MeasuredModel, frontier: Frontier, assignment: Assignment) -> Figures:
        assert len(frontier.units) == len(assignment), "a type for each unit"
        for group, kind in zip(self._groups, assignment, strict=True):
            for tensor in group:
                model.replace(tensor, kind)
        self._n_runs += 1
        return model.figures()

    def _points(self, model: MeasuredModel, frontier: Frontier) -> list[Point]:
        """Some points of the frontier, and the plain types, measured."""
        points = []
        for index in frontier.spread(_POINTS):
            assignment = frontier.at(index)
            figures = self._measured(model, frontier, assignment)
            size = self._plan(assignment, Target(max_bytes=1)).size_bytes
            points.append(Point("recipe", size, figures))
        for name in (name for name, recipe in RECIPES.items() if recipe.default not in EXACT):
            plan = plan_file(self._source, recipe_named(name), self._matrix)
            got = {info.name: info.kind for info in plan.infos}
            for tensor in model.matrices:
                model.replace(tensor, got[tensor.name])
            self._n_runs += 1
            points.append(Point(name, plan.size_bytes, model.figures()))
        return points

    # 3. write and run

    def _plan(
        self, assignment: Assignment, target: Target, measured: str = "", verified: Verification | None = None
    ) -> Plan:
        chosen = {t.name: kind for group, kind in zip(self._groups, assignment, strict=True) for t in group}
        extra = [text(keys.MEASURED, measured or self._sentence(Figures(0, 0, 0)))]
        if self._verify is not None:
            extra += figures(verified, scores=False)
        return plan_file(self._source, _recipe(target, chosen, self._source), self._matrix, extra=extra)

    def _sentence(self, figures: Figures) -> str:
        """Of the same length whatever the figures are, so that it can be replaced in the file."""
        mean, lowest = (f"{cosine:.6f}"[:8] for cosine in (figures.mean_cosine, figures.min_cosine))
        return (
            f"cosine {mean}, lowest {lowest}, top-10 overlap {figures.overlap:.4f} "
            f"on {len(self._texts)} texts ({self._dataset})"
        )

    def _write(
        self,
        path: Path,
        target: Target,
        frontier: Frontier,
        chosen: Assignment,
        points: Sequence[Point],
        reference: Float32Array,
    ) -> Choice:
        candidate = path.with_name(f"{path.name}.{os.getpid()}.candidate")
        try:
            for _ in range(_EXTRA_STEPS):
                self._log(f"writing {path.name} and running it")
                plan = self._plan(chosen, target)
                report = write_file(plan, candidate, threads=self._threads)
                loss = compare(reference, self._vectors(candidate))
                if target.max_bytes is not None:
                    assert report.size_bytes <= target.max_bytes, "planned with a sentence of the same length"
                if target.min_cosine is None or loss.min_cosine >= target.min_cosine:
                    verified = None if self._verify is None else require_passed(self._verify(candidate))
                    whole = self._plan(chosen, target, self._sentence(loss), verified)
                    digest = _with_head(candidate, plan.head, whole.head)
                    candidate.replace(path)
                    verified = None if verified is None else replace(verified, path=path)
                    report = replace(report, path=path, sha256=digest, verification=verified)
                    return Choice(report, loss, tuple(points), len(self._texts), self._n_runs)
                self._log(f"the lowest cosine of the file is {loss.min_cosine:.6f}: buying more")
                larger = _larger(frontier, chosen)
                if larger is None:
                    break
                chosen = larger
        finally:
            candidate.unlink(missing_ok=True)
        raise InvalidOptionError(
            f"no file was found whose lowest cosine is {target.min_cosine:g}", hint="ask for a little less"
        )

    def _vectors(self, path: Path) -> Float32Array:
        """Vectors of all texts from a file, run as a user runs it."""
        from edge_embed.embedder import Embedder

        with Embedder(path, n_threads=self._threads) as embedder:
            return np.concatenate([framed(embedder, self._texts, framing).vectors for framing in framings(embedder)])


def scheme_for(matrices: Sequence[TensorInfo], texts: Sequence[str]) -> Scheme:
    """The finest way to measure that the budget allows; the coarsest where it allows none."""
    values = sum(math.prod(t.shape) for t in matrices if t.name != "token_embd.weight")
    n_groups = len(groups_of(matrices, banded=True))
    schemes = []
    for banded, scaled, fewest in ((False, False, 64), (True, False, 64), (True, True, _FEWEST_TEXTS)):
        runs = (n_groups if banded else len(matrices)) * (1 if scaled else _TYPES) + _POINTS + len(RECIPES)
        for n_texts in sorted({len(texts), *(n for n in (256, 128, 64, 32, 16) if fewest <= n < len(texts))})[::-1]:
            some = tuple(texts[i] for i in np.linspace(0, len(texts) - 1, n_texts).round().astype(int).tolist())
            schemes.append(Scheme(banded, scaled, some, float(values) * n_texts * _TOKENS_PER_TEXT * runs))
    return next((scheme for scheme in schemes if scheme.products <= _BUDGET), schemes[-1])


def groups_of(matrices: Sequence[TensorInfo], *, banded: bool) -> list[list[TensorInfo]]:
    """The matrices one by one, or those of one kind and shape in a band of layers together."""
    if not banded:
        return [[tensor] for tensor in matrices]
    layers = [int(match[1]) for t in matrices if (match := re.match(r"blk\.(\d+)\.", t.name))]
    n_layer = max(layers, default=0) + 1
    groups: dict[tuple[str, int, tuple[int, ...]], list[TensorInfo]] = {}
    for tensor in matrices:
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor.name)
        part, band = (match[2], int(match[1]) * _BANDS // n_layer) if match else (tensor.name, 0)
        groups.setdefault((part, band, tensor.shape), []).append(tensor)
    return list(groups.values())


def _scaled(
    model: MeasuredModel, group: Sequence[TensorInfo], possible: Sequence[Kind], measured: Mapping[Kind, Losses]
) -> dict[Kind, Losses]:
    """Losses of all types from those of one, in proportion to the squared error of the weights."""
    (kind, losses), *_ = measured.items()
    errors = {k: sum(model.error_of(t, k) for t in group) for k in possible}
    return {k: losses * (errors[k] / errors[kind] if errors[kind] else 1.0) for k in possible}


def _with_head(path: Path, old: bytes, new: bytes) -> str:
    """Replace a file's head by one of the same length: what a run of the file found; and its new digest."""
    assert len(old) == len(new), "sentences of the same length"
    digest = hashlib.sha256()
    with path.open("r+b") as file:
        file.write(new)
        file.seek(0)
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _larger(frontier: Frontier, assignment: Assignment) -> Assignment | None:
    """A later assignment of the frontier that is a twentieth closer, or None at its end."""
    size = frontier.size(assignment)
    later = [i for i in range(len(frontier)) if frontier.size(frontier.at(i)) > size]
    return frontier.at(later[min(len(later) - 1, max(0, len(frontier) // 20))]) if later else None


def _recipe(target: Target, chosen: Mapping[str, Kind], source: GGUFSource) -> Recipe:
    n_bytes: Counter[Kind] = Counter()
    for tensor in source.tensors:
        if tensor.name in chosen:
            n_bytes[chosen[tensor.name]] += tensor_bytes(chosen[tensor.name], tensor.shape[::-1])
    most = n_bytes.most_common(1)[0][0]
    return Recipe(target.label, Kind.F16, _FILE_TYPES[most], Kind.F16, chosen=chosen)


def convert_to_target(
    folder: Path | str,
    output: Path | str | None,
    target: Target,
    *,
    convert_exact: Callable[[Path, str], ConversionReport],
    merged: bool = False,
    texts: Iterable[str] | None = None,
    dataset: str = "built-in texts",
    imatrix: Path | str | None = None,
    threads: int = 2,
    log: Log = lambda _: None,
    progress: Progress | None = None,
    verify: Verify | None = None,
) -> Choice:
    """Convert a checkpoint with the types that ``quantize_to_target`` chooses.

    The model must run before anything can be chosen, so it is converted without loss first, beside the output; that
    file is removed again.

    Args:
        folder: the checkpoint.
        output: file to write, or a folder for it.
        target: the size or the cosine.
        convert_exact: converts the checkpoint to a path, with a type.
        merged: whether it adds something to the weights, which their own type may then not hold.
        texts: as for ``quantize_to_target``, and so are the other arguments and exceptions.
        dataset: see there.
        imatrix: see there.
        threads: see there.
        log: see there.
        progress: see there.
        verify: see there.
    """
    place = Path.cwd() if output is None else Path(output)
    place = place if place.is_dir() else place.parent
    exact = place / f".{target.label}.{os.getpid()}.exact.gguf"
    ftype = "f32" if merged else exact_type(folder)
    log(f"converting to {ftype} first, to measure")
    try:
        first = convert_exact(exact, ftype)
        choice = quantize_to_target(
            exact,
            output,
            target,
            texts=texts,
            dataset=dataset,
            imatrix=imatrix,
            threads=threads,
            log=log,
            progress=progress,
            verify=verify,
        )
    finally:
        exact.unlink(missing_ok=True)
    report = replace(choice.report, skipped=first.skipped, notes=first.notes + choice.report.notes)
    return replace(choice, report=report)


def exact_type(folder: Path | str) -> str:
    """The smallest type that holds a checkpoint's weights without loss: f16 or bf16 where all of them are, else f32."""
    with Checkpoint(read_modules(Path(folder)).transformer) as checkpoint:
        dtypes = {ref.dtype for ref in checkpoint.tensors.values()}
    return dtypes.pop().lower() if len(dtypes) == 1 and dtypes <= {"F16", "BF16"} else "f32"
