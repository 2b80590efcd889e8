"""Progress of long work on stderr: a bar on a terminal, a plain line now and then otherwise.

It writes only after a moment, so that short work stays silent, and never to stdout, which carries data.
"""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO


class Progress:
    """A counter with a rate and the time left.

    Args:
        label: what is being done, e.g. ``embedding``.
        total: how many units there are.
        unit: what is counted, e.g. ``texts``; ``B`` is shown in MB.
        enabled: False makes every method a no-op.
        stream: where to write; stderr by default.
    """

    def __init__(
        self, label: str, total: int, unit: str, *, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled and total > 0
        self._tty = self._enabled and self._stream.isatty()
        self._start = self._last = time.monotonic()
        self._interval = 0.1 if self._tty else 5.0
        self._done = 0
        self._detail = ""
        self._written = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._written or (self._enabled and self._tty):
            self._write(final=True)

    def advance(self, n: int) -> None:
        """Count ``n`` more units as done."""
        self._done += n
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
        rate = self._done / elapsed
        left = "" if final or not rate else f", {_duration((self._total - self._done) / rate)} left"
        counts = f"{self._amount(self._done)}/{self._amount(self._total)} {self._name}"
        detail = "" if final or not self._detail else f", {self._detail}"
        line = f"{counts}, {self._amount(rate)} {self._name}/s, {_duration(elapsed)}{left}{detail}"
        if self._tty:
            filled = int(24 * self._done / self._total)
            bar = "█" * filled + "░" * (24 - filled)
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be rewritten
            self._stream.write("\r\x1b[K" + f"{self._label} {bar} {line}"[:width] + ("\n" if final else ""))
        else:
            self._stream.write(f"{self._label}: {line}\n")
        self._stream.flush()
        self._written = True

    @property
    def _name(self) -> str:
        return "MB" if self._unit == "B" else self._unit

    def _amount(self, value: float) -> str:
        if self._unit == "B":
            return f"{value / 1e6:.1f}"
        return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


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
