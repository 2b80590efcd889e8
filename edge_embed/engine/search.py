"""The search for the fastest settings: one coordinate after another, each candidate against the best one so far.

A machine's speed moves by a third from minute to minute, so no figure is compared with one of another minute. Two
settings run in turns, and what counts is the median of their ratios within a turn. A candidate must give the vectors of
the untuned engine, as far as the type of the weights keeps them steady. A backend that is fast because it rounds more
is refused for that, whatever its name.

This module starts no process and knows no engine: whoever runs a candidate is handed in.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from edge_embed.engine.trial import CandidateFailedError
from edge_embed.engine.tune import Settings
from edge_embed.types import Float32Array

Verdict = Literal["reference", "faster", "no faster", "refused", "failed", "not measured"]
TURNS: Final = 5
MARGIN: Final = 0.02  # a difference below this is not worth another setting
CLEAR: Final = 0.08  # three turns suffice where all three show at least this
# How far a vector may be from the reference's (1 - cosine), by the bits of the weights: about a third of what a type
# costs at the worst of 2,758 sentences (all-MiniLM-L6-v2, benchmarks/LOG.md), because kernels that round activations in
# another place give other vectors and no worse ones. Of float weights what the order of a sum does to float16.
STEADY: Final[Mapping[int, float]] = {8: 1e-3, 6: 2e-3, 5: 5e-3, 4: 1e-2, 3: 2e-2, 2: 2e-2}
STEADY_FLOAT: Final = 1e-4
STEADY_SCORE, STEADY_SCORE_FLOAT = 0.03, 0.01  # of a reranker's probabilities


class Candidate(Protocol):
    """Settings that can be run; ``trial.Trial`` is one."""

    @property
    def settings(self) -> Settings: ...

    def load(self) -> Any:
        """Get ready. Raises CandidateFailedError, as the others do."""
        ...

    def vectors(self) -> Float32Array:
        """Vectors of all texts, and the engine is warm."""
        ...

    def run(self) -> Mapping[str, float]:
        """Seconds of each part of the work; gets ready first, after ``rest``."""
        ...

    def be_patient(self, seconds: float) -> None:
        """Others need that long."""
        ...

    def rest(self) -> None:
        """Hold no memory until the next ``run``."""
        ...


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One setting and the values that are tried.

    Attributes:
        name: a field of Settings.
        values: what it may be.
        ordered: whether speed rises to a best value and falls behind it: then a step that does not pay ends the walk
            in its direction.
        applies: whether it matters where those are the best settings.
    """

    name: str
    values: tuple[Any, ...]
    ordered: bool = False
    applies: Callable[[Settings], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a candidate.

    Attributes:
        changed: the fields that differ from the best settings at that time, and their values.
        settings: all of them.
        verdict: what was decided.
        reason: why, where it is not a matter of speed.
        ratio: how many times as fast as the best settings at that time; None where it did not come to that.
        tokens_per_second: of each part, in the median turn.
        deviation: how far its vectors are from the reference's, at the worst text.
    """

    changed: Mapping[str, Any]
    settings: Settings
    verdict: Verdict
    reason: str = ""
    ratio: float | None = None
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search.

    Attributes:
        settings: the best.
        speedup: how many times as fast as the reference, in turns of their own at the end; 1 for the reference itself.
        complete: whether everything was tried.
        interrupted: whether the user ended it.
        allowed: how far vectors may be from the reference's.
        measured: every candidate, in the order of trying.
    """

    settings: Settings
    speedup: float
    complete: bool
    interrupted: bool
    allowed: float
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """What two candidates are compared by.

    Attributes:
        n_tokens: tokens of each part of the work.
        reference: vectors of the untuned engine.
        deviation: how far vectors are from the reference's.
        allowed: how far they may be.
        together: whether two candidates fit into memory at once; if not, each loads its model anew for every turn.
    """

    n_tokens: Mapping[str, int]
    reference: Float32Array
    deviation: Callable[[Float32Array, Float32Array], float]
    allowed: float
    together: bool

    def speedup(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """How many times as fast: the geometric mean over the parts, so that each counts alike."""
        return math.exp(statistics.fmean(math.log(before[name] / after[name]) for name in self.n_tokens))

    def rates(self, turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Tokens per second of each part, by the median of its seconds."""
        return {name: n / statistics.median(turn[name] for turn in turns) for name, n in self.n_tokens.items()}


class Search:
    """Walks from the reference to the fastest settings.

    Args:
        start: makes a candidate of settings.
        judge: compares them.
        deadline: when to stop, as ``clock`` tells time.
        say: told of each candidate as it is decided.
        clock: seconds; replaced by tests.
    """

    def __init__(
        self,
        start: Callable[[Settings], Candidate],
        judge: Judge,
        deadline: float,
        say: Callable[[Measured], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._judge, self._deadline, self._say, self._clock = start, judge, deadline, say, clock
        self._measured: list[Measured] = []
        self._longest = 0.0  # seconds of a comparison so far

    def run(self, reference: Candidate, coordinates: Sequence[Coordinate]) -> Found:
        """Search. An interrupt ends it early, with the best until then and ``complete`` False."""
        self._best = reference
        complete, interrupted, speedup = True, False, 1.0
        try:
            self._note(Measured({}, reference.settings, "reference", tokens_per_second=self._rates(reference)))
            for coordinate in coordinates:
                if coordinate.applies(self._best.settings):
                    self._walk(coordinate)
            complete = all(entry.verdict != "not measured" for entry in self._measured)
            if self._best is not reference:
                speedup = self._confirmed(reference)
        except KeyboardInterrupt:
            complete, interrupted, speedup = False, True, self._product(reference)
        finally:
            for candidate in (self._best, reference):
                candidate.rest()
        return Found(self._best.settings, speedup, complete, interrupted, self._judge.allowed, tuple(self._measured))

    def _walk(self, coordinate: Coordinate) -> None:
        """Go to the best along one coordinate."""
        current = getattr(self._best.settings, coordinate.name)
        others = [value for value in coordinate.values if value != current]
        ways: list[list[Any]] = [[value] for value in others]
        if coordinate.ordered:
            ways = [sorted(v for v in others if v > current), sorted((v for v in others if v < current), reverse=True)]
        for way in ways:
            before = self._best
            for value in way:
                if not self._beaten(coordinate.name, value):
                    break
            if coordinate.ordered and self._best is not before:
                break  # what lies the other way is slower than where it began

    def _beaten(self, name: str, value: Any) -> bool:
        """Whether another value is faster, and now part of the best."""
        challenger, verdict = self._compare(self._best, name, value)
        loser = challenger
        if verdict == "faster":
            loser, self._best = self._best, challenger
        loser.rest()
        return verdict == "faster"

    def _compare(self, best: Candidate, name: str, value: Any) -> tuple[Candidate, Verdict]:
        changed = {name: value}
        challenger = self._start(replace(best.settings, **changed))
        began = self._clock()
        if began + self._longest > self._deadline:
            self._note(Measured(changed, challenger.settings, "not measured", "the time is up"))
            return challenger, "not measured"
        try:
            measured = self._contest(best, challenger, changed)
        except CandidateFailedError as failure:
            measured = Measured(changed, challenger.settings, "failed", str(failure))
        except BaseException:
            challenger.rest()
            raise
        self._longest = max(self._longest, self._clock() - began)
        self._note(measured)
        return challenger, measured.verdict

    def _contest(self, best: Candidate, challenger: Candidate, changed: Mapping[str, Any]) -> Measured:
        if not self._judge.together:
            best.rest()
        challenger.load()
        deviation = self._judge.deviation(self._judge.reference, challenger.vectors())
        if not self._judge.together:
            challenger.rest()
        if not deviation <= self._judge.allowed:  # NaN is no less
            reason = f"its vectors are {deviation:.2g} from the reference's, {self._judge.allowed:.2g} are allowed"
            return Measured(changed, challenger.settings, "refused", reason, deviation=deviation)
        ratios, turns = self._turns(best, challenger)
        ratio = statistics.median(ratios)
        verdict: Verdict = "faster" if _faster(ratios) else "no faster"
        rates = self._judge.rates(turns)
        return Measured(changed, challenger.settings, verdict, "", ratio, rates, deviation)

    def _turns(self, best: Candidate, challenger: Candidate) -> tuple[list[float], list[Mapping[str, float]]]:
        """How many times as fast the challenger is in each turn, and its seconds. Who is first alternates."""
        ratios: list[float] = []
        turns: list[Mapping[str, float]] = []
        for turn in range(TURNS):
            seconds: dict[int, Mapping[str, float]] = {}
            for candidate in (best, challenger) if turn % 2 == 0 else (challenger, best):
                seconds[id(candidate)] = candidate.run()
                if not self._judge.together:
                    candidate.rest()
                elif candidate is best:
                    challenger.be_patient(sum(seconds[id(best)].values()))
            ratios.append(self._judge.speedup(seconds[id(best)], seconds[id(challenger)]))
            turns.append(seconds[id(challenger)])
            if len(ratios) == 3 and (min(ratios) > 1 + CLEAR or max(ratios) < 1 - CLEAR):
                break
        return ratios, turns

    def _confirmed(self, reference: Candidate) -> float:
        """How many times as fast all changes together are; where they are not, the reference is the best again."""
        try:
            ratios, _ = self._turns(reference, self._best)
        except CandidateFailedError:
            ratios = [0.0]
        if _faster(ratios):
            return statistics.median(ratios)
        self._best.rest()
        self._best = reference
        return 1.0

    def _product(self, reference: Candidate) -> float:
        """The speedup by the steps that led to the best, where it was not measured as a whole."""
        steps = [m.ratio for m in self._measured if m.verdict == "faster" and m.ratio is not None]
        return math.prod(steps) if self._best is not reference else 1.0

    def _rates(self, candidate: Candidate) -> dict[str, float]:
        return self._judge.rates([candidate.run() for _ in range(3)])

    def _note(self, measured: Measured) -> None:
        self._measured.append(measured)
        self._say(measured)


def _faster(ratios: Sequence[float]) -> bool:
    """Whether these are the ratios of something faster: by more than it is worth, in all turns but one."""
    return statistics.median(ratios) > 1 + MARGIN and sorted(ratios)[len(ratios) // TURNS] > 1


def allowed_deviation(types: Iterable[str], noise: float, *, scores: bool) -> float:
    """How far a candidate's vectors (or scores) may be from the reference's.

    Args:
        types: the types of the model's tensors.
        noise: how far the reference's own vectors are from each other when texts are computed together and one by one:
            where the company that it is computed in moves a vector far, twice that is allowed.
        scores: whether these are a reranker's probabilities.
    """
    bits = [int(name.lstrip("I")[1]) for name in types if re.match(r"I?Q\d", name)]
    if scores:
        steady = STEADY_SCORE if bits else STEADY_SCORE_FLOAT
    else:
        steady = max((STEADY.get(n, STEADY_FLOAT) for n in bits), default=STEADY_FLOAT)
    return max(steady, 2 * noise)
