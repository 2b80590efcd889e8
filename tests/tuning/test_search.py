"""How tuning looks for settings, with candidates that only pretend to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edge_embed.engine.search import Coordinate, Found, Judge, Measured, Search, allowed_deviation
from edge_embed.engine.trial import CandidateFailedError, deviation
from edge_embed.engine.tune import Settings
from edge_embed.types import Float32Array, ModelInfo, RerankInfo
from tests.tuning.choices import REFERENCE

VECTORS = np.eye(3, dtype=np.float32)


class Machine:
    """Says how fast settings are, and who holds memory at the moment.

    Attributes:
        seconds: of settings.
        drift: each run is this many times as slow as the one before.
        loaded: candidates that hold memory.
        most: the most of them that ever did at once.
        runs: settings, in the order in which they ran.
    """

    def __init__(self, seconds: Callable[[Settings], float], drift: float = 1.0) -> None:
        self.seconds, self.drift = seconds, drift
        self.slowness = 1.0
        self.loaded: set[int] = set()
        self.most = 0
        self.runs: list[Settings] = []
        self.vectors: Callable[[Settings], Float32Array] = lambda _: VECTORS
        self.clock = 0.0

    def start(self, settings: Settings) -> Pretender:
        return Pretender(self, settings)


class Pretender:
    """A candidate on that machine."""

    def __init__(self, machine: Machine, settings: Settings) -> None:
        self.settings, self.machine = settings, machine

    def load(self) -> None:
        self.machine.loaded.add(id(self))
        self.machine.most = max(self.machine.most, len(self.machine.loaded))

    def vectors(self) -> Float32Array:
        return self.machine.vectors(self.settings)

    def run(self) -> Mapping[str, float]:
        self.load()
        self.machine.runs.append(self.settings)
        seconds = self.machine.seconds(self.settings) * self.machine.slowness
        self.machine.slowness *= self.machine.drift
        self.machine.clock += seconds
        return {"documents": seconds}

    def be_patient(self, seconds: float) -> None:
        assert seconds > 0

    def rest(self) -> None:
        self.machine.loaded.discard(id(self))


def find(
    machine: Machine,
    *coordinates: Coordinate,
    allowed: float = 1e-3,
    deadline: float = 1e9,
    together: bool = True,
    heard: list[Measured] | None = None,
) -> Found:
    def cosine_loss(a: Float32Array, b: Float32Array) -> float:
        return float((1 - (a * b).sum(axis=1)).max())

    judge = Judge({"documents": 1000}, VECTORS, cosine_loss, allowed, together)
    heard = [] if heard is None else heard
    walk = Search(machine.start, judge, deadline, heard.append, lambda: machine.clock)
    found = walk.run(machine.start(REFERENCE), coordinates)
    assert list(found.measured) == heard
    assert not machine.loaded
    return found


def verdicts(found: Found) -> dict[str, str]:
    """Of each candidate, by what was changed."""
    return {f"{name}={value}": m.verdict for m in found.measured for name, value in m.changed.items()}


THREADS = Coordinate("n_threads", (1, 2, 4, 8), ordered=True)
BUFFERS = Coordinate("use_extra_bufts", (True, False))


def test_the_fastest_value_of_each_setting_is_chosen() -> None:
    machine = Machine(lambda s: (2.0 if s.use_extra_bufts else 1.0) / min(s.n_threads, 4))
    found = find(machine, BUFFERS, THREADS)
    assert dataclasses.replace(REFERENCE, use_extra_bufts=False, n_threads=4) == found.settings
    assert pytest.approx(4.0) == found.speedup
    assert found.complete
    assert {
        "use_extra_bufts=False": "faster", "n_threads=4": "faster", "n_threads=8": "no faster",
    } == verdicts(found)  # fmt: skip


def test_a_walk_turns_back_where_its_first_step_does_not_pay() -> None:
    found = find(Machine(lambda s: float(s.n_threads)), THREADS)
    assert ({"n_threads=4": "no faster", "n_threads=1": "faster"}, 1) == (verdicts(found), found.settings.n_threads)


def test_where_nothing_is_faster_the_untuned_settings_stay() -> None:
    found = find(Machine(lambda _: 1.0), BUFFERS, THREADS)
    assert (REFERENCE, 1.0, True) == (found.settings, found.speedup, found.complete)


def test_what_does_not_matter_for_the_best_settings_is_not_tried() -> None:
    layers = Coordinate("device", ("", "cpu"), applies=lambda best: best.library == "other")
    engines = Coordinate("library", ("", "other"))
    slow = find(Machine(lambda s: 2.0 if s.library else 1.0), engines, layers)
    assert {"library=other": "no faster"} == verdicts(slow)
    fast = find(Machine(lambda s: 1.0 if s.library else 2.0), engines, layers)
    assert {"library=other": "faster", "device=cpu": "no faster"} == verdicts(fast)


def test_a_machine_that_slows_down_all_the_time_does_not_decide() -> None:
    """Each run takes 5 % longer than the one before it, whoever runs."""
    machine = Machine(lambda s: 0.8 if not s.use_extra_bufts else 1.0, drift=1.05)
    assert not find(machine, BUFFERS).settings.use_extra_bufts
    machine = Machine(lambda _: 1.0, drift=1.05)
    assert REFERENCE == find(machine, BUFFERS, THREADS).settings


def test_one_lucky_turn_does_not_decide() -> None:
    """The best was held up in two turns of five, by somebody else's work."""
    turns = iter([1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 5.0, 1.0] + [1.0] * 50)
    machine = Machine(lambda s: next(turns) if s == REFERENCE else 1.0)
    assert {"use_extra_bufts=False": "no faster"} == verdicts(find(machine, BUFFERS))


