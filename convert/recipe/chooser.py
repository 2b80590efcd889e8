"""The steps of a choice, from the first measurement to the file that keeps to its target."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType

from edge_embed import keys
from edge_embed.errors import InvalidOptionError, UnsupportedCheckpointError
from edge_embed.gguf_header import TensorInfo
from edge_embed.types import Float32Array

from ..blocks.rows import tensor_bytes
from ..blocks.types import EXACT, RECIPES, Recipe, is_quantizable, recipe_named
from ..calibrate.imatrix import read_imatrix, weights_for
from ..calibrate.observed import framed, framings, texts_or_default
from ..container.entries import text
from ..container.output import padded
from ..gguf_source import GGUFSource, kind_of
from ..quantize import OutputPlan, plan_file, write_file
from ..verify import Verification, figures, require_passed
from .measure import Figures, Losses, MeasuredModel, compare
from .scheme import BANDS, PER_SECOND, POINTS, Scheme, groups_of, scheme_for
from .target import Choice, Measuring, Point, Target
from .tradeoff import Assignment, Frontier, Unit, weighted_frontier

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
_MEASURED_TYPE = 4  # of a matrix's types, largest first, where only one is measured: one of about 4.5 bits
_EXTRA_STEPS = 6  # corrections after the file itself was run


class Chooser:
    """The steps, which share the source, the texts and what was measured."""

    def __init__(self, source: GGUFSource, how: Measuring) -> None:
        """Read what the choice is made with.

        Raises:
            InvalidOptionError: there are no texts, or the source is quantized already.
            ModelFileError: the importance matrix.
        """
        self._source, self._how = source, how
        self._texts = texts_or_default(how.texts)
        self._matrix = None if how.imatrix is None else read_imatrix(how.imatrix)
        self._n_runs, self._done, self._total = 0, 0, 0
        self._groups: list[list[TensorInfo]] = []
        quantized = [t.name for t in source.tensors if kind_of(t) not in EXACT]
        if quantized:
            raise InvalidOptionError(
                f"{source.path} is quantized already ({quantized[0]}, ...): what more of it costs cannot be measured",
                hint="give the F32, F16 or BF16 file, or convert the checkpoint",
            )

    def run(self, targets: Sequence[tuple[Path, Target]]) -> list[Choice]:
        matrices = [t for t in self._source.tensors if is_quantizable(t.name, t.shape[::-1])]
        weights, _ = weights_for(self._matrix, [(t.name, t.shape[0], Kind.Q8_0) for t in matrices])
        with MeasuredModel(self._source, weights, threads=self._how.threads, engine_threads=self._how.threads) as model:
            scheme = scheme_for(matrices, self._texts, model.tokens_per_text(self._texts))
            self._announce(scheme)
            model.measure_on(scheme.texts)
            self._groups = groups_of(model.matrices, banded=scheme.banded)
            units = self._measure(model, scheme)
            decisions = []
            points: list[Point] = []
            for path, target in targets:
                frontier = weighted_frontier(units, partial(self._pick, target))
                chosen = self._choose(model, frontier, target)
                decisions.append((path, target, frontier, chosen))
                points = points or self._points(
                    model, frontier, scheme, target.max_bytes or self._plan(chosen, target).size_bytes
                )
        reference = self._vectors(self._source.path)
        return [self._write(*decision, points, reference) for decision in decisions]

    def _begin(self, sentence: str, total: int) -> None:
        """Say what is done next, and count its runs of the model anew."""
        self._how.log(sentence)
        self._done, self._total = 0, total

    def _ran(self, what: str) -> None:
        """The model ran once over the texts."""
        self._n_runs += 1
        self._done += 1
        if self._how.progress is not None:
            self._how.progress(min(self._done, self._total), self._total, what)

    # 1. measure

    def _announce(self, scheme: Scheme) -> None:
        what = "each matrix" if not scheme.banded else f"each kind of matrix in {BANDS} bands of layers"
        how = "in one type, and scaling the others" if scheme.scaled else "in each type"
        minutes = scheme.products / PER_SECOND / 60
        self._how.log(
            f"measuring {what} {how} on {len(scheme.texts)} of {len(self._texts)} texts: "
            f"about {max(1, round(minutes))} min on two cores"
        )

    def _measure(self, model: MeasuredModel, scheme: Scheme) -> list[Unit]:
        self._total = sum(1 if scheme.scaled else len(model.candidates(group[0])) for group in self._groups)
        units = []
        for group in self._groups:
            possible = [k for k in model.candidates(group[0]) if all(model.fits(t, k) for t in group)]
            if not possible:
                raise UnsupportedCheckpointError(f"{self._source.path}: {group[0].name} fits none of the types")
            losses: dict[Kind, Losses] = {}
            for kind in possible[_MEASURED_TYPE:][:1] or possible[-1:] if scheme.scaled else possible:
                for tensor in group:
                    model.replace(tensor, kind)
                losses[kind] = np.maximum(model.losses(), 0.0)
                self._ran(group[0].name)
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
        self._begin(
            f"searching the smallest choice that keeps to {target.min_cosine:g}", len(frontier).bit_length() + 1
        )
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
        figures = model.figures()
        self._ran("a choice")
        return figures

    def _points(self, model: MeasuredModel, frontier: Frontier, scheme: Scheme, near: int) -> list[Point]:
        """Some points of the frontier, and the plain types, measured.

        Each is the whole model encoded anew. Where the model is too large to be measured finely, that would take longer
        than all else: then the ends of the frontier and the plain types next to ``near`` bytes have to do.
        """
        points = []
        indices = frontier.spread(2 if scheme.scaled else POINTS)
        plain = [name for name, recipe in RECIPES.items() if recipe.default not in EXACT]
        if scheme.scaled:
            sizes = {name: plan_file(self._source, recipe_named(name), self._matrix).size_bytes for name in plain}
            below = sorted((n, name) for name, n in sizes.items() if n <= near)[-1:]
            above = sorted((n, name) for name, n in sizes.items() if n > near)[:1]
            plain = [name for _, name in below + above]
        self._begin("measuring what other sizes and the plain types lose", len(indices) + len(plain))
        for index in indices:
            assignment = frontier.at(index)
            figures = self._measured(model, frontier, assignment)
            size = self._plan(assignment, Target(max_bytes=1)).size_bytes
            points.append(Point("recipe", size, figures))
        for name in plain:
            plan = plan_file(self._source, recipe_named(name), self._matrix)
            got = {info.name: info.kind for info in plan.infos}
            for tensor in model.matrices:
                model.replace(tensor, got[tensor.name])
            points.append(Point(name, plan.size_bytes, model.figures()))
            self._ran(name)
        return points

    # 3. write and run

    def _plan(
        self, assignment: Assignment, target: Target, measured: str = "", verified: Verification | None = None
    ) -> OutputPlan:
        chosen = {t.name: kind for group, kind in zip(self._groups, assignment, strict=True) for t in group}
        extra = [text(keys.MEASURED, measured or self._sentence(Figures(0, 0, 0)))]
        if self._how.verify is not None:
            extra += figures(verified, scores=False)
        return plan_file(self._source, _recipe(target, chosen, self._source), self._matrix, extra=extra)

    def _sentence(self, figures: Figures) -> str:
        """Of the same length whatever the figures are, so that it can be replaced in the file."""
        mean, lowest = (f"{cosine:.6f}"[:8] for cosine in (figures.mean_cosine, figures.min_cosine))
        return (
            f"cosine {mean}, lowest {lowest}, top-10 overlap {figures.overlap:.4f} "
            f"on {len(self._texts)} texts ({self._how.dataset})"
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
                self._how.log(f"writing {path.name} and running it")
                plan = self._plan(chosen, target)
                report = write_file(plan, candidate, threads=self._how.threads)
                loss = compare(reference, self._vectors(candidate))
                if target.max_bytes is not None:
                    assert report.size_bytes <= target.max_bytes, "planned with a sentence of the same length"
                if target.min_cosine is None or loss.min_cosine >= target.min_cosine:
                    verified = None if self._how.verify is None else require_passed(self._how.verify(candidate))
                    whole = self._plan(chosen, target, self._sentence(loss), verified)
                    digest = _with_head(candidate, plan.head, whole.head)
                    candidate.replace(path)
                    verified = None if verified is None else replace(verified, path=path)
                    report = replace(report, path=path, sha256=digest, verification=verified)
                    return Choice(report, loss, tuple(points), len(self._texts), self._n_runs)
                self._how.log(f"the lowest cosine of the file is {loss.min_cosine:.6f}: buying more")
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

        with Embedder(path, n_threads=self._how.threads) as embedder:
            return np.concatenate([framed(embedder, self._texts, framing).vectors for framing in framings(embedder)])


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
