"""How things look: notes and errors on stderr, aligned tables, colour only where it is wanted.

Texts and metadata come from strangers, so control characters are taken out before anything reaches a terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import click


def colours(stream: TextIO | None = None) -> bool:
    """Whether a stream (stdout by default) gets colours: a terminal, unless NO_COLOR or TERM=dumb says no."""
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def style(text: str, **look: Any) -> str:
    """``click.style`` where stdout gets colours, else the text as it is."""
    return click.style(text, **look) if colours() else text


def note(message: str, *, once: set[str] | None = None) -> None:
    """``note: ...`` on stderr; with ``once``, only if that set does not hold the message yet."""
    if once is not None:
        if message in once:
            return
        once.add(message)
    _labelled("note", message, "yellow")


def say_error(message: str, hint: str = "") -> None:
    """``error: ...`` and, if there is one, ``hint: ...`` on stderr."""
    _labelled("error", message, "red")
    if hint:
        _labelled("hint", hint, "cyan")


def _labelled(label: str, message: str, colour: str) -> None:
    shown = click.style(f"{label}:", fg=colour, bold=True) if colours(sys.stderr) else f"{label}:"
    click.echo(f"{shown} {clean(message, keep=chr(10))}", err=True)


def say_json(value: Any) -> None:
    """A value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def mute_stdout() -> None:
    """Let what is still buffered go nowhere: the interpreter would try, and complain, once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def clean(text: str, *, keep: str = "") -> str:
    """The text with each control character and lone surrogate replaced by a space, save those of ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") else " " for c in text)


def width(text: str) -> int:
    """Columns that a text takes on a terminal: two for wide East Asian characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) or unicodedata.category(c) == "Cf"
        else 2 if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )  # fmt: skip


def shorten(text: str, limit: int) -> str:
    """The text on one line of at most ``limit`` columns; what is cut is marked by an ellipsis."""
    text = " ".join(clean(text[: 8 * limit]).split())
    if width(text) <= limit:
        return text
    while width(text) > limit - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """The text filled with spaces to that many columns."""
    fill = " " * (columns - width(text))
    return fill + text if right else text + fill


def table(rows: Iterable[Sequence[str]], head: Sequence[str] | None = None, right: Sequence[int] = ()) -> list[str]:
    """Lines of aligned cells, two spaces apart.

    Args:
        rows: cells of each row, all of one number.
        head: names of the columns, shown faintly.
        right: columns that are aligned to the right.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    everything = [list(head), *cells] if head is not None else cells
    widths = [max(map(width, column)) for column in zip(*everything, strict=True)]
    lines = [
        "  ".join(pad(cell, w, right=i in right) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in everything
    ]
    return [style(lines[0], dim=True), *lines[1:]] if head is not None else lines


def facts(values: Mapping[str, str]) -> list[str]:
    """``name  value`` lines; a value of several lines is indented under its first."""
    longest = max(map(width, values), default=0)
    lines = []
    for name, value in values.items():
        first, *rest = clean(value, keep="\n").split("\n")
        lines.append(f"{style(pad(name, longest), dim=True)}  {first}")
        lines += [" " * (longest + 2) + line for line in rest]
    return lines


def size(n_bytes: float) -> str:
    """A size in the unit that suits it, powers of 1000, as disks and downloads count."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: by an exception, so that what it was writing is removed."""
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