def test_a_gain_that_is_not_worth_it_is_left() -> None:
    assert REFERENCE == find(Machine(lambda s: 1.0 if s.use_extra_bufts else 0.99), BUFFERS).settings


@pytest.mark.parametrize("bad", [np.eye(3, dtype=np.float32)[::-1], np.full((3, 3), np.nan, np.float32)])
def test_a_faster_setting_with_other_vectors_is_refused_before_it_is_timed(bad: Float32Array) -> None:
    machine = Machine(lambda s: 1.0 if s.use_extra_bufts else 0.1)
    machine.vectors = lambda s: VECTORS if s.use_extra_bufts else bad
    found = find(machine, BUFFERS)
    assert REFERENCE == found.settings
    refused = found.measured[-1]
    assert ("refused", None) == (refused.verdict, refused.ratio)
    assert "0.001 are allowed" in refused.reason
    assert all(settings.use_extra_bufts for settings in machine.runs)


def test_a_candidate_that_dies_is_named_and_the_search_goes_on() -> None:
    def seconds(settings: Settings) -> float:
        if not settings.use_extra_bufts:
            raise CandidateFailedError("it died of SIGILL")
        return 1.0 / settings.n_threads

    found = find(Machine(seconds), BUFFERS, THREADS)
    assert ("failed", "it died of SIGILL") == (found.measured[1].verdict, found.measured[1].reason)
    assert (8, True) == (found.settings.n_threads, found.complete)


def test_what_the_time_does_not_allow_is_said() -> None:
    found = find(Machine(lambda s: 1.0 / s.n_threads), THREADS, BUFFERS, deadline=5.0)
    assert {
        "n_threads=4": "faster", "n_threads=8": "not measured", "use_extra_bufts=False": "not measured",
    } == verdicts(found)  # fmt: skip
    assert (4, False) == (found.settings.n_threads, found.complete)


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def seconds(settings: Settings) -> float:
        if settings.n_threads == 8:
            raise KeyboardInterrupt
        return 1.0 / settings.n_threads

    machine = Machine(seconds)
    found = find(machine, THREADS, BUFFERS)
    assert (4, True, False) == (found.settings.n_threads, found.interrupted, found.complete)
    assert pytest.approx(2.0) == found.speedup


