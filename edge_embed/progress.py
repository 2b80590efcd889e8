"""Progress of long work on stderr: a bar on a terminal, a plain line now and then otherwise.

It writes only after a moment, so that short work stays silent, and never to stdout, which carries data. Work that is
part of other work of the same name counts there: a file of texts has one bar, which moves within each call.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TextIO

_BAR, _SHORTEST_BAR = 24, 4  # columns


class Progress:
    """A counter with a rate and the time left.

    Args:
        label: what is being done, e.g. ``embedding``.
        total: how many units there are; None where that is not known.
        unit: what is counted, e.g. ``texts``; ``B`` is shown in MB.
        start: units that were done before, which say nothing of the rate.
        enabled: False makes every method a no-op.
        stream: where to write; stderr by default.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        *,
        start: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._stream = stream if stream is not None else sys.stderr
        outer = _CURRENT.get()
        self._whole = outer if outer is not None and (outer._label, outer._unit) == (label, unit) else None
        self._token: Token[Progress | None] | None = None
        self._enabled = enabled and total != 0 and self._whole is None
        self._tty = self._enabled and self._stream.isatty()
        self._start = self._last = time.monotonic()
        self._interval = 0.1 if self._tty else 5.0
        self._before = self._done = start
        self._detail = ""
        self._written = False

    def __enter__(self) -> Progress:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
        if self._written or (self._enabled and self._tty):
            self._write(final=True)

    def advance(self, n: int) -> None:
        """Count ``n`` more units as done."""
        self._done += n
        if self._whole is not None:
            self._whole.advance(n)
        now = time.monotonic()
        interval = self._interval if self._tty else max(self._interval, (self._last - self._start) / 10)
        if self._enabled and now - self._last >= interval:
            self._last = now
            self._write(final=False)

    def reach(self, done: int, detail: str = "") -> None:
        """Count up to ``done`` units; ``detail`` says what they belong to."""
        self._detail = detail
        self.advance(done - self._done)

    def _write(self, *, final: bool) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._before) / elapsed
        counts, left = f"{self._amount(self._done)} {self._name}", ""
        if self._total is not None:
            counts = f"{self._amount(self._done)}/{self._amount(self._total)} {self._name}"
            left = "" if final or not rate else f", {_duration((self._total - self._done) / rate)} left"
        detail = "" if final or not self._detail else f", {self._detail}"
        line = f"{counts}, {self._amount(rate)} {self._name}/s, {_duration(elapsed)}{left}{detail}"
        if self._tty:
            columns = shutil.get_terminal_size().columns - 1  # a line that wraps could not be rewritten
            shown = f"{self._label} {self._bar(columns - len(self._label) - len(line) - 2)}{line}"
            self._stream.write("\r\x1b[K" + shown[:columns] + ("\n" if final else ""))
        else:
            self._stream.write(f"{self._label}: {line}\n")
        self._stream.flush()
        self._written = True

    def _bar(self, columns: int) -> str:
        """The bar and a space behind it: shorter where the numbers need the room, none where the end is not known."""
        size = min(_BAR, columns)
        if self._total is None or size < _SHORTEST_BAR:
            return ""
        filled = int(size * self._done / self._total)
        return "█" * filled + "░" * (size - filled) + " "

    @property
    def _name(self) -> str:
        return "MB" if self._unit == "B" else self._unit

    def _amount(self, value: float) -> str:
        if self._unit == "B":
            return f"{value / 1e6:.1f}"
        return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


class BytesProgress:
    """A callback ``(bytes done, bytes in all, what)`` that shows itself as ``Progress``; leaving ends its line.

    Work of several parts counts from 0 again in each, and has a label for each.
    """

    def __init__(self, *labels: str, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._labels, self._enabled, self._stream = list(labels), enabled, stream
        self._shown: Progress | None = None
        self._reached = self._total = 0

    def __enter__(self) -> BytesProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._shown is None or done < self._reached or total != self._total:
            self.__exit__()
            label = self._labels.pop(0) if len(self._labels) > 1 else self._labels[0]
            self._shown = Progress(label, total, "B", enabled=self._enabled, stream=self._stream)
        self._shown.reach(done, what)
        self._reached, self._total = done, total


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
