"""A model that computes several batches at a time: each request has its rows all the same, and nobody waits in vain."""

from __future__ import annotations

import pytest

from edge_embed.errors import CallCancelledError, ComputeError, NotReadyError
from edge_embed.scheduler import Scheduler
from tests.stepped import SteppedEngine
from tests.test_scheduler import expected, failure, rows, scheduling, some, submit


def test_two_batches_are_under_way() -> None:
    engine = SteppedEngine(lanes=2)
    with scheduling(engine) as scheduler:
        one = submit(scheduler, (1, 2))
        engine.wait_until_busy()
        other = submit(scheduler, (3, 4))
        engine.wait_until_busy()  # nobody has told the first one to go on
        assert sorted(engine.batch_texts) == [[(1, 2)], [(3, 4)]]
        assert (scheduler.depth.requests, scheduler.idle) == (0, False)
        engine.run_freely()
        assert [rows(one), rows(other)] == [expected((1, 2)), expected((3, 4))]


def test_a_large_request_has_all_lanes() -> None:
    engine = SteppedEngine(lanes=3)
    texts = some(1, 40)
    with scheduling(engine) as scheduler:
        many = submit(scheduler, *texts)
        for _ in range(3):
            engine.wait_until_busy()
        engine.run_freely()
        assert rows(many) == expected(*texts)


def test_a_small_request_is_shared_out_among_free_lanes() -> None:
    engine = SteppedEngine(lanes=2, n_batch=512, n_seq_max=64)
    texts = some(1, 20, length=10)  # 200 tokens
    with scheduling(engine) as scheduler:
        ticket = submit(scheduler, *texts)
        for _ in range(2):
            engine.wait_until_busy()
        assert [len(batch) for batch in engine.batch_texts] == [10, 10]
        engine.run_freely()
        assert rows(ticket) == expected(*texts)


def test_only_the_batch_that_nobody_wants_is_stopped() -> None:
    engine = SteppedEngine(lanes=2)
    with scheduling(engine) as scheduler:
        one = submit(scheduler, (1, 2))
        engine.wait_until_busy()
        other = submit(scheduler, (3, 4))
        engine.wait_until_busy()
        one.cancel()
        assert isinstance(failure(one), CallCancelledError)
        third = submit(scheduler, (5, 6))
        engine.wait_until_busy()  # in the lane that was stopped
        assert not other.future.done()
        engine.run_freely()
        assert [rows(other), rows(third)] == [expected((3, 4)), expected((5, 6))]
    assert (1, 2) not in engine.computed


def test_closing_at_once_stops_every_lane() -> None:
    engine = SteppedEngine(lanes=2)
    with scheduling(engine) as scheduler:
        tickets = [submit(scheduler, (1, 2))]
        engine.wait_until_busy()
        tickets += [submit(scheduler, (3, 4))]
        engine.wait_until_busy()
        tickets += [submit(scheduler, (5, 6))]
        scheduler.close(drain=False)
        assert all(isinstance(failure(ticket), NotReadyError) for ticket in tickets)
    assert engine.computed == []


def test_closing_waits_for_every_lane() -> None:
    engine = SteppedEngine(lanes=2)
    with scheduling(engine) as scheduler:
        tickets = [submit(scheduler, (i, 2)) for i in range(6)]
        engine.run_freely()
        scheduler.close()
        assert [ticket.future.done() for ticket in tickets] == [True] * 6
        assert [rows(ticket) for ticket in tickets] == [expected((i, 2)) for i in range(6)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lane_that_dies_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of its own batch, nor those of the other lane's, nor those who wait."""
    engine = SteppedEngine(lanes=2)
    with scheduling(engine) as scheduler:
        first = submit(scheduler, (1, 2))
        engine.wait_until_busy()
        others = [submit(scheduler, (3, 4))]
        engine.wait_until_busy()
        others += [submit(scheduler, (5, 6))]

        def broken(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Scheduler, "_deliver", broken)
        engine.run_freely()
        assert all(isinstance(failure(ticket), ComputeError) for ticket in (first, *others))
        with pytest.raises(ComputeError, match="has ended"):
            submit(scheduler, (7, 8))
