"""Requests that share a model: who comes first, who fails, who is answered. The engine computes when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_embed.cache import EmbeddingCache, ModelCache
from edge_embed.errors import (
    CallCancelledError,
    ComputeError,
    EngineClosedError,
    InvalidOptionError,
    NotReadyError,
    PayloadTooLargeError,
    QueueFullError,
)
from edge_embed.running import Backend
from edge_embed.scheduler import BatchReport, Scheduler, Ticket
from edge_embed.testing import fake_embedder
from edge_embed.types import Encoding
from tests.stepped import PATIENCE, SteppedEngine, row_of

GUILTY = 66
Text = tuple[int, ...]


@contextmanager
def scheduling(engine: SteppedEngine, **options: Any) -> Iterator[Scheduler]:
    """A scheduler that computes nothing until it is told to; at the end, all that is left."""
    scheduler = Scheduler(Backend(engine, engine.n_embd), **options)
    try:
        yield scheduler
    finally:
        engine.run_freely()
        scheduler.close(drain=False)


def submit(scheduler: Scheduler, *texts: Text, tokens: bool = False) -> Ticket:
    return scheduler.submit([Encoding(np.array(ids, dtype=np.int32), len(ids)) for ids in texts], tokens=tokens)


def rows(ticket: Ticket) -> list[list[float]]:
    found: list[list[float]] = ticket.future.result(PATIENCE).found.rows.tolist()
    return found


def expected(*texts: Text) -> list[list[float]]:
    return [row_of(text).tolist() for text in texts]


def failure(ticket: Ticket) -> BaseException | None:
    return ticket.future.exception(PATIENCE)


def some(name: int, n: int, length: int = 4) -> list[Text]:
    """Different texts, all of which begin with the name."""
    return [(name, *((7 * i + k) % 50 for k in range(length - 2)), 100 + i) for i in range(n)]


def hold(engine: SteppedEngine, scheduler: Scheduler) -> Ticket:
    """Keep the model busy with a text that nobody else is concerned with."""
    ticket = submit(scheduler, (9, 9))
    engine.wait_until_busy()
    return ticket


# Who comes first


def test_texts_of_several_requests_share_a_batch() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        tickets = [submit(scheduler, (1, i)) for i in range(4)]
        engine.step()
        engine.wait_until_busy()
        assert sorted(engine.batch_texts[1]) == [(1, 0), (1, 1), (1, 2), (1, 3)]
        engine.run_freely()
        assert [rows(ticket) for ticket in tickets] == [expected((1, i)) for i in range(4)]


def test_one_text_overtakes_two_thousand() -> None:
    """They are on their way already, and the one waits for the batch under way alone."""
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        many = submit(scheduler, *some(1, 2048))
        engine.wait_until_busy()
        one = submit(scheduler, (2, 3))
        assert (many.interactive, one.interactive) == (False, True)
        engine.step()
        engine.wait_until_busy()
        assert engine.batch_texts[1] == [(2, 3)]
        engine.run_freely()
        assert rows(one) == expected((2, 3))
        assert rows(many) == expected(*some(1, 2048))


def test_a_bulk_request_gets_on_while_interactive_ones_keep_coming() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        many = submit(scheduler, *some(1, 12))
        others = []
        for turn in range(60):
            others.append(submit(scheduler, *some(2 + turn % 40, 2)))
            engine.wait_until_busy()
            engine.step()
            if many.future.done():
                break
        assert rows(many) == expected(*some(1, 12))
        assert len(others) < 60


def test_while_interactive_requests_come_a_bulk_batch_is_small() -> None:
    """By what the model has done in a second so far; afterwards it is large again."""
    now = [0.0]

    class Slow(SteppedEngine):
        def decode(self, batch: Any, stop: Any = None) -> Any:
            now[0] += batch.n_tokens / 400  # 400 tokens a second: 100 in a quarter of one
            return super().decode(batch, stop)

    engine = Slow(n_batch=1000, n_seq_max=1000)
    with scheduling(engine, clock=lambda: now[0]) as scheduler:
        hold(engine, scheduler)
        many = submit(scheduler, *some(1, 600))
        for _ in range(3):
            engine.step()
            engine.wait_until_busy()
        assert {len(texts) for texts in engine.batch_texts[1:]} == {25}
        now[0] += 60
        engine.step()
        engine.wait_until_busy()
        assert len(engine.batch_texts[-1]) == 250
        engine.run_freely()
        assert rows(many) == expected(*some(1, 600))


def test_the_same_text_of_many_requests_is_computed_once() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        tickets = [submit(scheduler, (1, 2, 3), (4, i)) for i in range(3)]
        engine.run_freely()
        assert [rows(ticket) for ticket in tickets] == [expected((1, 2, 3), (4, i)) for i in range(3)]
        assert engine.computed.count((1, 2, 3)) == 1


def test_vectors_of_tokens_and_of_texts() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        texts, tokens = submit(scheduler, (1, 2), (3,)), submit(scheduler, (1, 2), (3,), tokens=True)
        engine.run_freely()
        assert rows(texts) == expected((1, 2), (3,))
        found = tokens.future.result(PATIENCE).tokens
        assert found is not None
        assert [vectors.argmax(axis=1).tolist() for vectors in found] == [[1, 2], [3]]


def test_a_request_of_nothing_is_answered_at_once() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        assert rows(submit(scheduler)) == []
        assert submit(scheduler, tokens=True).future.result(PATIENCE).tokens == ()


def test_what_a_cache_has_is_not_computed_again(tmp_path: Path) -> None:
    engine = SteppedEngine()
    engine.run_freely()
    with EmbeddingCache(tmp_path / "rows.db") as store:
        cache = ModelCache(store, {"model": "fake"})
        scheduler = Scheduler(Backend(engine, engine.n_embd, cache))
        assert rows(submit(scheduler, (1,), (2,))) == expected((1,), (2,))
        again = submit(scheduler, (2,), (3,)).future.result(PATIENCE).found
        assert again.rows.tolist() == expected((2,), (3,))
        assert again.cached.tolist() == [True, False]
        assert rows(submit(scheduler, (1,), (3,))) == expected((1,), (3,))
        scheduler.close()
    assert sorted(engine.computed) == [(1,), (2,), (3,)]


# Who goes away


def test_the_texts_of_a_cancelled_request_are_not_computed() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        held = hold(engine, scheduler)
        goes, stays = submit(scheduler, *some(1, 20)), submit(scheduler, (2, 2))
        goes.cancel()
        assert isinstance(failure(goes), CallCancelledError)
        assert (scheduler.depth.requests, scheduler.depth.texts, scheduler.depth.tokens) == (1, 1, 2)
        engine.run_freely()
        assert (rows(held), rows(stays)) == (expected((9, 9)), expected((2, 2)))
    assert engine.computed == [(9, 9), (2, 2)]


def test_a_batch_that_nobody_wants_any_more_is_stopped() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        goes = submit(scheduler, *some(1, 20))
        engine.wait_until_busy()
        stays = submit(scheduler, (2, 2))
        goes.cancel()  # lets the engine go on, too: it is asked to stop
        engine.wait_until_busy()
        assert engine.batch_texts[1] == [(2, 2)]
        engine.run_freely()
        assert rows(stays) == expected((2, 2))
    assert engine.computed == [(2, 2)]


def test_a_batch_that_somebody_still_wants_is_not_stopped() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        goes, stays = submit(scheduler, (1, 1)), submit(scheduler, (2, 2))
        engine.step()
        engine.wait_until_busy()
        goes.cancel()
        engine.run_freely()
        assert rows(stays) == expected((2, 2))
        assert isinstance(failure(goes), CallCancelledError)


def test_one_of_those_who_wait_for_the_same_text_goes_away() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        goes, stays = submit(scheduler, (1, 1)), submit(scheduler, (1, 1))
        engine.step()
        engine.wait_until_busy()
        goes.cancel()
        engine.run_freely()
        assert rows(stays) == expected((1, 1))


def test_cancelling_what_is_answered_changes_nothing() -> None:
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        ticket = submit(scheduler, (1, 2))
        engine.run_freely()
        assert rows(ticket) == expected((1, 2))
        ticket.cancel()
        assert rows(ticket) == expected((1, 2))
        assert ticket.future.cancel() is False, "only the ticket can be cancelled, which takes it out of the queue"


# Who fails


def test_one_guilty_text_fails_its_request_alone() -> None:
    engine = SteppedEngine(guilty=GUILTY)
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        tickets = [submit(scheduler, (1,)), submit(scheduler, (2,), (GUILTY,), (3,)), submit(scheduler, (4,))]
        engine.run_freely()
        assert rows(tickets[0]) == expected((1,))
        assert rows(tickets[2]) == expected((4,))
        assert isinstance(failure(tickets[1]), ComputeError)
        assert rows(submit(scheduler, (5,))) == expected((5,))


def test_a_guilty_text_takes_what_else_waits_of_its_request_along() -> None:
    engine = SteppedEngine(guilty=GUILTY)
    with scheduling(engine) as scheduler:
        guilty = submit(scheduler, (GUILTY,) * 8, *some(1, 100))
        engine.run_freely()
        assert isinstance(failure(guilty), ComputeError)
        assert rows(submit(scheduler, (5,))) == expected((5,))
    assert engine.computed == [(5,)]


def test_a_model_that_was_closed_refuses_everybody_at_once() -> None:
    engine = SteppedEngine(guilty=GUILTY, error=lambda: EngineClosedError("closed"))
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        tickets = [submit(scheduler, (1,)), submit(scheduler, (GUILTY,))]
        engine.run_freely()
        assert [type(failure(ticket)) for ticket in tickets] == [EngineClosedError] * 2
    assert len(engine.batch_texts) == 2, "they were not tried one by one"


def test_counting_that_fails_is_not_silent_and_ends_nothing() -> None:
    reports: list[BatchReport] = []

    def report(batch: BatchReport) -> None:
        reports.append(batch)
        if len(reports) == 1:
            raise ValueError("a bug")

    engine = SteppedEngine()
    engine.run_freely()
    with scheduling(engine, report=report) as scheduler:
        assert isinstance(failure(submit(scheduler, (1,))), ValueError)
        assert rows(submit(scheduler, (2, 3), (4,))) == expected((2, 3), (4,))
    assert [(r.n_texts, r.n_tokens, r.n_computed, r.n_requests) for r in reports] == [(1, 1, 1, 1), (2, 3, 3, 1)]


def test_a_thread_that_dies_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda found: said.append(found.exc_type))
    engine = SteppedEngine(guilty=GUILTY, error=lambda: SystemExit(1))
    with scheduling(engine) as scheduler:
        hold(engine, scheduler)
        tickets = [submit(scheduler, (GUILTY,)), submit(scheduler, *some(1, 50))]
        engine.run_freely()
        assert [type(failure(ticket)) for ticket in tickets] == [ComputeError] * 2
        with pytest.raises(ComputeError, match="SystemExit"):
            submit(scheduler, (1,))
        scheduler.close()
        assert scheduler.depth.requests == 0
        assert scheduler.idle
    assert said == [SystemExit]


# Limits


def test_a_full_queue_refuses_and_says_for_how_long() -> None:
    engine = SteppedEngine()
    with scheduling(engine, max_texts=10, max_tokens=40) as scheduler:
        hold(engine, scheduler)
        waiting = submit(scheduler, *some(1, 8))
        with pytest.raises(QueueFullError) as texts:
            submit(scheduler, (2,), (3,), (4,))
        assert 1 <= texts.value.retry_after <= 60
        with pytest.raises(QueueFullError, match="32 tokens"):
            submit(scheduler, tuple(range(9)))
        fits = submit(scheduler, (2,), (3,))
        waiting.cancel()
        fits_too = submit(scheduler, tuple(range(9)))
        engine.run_freely()
        assert rows(fits) == expected((2,), (3,))
        assert rows(fits_too) == expected(tuple(range(9)))


def test_what_would_never_fit_is_told_so() -> None:
    """Trying again would be of no use."""
    engine = SteppedEngine()
    with scheduling(engine, max_texts=4, max_tokens=40) as scheduler:
        for texts in (some(1, 5), [tuple(range(41))]):
            with pytest.raises(PayloadTooLargeError, match="4 texts and 40 tokens"):
                submit(scheduler, *texts)


@pytest.mark.parametrize("limits", [{"max_texts": 0}, {"max_tokens": 0}])
def test_limits_below_one_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidOptionError, match="at least 1"):
        Scheduler(Backend(SteppedEngine(), 16), **limits)


# The end


def test_closing_answers_everything_that_was_taken() -> None:
    engine = SteppedEngine()
    scheduler = Scheduler(Backend(engine, engine.n_embd))
    hold(engine, scheduler)
    tickets = [submit(scheduler, *some(name, 5)) for name in range(1, 9)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while True:  # until the door is closed
        try:
            tickets.append(submit(scheduler, (1,)))
        except NotReadyError:
            break
    engine.run_freely()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert [rows(ticket) for ticket in tickets[:8]] == [expected(*some(name, 5)) for name in range(1, 9)]
    assert all(rows(ticket) == expected((1,)) for ticket in tickets[8:])
    scheduler.close()


def test_closing_at_once_refuses_everything_that_waits_and_stops_what_is_computed() -> None:
    engine = SteppedEngine()
    scheduler = Scheduler(Backend(engine, engine.n_embd))
    tickets = [hold(engine, scheduler), submit(scheduler, (1,)), submit(scheduler, *some(2, 50))]
    scheduler.close(drain=False)
    assert [type(failure(ticket)) for ticket in tickets] == [NotReadyError] * 3
    assert engine.computed == []
    with pytest.raises(NotReadyError):
        submit(scheduler, (1,))


def test_a_callback_may_use_the_scheduler() -> None:
    """Futures are answered while no lock is held."""
    engine = SteppedEngine()
    with scheduling(engine) as scheduler:
        depths = []
        first = hold(engine, scheduler)
        first.future.add_done_callback(lambda _: depths.append((scheduler.depth.texts, submit(scheduler, (3,)))))
        second = submit(scheduler, (2,))
        engine.run_freely()
        assert rows(second) == expected((2,))
        assert depths[0][0] == 1
        assert rows(depths[0][1]) == expected((3,))


def test_what_an_embedder_prepares_is_what_it_finishes() -> None:
    """The way through a scheduler gives what ``embed`` gives."""
    with fake_embedder() as embedder:
        scheduler = Scheduler(embedder.backend)
        texts = ["one", "another", "one", "a third that is longer than the others"]
        jobs = [embedder.prepare(texts, truncate_dim=dim, role="query") for dim in (4, 16)]
        tickets = [scheduler.submit(job.encodings) for job in jobs]
        for job, ticket, dim in zip(jobs, tickets, (4, 16), strict=True):
            found = embedder.finish(job, ticket.future.result(PATIENCE).found)
            direct = embedder.embed(texts, truncate_dim=dim, role="query")
            assert np.array_equal(found.vectors, direct.vectors)
            assert found.usage == direct.usage
        scheduler.close()


# Anything

STEPS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=12).map(tuple), min_size=0, max_size=9),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("step"), st.integers(1, 4)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=25), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3))
def test_any_schedule_answers_everybody_with_their_own(
    steps: list[tuple[str, Any]], sharing: bool, drain: bool, token_vectors: bool, lanes: int
) -> None:
    """Whatever is submitted, cancelled and closed when: every future is answered, with the right rows or with the
    error of its own guilty text; what was cancelled before it began is never computed."""
    engine = SteppedEngine(guilty=GUILTY, shares_prefixes=sharing, lanes=lanes)
    scheduler = Scheduler(Backend(engine, engine.n_embd))
    tickets: list[tuple[Ticket, list[Text], bool]] = []
    cancelled: set[int] = set()
    for number, (what, value) in enumerate(steps):
        if what == "submit":
            tokens = token_vectors and number % 3 == 0
            own = [(*text, 1000 + number) if i % 2 else text for i, text in enumerate(value)]
            tickets.append((submit(scheduler, *own, tokens=tokens), own, tokens))
        elif what == "cancel" and value < len(tickets):
            tickets[value][0].cancel()
            cancelled.add(value)
        elif what == "step":
            engine.step(value)
    if drain:
        engine.run_freely()
    scheduler.close(drain=drain)
    late = wait([ticket.future for ticket, _, _ in tickets], timeout=PATIENCE).not_done
    assert not late
    for number, (ticket, texts, tokens) in enumerate(tickets):
        error = ticket.future.exception()
        if error is None and tokens:
            vectors = ticket.future.result().tokens
            assert vectors is not None
            assert [found.argmax(axis=1).tolist() for found in vectors] == [[i % 16 for i in ids] for ids in texts]
        elif error is None:
            assert rows(ticket) == expected(*texts)
        elif isinstance(error, ComputeError):
            assert any(GUILTY in text for text in texts)
        elif isinstance(error, CallCancelledError):
            assert number in cancelled
        else:
            assert isinstance(error, NotReadyError)
            assert not drain
        if drain and number not in cancelled:
            assert (error is not None) == any(GUILTY in text for text in texts)
    if lanes == 1 and not any(GUILTY in text for texts in engine.batch_texts for text in texts):  # nothing was repeated
        submitted = [text for _, texts, _ in tickets for text in texts]
        assert all(engine.computed.count(text) <= submitted.count(text) for text in engine.computed)
    assert scheduler.idle
    assert (scheduler.depth.requests, scheduler.depth.texts, scheduler.depth.tokens) == (0, 0, 0)
