"""Answers that other threads have found, brought to the event loop: it is woken once for all that come together.

``asyncio.wrap_future`` wakes the loop for every answer. Each time, the thread that found it lets the loop's thread run,
and goes on when that one has sent something: after a batch of many requests the model would wait for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Arrivals:
    """What one event loop waits for, and other threads bring."""

    def __init__(self) -> None:
        self._come: deque[asyncio.Future[None]] = deque()
        self._woken = False
        self._here = threading.local()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What this thread brings meanwhile comes at the end, all at once."""
        self._here.holds = True
        try:
            yield
        finally:
            self._here.holds = False
            self._wake()

    async def wait(self, answer: Future[T], seconds: float) -> T:
        """An answer, within so many seconds; what it raises.

        Raises:
            TimeoutError: it did not come (``asyncio.TimeoutError``); it is not cancelled.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        answer.add_done_callback(lambda _: self._bring(waiter))
        timer = loop.call_later(seconds, _late, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
        return answer.result()

    def _bring(self, waiter: asyncio.Future[None]) -> None:
        self._come.append(waiter)
        if not getattr(self._here, "holds", False):
            self._wake()

    def _wake(self) -> None:
        if self._woken or not self._come:
            return
        try:
            loop = self._come[0].get_loop()
        except IndexError:  # handed over meanwhile
            return
        self._woken = True  # before the call: what comes after it finds it so, or is seen by the call
        try:
            loop.call_soon_threadsafe(self._hand_over)
        except RuntimeError:  # the loop has ended, and nobody waits
            self._come.clear()
            self._woken = False

    def _hand_over(self) -> None:
        self._woken = False  # first: what comes from here on wakes the loop again
        while self._come:
            waiter = self._come.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _late(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(asyncio.TimeoutError())
