"""Progress: silent for short work, readable on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from edge_embed import progress
from edge_embed.progress import Progress
from edge_embed.testing import fake_embedder


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_short_work_writes_nothing_to_a_log(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("embedding", 10, "texts", stream=stream) as shown:
        clock.now += 4.9
        shown.advance(10)
    assert "" == stream.getvalue()


def test_long_work_writes_plain_lines_every_five_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("embedding", 100, "texts", stream=stream) as shown:
        for _ in range(10):
            clock.now += 2
            shown.advance(10)
    expected = [
        "embedding: 30/100 texts, 5/s, 6 s, 14 s left",
        "embedding: 60/100 texts, 5/s, 12 s, 8 s left",
        "embedding: 90/100 texts, 5/s, 18 s, 2 s left",
        "embedding: 100/100 texts, 5/s, 20 s",
    ]
    assert expected == [line.replace(" texts/s", "/s") for line in stream.getvalue().splitlines()]


def test_a_terminal_gets_one_line_that_is_rewritten(clock: Clock) -> None:
    stream = Terminal()
    with Progress("embedding", 4, "texts", stream=stream) as shown:
        for _ in range(4):
            clock.now += 1
            shown.advance(1)
    assert 1 == stream.getvalue().count("\n")
    assert stream.getvalue().endswith("█" * 24 + " 4/4 texts, 1 texts/s, 4 s\n")
    assert 5 == stream.getvalue().count("\r\x1b[K")


def test_a_bar_is_filled_in_proportion(clock: Clock) -> None:
    stream = Terminal()
    with Progress("x", 4, "texts", stream=stream) as shown:
        clock.now += 1
        shown.advance(1)
    assert "█" * 6 + "░" * 18 in stream.getvalue()


def test_bytes_are_shown_in_megabytes(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("reading", 20_000_000, "B", stream=stream) as shown:
        clock.now += 10
        shown.advance(5_000_000)
    assert "reading: 5.0/20.0 MB, 0.5 MB/s, 10 s, 30 s left" == stream.getvalue().splitlines()[0]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (754, "12:34 min"), (3660, "1:01 h")]
)
def test_durations_are_readable(seconds: float, expected: str) -> None:
    assert expected == progress._duration(seconds)


@pytest.mark.parametrize("options", [{"enabled": False, "total": 10}, {"enabled": True, "total": 0}])
def test_nothing_to_show_writes_nothing(options: dict[str, int], clock: Clock) -> None:
    stream = Terminal()
    with Progress("x", options["total"], "texts", enabled=bool(options["enabled"]), stream=stream) as shown:
        clock.now += 100
        shown.advance(1)
    assert "" == stream.getvalue()


def test_progress_never_reaches_stdout(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("x", 2, "texts") as shown:
        clock.now += 100
        shown.advance(2)
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "2/2 texts" in captured.err


def test_embedding_is_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    fake_embedder().encode(["a", "b"])
    assert ("", "") == capsys.readouterr()


def test_what_was_done_before_says_nothing_of_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("embedding", 1000, "texts", start=900, stream=stream) as shown:
        clock.now += 10
        shown.advance(50)
    assert "embedding: 950/1000 texts, 5 texts/s, 10 s, 10 s left" == stream.getvalue().splitlines()[0]


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_without_an_end_the_count_and_the_rate_are_shown(clock: Clock, kind: type[io.StringIO]) -> None:
    stream = kind()
    with Progress("embedding", None, "texts", stream=stream) as shown:
        clock.now += 10
        shown.advance(50)
    assert "50 texts, 5 texts/s, 10 s" in stream.getvalue()
    assert "left" not in stream.getvalue()
    assert "█" not in stream.getvalue()


@pytest.mark.parametrize(("columns", "bar"), [(200, 24), (70, 15), (40, 0)])
def test_numbers_go_before_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch, columns: int, bar: int) -> None:
    """On a narrow terminal the bar is shorter, or left out; a line never wraps."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Progress("embedding", 1000, "texts", stream=stream) as shown:
        clock.now += 10
        shown.advance(500)
        line = stream.getvalue().removeprefix("\r\x1b[K")
    assert bar == line.count("█") + line.count("░")
    assert len(line) < columns
    if columns > 60:
        assert line.endswith("500/1000 texts, 50 texts/s, 10 s, 10 s left")


def test_work_within_work_of_the_same_name_moves_its_bar(clock: Clock) -> None:
    """Whether or not it would show itself; what counts something else has a line of its own."""
    stream, inside = io.StringIO(), io.StringIO()
    with Progress("embedding", 100, "texts", stream=stream) as shown:
        for enabled in (True, False):
            with Progress("embedding", 20, "texts", enabled=enabled, stream=inside) as part:
                clock.now += 10
                part.advance(20)
        shown.reach(50)
        with Progress("reading", 10, "B", stream=inside) as other:
            clock.now += 10
            other.advance(10)
    lines = stream.getvalue().splitlines()
    assert [line.split(" texts")[0] for line in lines] == [
        "embedding: 20/100",
        "embedding: 40/100",
        "embedding: 50/100",
    ]
    assert [line.split(":")[0] for line in inside.getvalue().splitlines()] == ["reading", "reading"]
