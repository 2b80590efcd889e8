"""How a call is stopped from another thread, or after a while."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from edge_embed.errors import CallCancelledError, DeadlineExceededError, InvalidOptionError

T = TypeVar("T")


class Cancellation:
    """Stops the calls that it is given to: between two texts while they are tokenized, then between two batches, and
    in the middle of a batch on the CPU.

    One may be given to several calls, in several threads. It cannot be used again once it has stopped them.

    Args:
        timeout: seconds from now after which they are stopped, or None.

    Raises:
        InvalidOptionError: ``timeout`` is not a positive number.
    """

    def __init__(self, timeout: float | None = None) -> None:
        valid = type(timeout) in (int, float) and math.isfinite(timeout) and timeout > 0  # type: ignore[arg-type, operator]
        if timeout is not None and not valid:
            raise InvalidOptionError(f"timeout is {timeout!r}", hint="give seconds above 0, or None")
        self.timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._cancelled = False
        self._lock = threading.RLock()  # a signal's handler may cancel the call that it interrupts
        self._interrupts: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Stop the calls. They raise CallCancelledError."""
        with self._lock:
            self._cancelled = True
        self._interrupt()

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def check(self) -> None:
        """Raises CallCancelledError after ``cancel()``, DeadlineExceededError when the time is up."""
        if self._cancelled:
            raise CallCancelledError("the call was cancelled")
        if self.expired:
            raise DeadlineExceededError(
                f"the call took longer than {self.timeout:g} s", hint="allow more time, or give fewer or shorter texts"
            )

    @contextlib.contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Inside the block, ``interrupt`` is called when the calls are to stop, at once if they are already."""
        timer = None
        if self._deadline is not None:
            timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), self._interrupt)
            timer.daemon = True
        with self._lock:
            self._interrupts.append(interrupt)
            stopped = self._cancelled
        try:
            if timer is not None:
                timer.start()
            if stopped:
                interrupt()
            yield
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._interrupts.remove(interrupt)

    def _interrupt(self) -> None:
        with self._lock:
            interrupts = list(self._interrupts)
        for interrupt in interrupts:
            interrupt()


def stop_of(timeout: float | None, cancellation: Cancellation | None) -> Cancellation | None:
    """What stops a call that takes both.

    Raises:
        InvalidOptionError: both were given, ``timeout`` is not a positive number, or the other is no Cancellation.
    """
    if cancellation is not None and not isinstance(cancellation, Cancellation):
        raise InvalidOptionError(f"cancellation is {cancellation!r}", hint="give a Cancellation, or None")
    if timeout is None:
        return cancellation
    if cancellation is not None:
        raise InvalidOptionError("timeout and cancellation were given together", hint="Cancellation(timeout=...)")
    return Cancellation(timeout)


def watched(items: Iterable[T], stop: Cancellation | None) -> Iterator[T]:
    """The items, one after another, until the call is to stop. Raises as ``Cancellation.check``."""
    for item in items:
        if stop is not None:
            stop.check()
        yield item
