"""Answers of other threads, as an event loop gets them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from edge_embed.server.arrivals import Arrivals


def in_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def woken(arrivals: Arrivals, answers: list[Future[int]], bring: Any) -> tuple[list[Any], int]:
    """What all waiters get, and how often the loop was woken for that."""

    async def run() -> tuple[list[Any], int]:
        loop, times = asyncio.get_running_loop(), 0
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal times
            times += 1
            return wake(*args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        waiters = [asyncio.ensure_future(arrivals.wait(answer, 30)) for answer in answers]
        await asyncio.sleep(0)  # all of them wait
        in_thread(bring)  # while the loop stands still
        found = await asyncio.gather(*waiters, return_exceptions=True)
        return found, times

    return asyncio.run(run())


def test_what_comes_together_wakes_the_loop_once() -> None:
    arrivals = Arrivals()
    answers: list[Future[int]] = [Future() for _ in range(20)]
    times_before_the_end: list[int] = []

    def bring() -> None:
        with arrivals.together():
            for number, answer in enumerate(answers):
                answer.set_result(number)
            times_before_the_end.append(arrivals._woken)

    assert woken(arrivals, answers, bring) == (list(range(20)), 1)
    assert times_before_the_end == [False]  # not before the last one was there


def test_single_answers_need_nothing_else() -> None:
    answers: list[Future[int]] = [Future(), Future(), Future()]

    def bring() -> None:
        answers[1].set_exception(ValueError("no"))
        answers[0].set_result(0)
        answers[2].set_result(2)

    found, times = woken(Arrivals(), answers, bring)
    assert (found[0], found[2]) == (0, 2) and isinstance(found[1], ValueError)
    assert times == 1  # the loop was busy, and is told once


def test_each_thread_holds_back_its_own_answers_alone() -> None:
    arrivals = Arrivals()
    held: Future[int] = Future()
    other: Future[int] = Future()

    async def run() -> tuple[int, bool]:
        release, holding = threading.Event(), threading.Event()

        def hold() -> None:
            with arrivals.together():
                holding.set()
                release.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait(30)
        waiter = asyncio.ensure_future(arrivals.wait(other, 30))
        late = asyncio.ensure_future(arrivals.wait(held, 30))
        await asyncio.sleep(0)
        in_thread(lambda: other.set_result(1))
        found = await waiter  # although another thread is holding back
        release.set()
        thread.join()
        held.set_result(2)
        return found, await late == 2

    assert asyncio.run(run()) == (1, True)


def test_an_answer_that_was_there_before() -> None:
    answer: Future[int] = Future()
    answer.set_result(7)
    assert asyncio.run(Arrivals().wait(answer, 30)) == 7


def test_an_answer_that_comes_too_late_troubles_nobody() -> None:
    arrivals = Arrivals()
    late: Future[int] = Future()
    answer: Future[int] = Future()

    async def run() -> int:
        with pytest.raises(asyncio.TimeoutError):
            await arrivals.wait(late, 0.01)
        assert not late.cancelled()
        late.set_result(1)
        answer.set_result(2)
        return await arrivals.wait(answer, 30)

    assert asyncio.run(run()) == 2


def test_a_waiter_that_was_cancelled() -> None:
    arrivals = Arrivals()
    answer: Future[int] = Future()

    async def run() -> bool:
        waiter = asyncio.ensure_future(arrivals.wait(answer, 30))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        answer.set_result(1)
        await asyncio.sleep(0)
        return not answer.cancelled()

    assert asyncio.run(run())


def test_a_loop_that_has_ended_does_not_stop_the_next_one() -> None:
    arrivals = Arrivals()
    orphan: Future[int] = Future()

    async def leave() -> None:
        waiter = asyncio.ensure_future(arrivals.wait(orphan, 30))
        await asyncio.sleep(0)
        waiter.cancel()

    asyncio.run(leave())
    orphan.set_result(1)  # its loop is closed
    answer: Future[int] = Future()
    assert woken(arrivals, [answer], lambda: answer.set_result(5)) == ([5], 1)