def test_an_interrupt_before_anything_was_decided_finds_nothing() -> None:
    def seconds(settings: Settings) -> float:
        if not settings.use_extra_bufts:
            raise KeyboardInterrupt
        return 1.0

    found = find(Machine(seconds), BUFFERS)
    assert (REFERENCE, 1.0, True) == (found.settings, found.speedup, found.interrupted)


def test_steps_that_pay_one_by_one_must_pay_together() -> None:
    """At the end the reference is as fast as what beat it: it was held up before."""
    slow = iter([2.0] * 8)
    machine = Machine(lambda s: next(slow, 1.0) if s == REFERENCE else 1.0)
    found = find(machine, BUFFERS)
    assert ({"use_extra_bufts=False": "faster"}, REFERENCE) == (verdicts(found), found.settings)


@pytest.mark.parametrize(("together", "most"), [(True, 2), (False, 1)])
def test_no_more_models_are_in_memory_than_fit(together: bool, most: int) -> None:
    machine = Machine(lambda s: 1.0 / s.n_threads)
    find(machine, BUFFERS, THREADS, together=together)
    assert most == machine.most


def test_parts_of_the_work_count_alike() -> None:
    judge = Judge({"queries": 10, "documents": 10_000}, VECTORS, lambda *_: 0.0, 1.0, True)
    before = {"queries": 0.1, "documents": 9.0}
    assert pytest.approx(1.0) == judge.speedup(before, {"queries": 0.05, "documents": 18.0})
    assert {"queries": 100.0, "documents": pytest.approx(1000)} == judge.rates(
        [{"queries": q, "documents": d} for q, d in ((0.1, 10.0), (9.0, 10.0), (0.1, 10.0))]
    )


def test_more_is_allowed_where_the_types_or_their_noise_are_coarser() -> None:
    assert 1e-4 == allowed_deviation(["F32", "F16"], 0.0, scores=False)
    assert 1e-3 == allowed_deviation(["F32", "Q8_0"], 0.0, scores=False)
    assert 1e-2 == allowed_deviation(["Q6_K", "IQ4_XS", "F32"], 0.0, scores=False)
    assert 0.1 == allowed_deviation(["F16"], 0.05, scores=False)
    assert 0.01 < allowed_deviation(["Q4_K"], 0.0, scores=True)


def test_deviation_is_of_the_worst_text() -> None:
    turned = np.array([[1, 0, 0], [0, 3, 4], [0, 0, 7]], dtype=np.float32)
    info = read_model_info_stub()
    assert pytest.approx(0.4) == deviation(info, VECTORS, turned)


@pytest.mark.parametrize(("labels", "other"), [(("yes", "no"), [[2.0, 2.0]]), (("score",), [[0.0]])])
def test_deviation_of_a_reranker_is_in_its_scores(labels: tuple[str, ...], other: list[list[float]]) -> None:
    head = RerankInfo(labels, "sigmoid", None, None, "F32", 0)
    info = dataclasses.replace(read_model_info_stub(), rerank=head)
    certain = np.array([[5.0, 5.0 - np.log(3)]] if len(labels) == 2 else [[np.log(3)]], dtype=np.float32)
    assert pytest.approx(0.25, abs=1e-6) == deviation(info, certain, np.array(other, dtype=np.float32))


def read_model_info_stub() -> ModelInfo:
    """An embedding model of which nothing matters."""
    return ModelInfo(
        path="x", architecture="bert", name="x", n_embd=3, n_ctx_train=8, n_layer=1, n_vocab=9, pooling="mean",
        pooling_source="file", causal=False, max_tokens=8, normalize=True,
    )  # fmt: skip
