"""A child process that may die: what loads an unproven model, or tries unproven settings, does so in there.

Requests and answers are lines of JSON. The parent half is ``Child``, the child's half is ``serve``; a module whose
``main`` calls ``serve`` can be started by its name. It knows nothing of models.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from edge_embed.errors import EdgeEmbedError, EngineUnavailableError

Answer = dict[str, Any]

# The child's program. Python puts the working directory first on the path of `-c` and `-m`, where anybody's numpy.py
# may lie, so the parent's own path takes its place before anything else is imported.
_PROGRAM: Final = (
    "import sys, importlib; module = sys.argv[1]; sys.path[:] = sys.argv[2:]; importlib.import_module(module).main()"
)
# How a miscompiled kernel or a corrupt file ends a process. Anything else (killed for memory, by a user) says nothing
# about the model and is not remembered.
_CRASHES: Final = ("SIGSEGV", "SIGILL", "SIGBUS", "SIGABRT", "SIGFPE", "SIGTRAP")
_END_SECONDS: Final = 10.0


class ChildDiedError(Exception):
    """The child crashed: the message says how. Never leaves ``engine``."""


class ChildSilentError(Exception):
    """The child gave no answer in time, and was ended. Never leaves ``engine``."""


class Child:
    """A running child process, a context manager that ends it.

    It is in a session of its own, so an interrupt (Ctrl-C) reaches the parent alone, which ends it.

    Args:
        module: its ``main`` is what the child runs.
        purpose: what it is for, for messages: "a child process that ..."
        environment: variables to set, besides the parent's own.

    Raises:
        EngineUnavailableError: it could not be started.
    """

    def __init__(self, module: str, purpose: str, environment: Mapping[str, str] | None = None) -> None:
        self._purpose = purpose
        path = [str(Path(entry).resolve()) for entry in sys.path if entry]
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                [sys.executable or "python3", "-c", _PROGRAM, module, *path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
                encoding="utf-8",
                errors="replace",
                # A crash is expected here: without this ggml would start a debugger, if there is one, and take seconds.
                env={**os.environ, "GGML_NO_BACKTRACE": "1", **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            self._complaints.close()
            raise EngineUnavailableError(
                f"no child process could be started to {purpose}: {error}",
                hint="the engine tries what is new to it in a child process: allow it to start one",
            ) from error
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, request: Mapping[str, Any], timeout: float) -> Answer:
        """The answer to a request. ``{"error": ...}`` is one, of a child that is well.

        Args:
            request: what can be written as JSON.
            timeout: seconds.

        Raises:
            ChildDiedError: it crashed.
            ChildSilentError: there was no answer in time.
            EngineUnavailableError: it ended in another way, which says nothing about what it tried.
        """
        with contextlib.suppress(OSError):  # a child that is gone is noticed below, with how it ended
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise ChildSilentError(f"no answer within {timeout:.0f} s") from None
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
        raise self._end()

    def close(self) -> None:
        """End the process; its answers so far are lost."""
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._reader.join(_END_SECONDS)
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):  # closing flushes what a dead child cannot take
                if stream is not None:
                    stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # closed under us
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")  # the end: no JSON

    def _end(self) -> Exception:
        """What to raise for a child whose output has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.poll()
        self._complaints.seek(0)
        tail = "".join(self._complaints.read().decode("utf-8", "replace").strip().splitlines()[-1:])
        self.close()
        name = crash_name(code)
        if name:
            return ChildDiedError(f"it died of {name}")
        if code is not None and code < 0:
            tail = f"killed by {_signal_name(-code)}"
        return EngineUnavailableError(
            f"a child process to {self._purpose} ended with code {code}: {tail or 'no reason given'}",
            hint="this says nothing about the model: free memory, or see whether Python itself works here",
        )


def crash_name(code: int | None) -> str:
    """What ended a process with that exit code, if it was a crash; else an empty string."""
    if code is not None and code < 0:
        name = _signal_name(-code)
        return name if name in _CRASHES else ""
    if sys.platform == "win32" and code is not None and code > 0xBFFFFFFF:
        return f"{code:#x}"  # an NTSTATUS of severity "error", e.g. access violation
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve(handle: Callable[[Answer], Answer]) -> None:
    """The child: answer each line of stdin with one of stdout, until there are no more.

    Errors of ours become ``{"error": message}``. What libraries print goes to stderr.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is an answer, not something to dump
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except EdgeEmbedError as problem:
            answer = {"error": problem.message}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
