"""Engines beside each other: processes that answer in turn, the best settings of each, and ratios round by round.

The machines are shared, and absolute figures move by a third from hour to hour. So each round's work goes to every
engine before the next round begins, the first one changes from round to round, and what is compared is the time of the
same work in the same round. An engine whose best settings are not known is tried with each of them first.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_HERE = Path(__file__).parent
SETTLE = 0.3  # seconds between engines: the last one's threads still spin for a moment
OURS = "edge-embed"


@dataclass(frozen=True)
class Variant:
    """Settings to try an engine with.

    Attributes:
        label: how the table says it.
        settings: for the worker's engine.
    """

    label: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """A row of a table.

    Attributes:
        name: the row's.
        kind: the worker's name for it.
        python: interpreter of its environment.
        model: file or folder.
        variants: settings to choose from; a single one is taken untried.
        environment: variables of its process, beside those of this one.
        missing: why it cannot run here, or empty.
    """

    name: str
    kind: str
    python: str
    model: str
    variants: tuple[Variant, ...] = (Variant(""),)
    missing: str = ""
    environment: dict[str, str] = field(default_factory=dict)


class PeerError(Exception):
    """A worker could not do what was asked for."""


class Peer:
    """A worker process."""

    def __init__(self, engine: Engine, variant: Variant, threads: int) -> None:
        self.engine, self.variant = engine, variant
        self.version = ""
        # The worker's folder is another one: it is to import the installed package, not the checkout.
        settings = {"model": str(Path(engine.model).absolute()), "threads": threads, **variant.settings}
        if "program" in settings:
            settings["program"] = _absolute(settings["program"])
        environment = {
            **os.environ,
            "PYTHONPATH": "",
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
            **engine.environment,
        }
        self._process = subprocess.Popen(
            [_absolute(engine.python), str(_HERE / "worker.py"), engine.kind, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=_HERE,
        )

    def wait_until_ready(self) -> None:
        """Until then it loads its model, on the cores that another is measured on."""
        self.version = self._answer()["name"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            PeerError: it failed or ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"{self.engine.name} ended") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self.engine.name} ended with code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise PeerError(f"{self.engine.name}: {found['error']}")
        return found

    def close(self) -> None:
        """Let it end; it ends what it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()


@dataclass
class Row:
    """What an engine did in a scenario.

    Attributes:
        seconds: of each round; in a scenario of single calls the median call's.
        best: its settings.
        version: what the worker says that it is.
        peak_mb: most memory of its process.
        results: of the check, float32.
        failure: why there is no figure, or empty.
    """

    engine: Engine
    seconds: list[float] = field(default_factory=list)
    best: str = ""
    version: str = ""
    peak_mb: float = 0.0
    results: npt.NDArray[np.float32] | None = None
    failure: str = ""


def _absolute(program: str) -> str:
    """Where it lies; links are left alone, since an environment's interpreter is one."""
    return str(Path(shutil.which(program) or program).absolute())


def available(engine: Engine, module: str = "") -> Engine:
    """The engine, with the reason if its interpreter or program is not there or cannot import ``module``."""
    program = next((v.settings["program"] for v in engine.variants if "program" in v.settings), None)
    reason = ""
    if program is not None and not shutil.which(program):
        reason = f"no program {program}"
    elif not shutil.which(engine.python):
        reason = f"no interpreter {engine.python}"
    elif module and subprocess.run([engine.python, "-c", f"import {module}"], capture_output=True).returncode:
        reason = f"{engine.python} has no {module}"
    elif not Path(engine.model).exists():
        reason = f"no model {engine.model}"
    return Engine(engine.name, engine.kind, engine.python, engine.model, engine.variants, reason) if reason else engine


def compare(
    engines: Sequence[Engine],
    rounds: Sequence[dict[str, Any]],
    *,
    threads: int,
    trial: dict[str, Any],
    check: dict[str, Any],
) -> list[Row]:
    """Run every engine over the rounds, in turn.

    Args:
        engines: the first is what the others are compared with.
        rounds: a request each.
        threads: of each engine.
        trial: a request on which an engine's settings are chosen; it also warms up.
        check: a small request whose results are kept and compared.
    """
    rows = [Row(engine, failure=engine.missing) for engine in engines]
    peers: dict[int, Peer] = {}
    try:
        for number, row in enumerate(rows):
            if not row.failure:
                _start(row, peers, number, threads, trial, check)
        for turn, request in enumerate(rounds):
            order = [(turn + step) % len(rows) for step in range(len(rows))]
            for number in order:
                if number in peers:
                    time.sleep(SETTLE)
                    _guarded(rows[number], peers, number, request)
            print(f"round {turn + 1} of {len(rounds)}", file=sys.stderr, flush=True)
    finally:
        for peer in peers.values():
            peer.close()
    return rows


