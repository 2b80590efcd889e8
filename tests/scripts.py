"""Runs what could end the process in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run_script(code: str, *arguments: object, timeout: float = 120) -> str:
    """Standard output of a script; a crash, a hang or an error fails the test."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode or done.stderr:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