def _start(
    row: Row, peers: dict[int, Peer], number: int, threads: int, trial: dict[str, Any], check: dict[str, Any]
) -> None:
    """Choose the engine's settings, leave it running with them."""
    variants = row.engine.variants
    seconds: dict[int, float] = {}
    failures: list[str] = []
    for index, variant in enumerate(variants if len(variants) > 1 else ()):
        peer = Peer(row.engine, variant, threads)
        try:
            peer.wait_until_ready()
            time.sleep(SETTLE)
            seconds[index] = _time_of(peer.ask(trial))
            print(f"{row.engine.name}, {variant.label}: {seconds[index]:.2f} s", file=sys.stderr, flush=True)
        except PeerError as error:
            failures.append(f"{variant.label}: {error}")
            print(failures[-1], file=sys.stderr, flush=True)
        finally:
            peer.close()
    if len(variants) > 1 and not seconds:
        row.failure = failures[0]
        return
    best = variants[min(seconds, key=seconds.__getitem__, default=0)]
    row.best = best.label
    peer = peers[number] = Peer(row.engine, best, threads)
    try:
        peer.wait_until_ready()
        row.version = peer.version
        row.results = np.array(peer.ask({**check, "keep": True})["results"], dtype=np.float32)
        peer.ask(trial)
    except PeerError as error:
        row.failure = str(error)
        peers.pop(number).close()


def _guarded(row: Row, peers: dict[int, Peer], number: int, request: dict[str, Any]) -> None:
    try:
        found = peers[number].ask(request)
    except PeerError as error:
        row.failure = str(error)
        peers.pop(number).close()
        return
    row.seconds.append(_time_of(found))
    row.peak_mb = found["peak_mb"]


def _time_of(found: dict[str, Any]) -> float:
    return statistics.median(found["each"]) if found["each"] else float(found["seconds"])


# ---------------------------------------------------------------- what is printed


def table(rows: Sequence[Row], amounts: Sequence[float], unit: str, *, scores: bool = False) -> str:
    """A Markdown table.

    Args:
        rows: the first is ours.
        amounts: how much of ``unit`` each round had. Empty for single calls, whose milliseconds are printed instead.
        unit: e.g. ``tokens/s``.
        scores: the checks' results are scores, not vectors.
    """
    head = unit if amounts else "ms"
    agreement = "scores differ from ours by" if scores else "cosine to ours"
    lines = [
        f"| engine | {head} | {rows[0].engine.name} is faster by (median of rounds, range) | peak MB | {agreement} |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"{row.engine.name}{f' ({row.best})' if row.best else ''}"
        if row.failure or not row.seconds:
            lines.append(f"| {name} | missing: {row.failure or 'no round'} | | | |")
            continue
        figure = sum(amounts) / sum(row.seconds) if amounts else 1000 * statistics.median(row.seconds)
        shown = f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"
        peak = f"{row.peak_mb:.0f}" if row.peak_mb else "?"
        lines.append(
            f"| {name} | {shown} | {'' if row is rows[0] else factor(row, rows[0])} | {peak} | "
            f"{'' if row is rows[0] else agrees(row, rows[0], scores=scores)} |"
        )
    return "\n".join(lines)


def factor(row: Row, ours: Row) -> str:
    """How many times as long the row's engine takes."""
    if len(row.seconds) != len(ours.seconds):
        return ""
    ratios = [theirs / mine for theirs, mine in zip(row.seconds, ours.seconds, strict=True)]
    return f"**{statistics.median(ratios):.2f}**, {min(ratios):.2f} to {max(ratios):.2f}"


def agrees(row: Row, ours: Row, *, scores: bool) -> str:
    """How far the row's results of the check are from ours."""
    a, b = row.results, ours.results
    if a is None or b is None or a.shape != b.shape or not a.size:
        return "another shape" if a is not None and b is not None else ""
    if scores:
        return f"{np.abs(a - b).max():.4f}"
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return f"{cosine.min():.5f}"


def versions(rows: Sequence[Row]) -> str:
    """A line that says what ran."""
    return "; ".join(dict.fromkeys(row.version for row in rows if row.version))
