"""The one thread that touches a model, the C objects that it owns, and how a computation under way is stopped.

OpenMP keeps a team of workers for each thread that calls it, so handing all calls to one thread also keeps the number
of native threads constant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from edge_embed.cancellation import Cancellation
from edge_embed.errors import CallCancelledError, EngineClosedError, EngineUnavailableError

T = TypeVar("T")


class AbortFlag:
    """What llama.cpp asks before each operation: shall the computation go on?

    It asks through a C function that takes a pointer and returns a bool. A Python function there would need the
    interpreter's lock, a thousand times a batch. The C library's ``strlen`` needs none, and over two bytes of ours it
    is exactly that question: the text is empty, so 0, false, until a character is written.
    """

    def __init__(self, c: Any) -> None:
        self._text = ctypes.create_string_buffer(2)
        libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        self.callback = ctypes.cast(libc.strlen, c.ggml_abort_callback)
        self.data = ctypes.cast(self._text, ctypes.c_void_p)

    def set(self) -> None:
        self._text[0] = b"x"

    def clear(self) -> None:
        self._text[0] = b"\0"


class Handles:
    """The C objects, freed in the right order, once."""

    def __init__(self, c: Any) -> None:
        self._c = c
        self.model: Any = None
        self.adapter: Any = None  # freed with the model
        self.context: Any = None

    def free_context(self) -> None:
        if self.context:
            self._c.llama_free(self.context)
            self.context = None

    def free(self) -> None:
        self.free_context()
        if self.model:
            self._c.llama_model_free(self.model)
            self.model = None


class Owner:
    """Runs work on one thread, in the order in which it came.

    Args:
        abort: ends what is computed at the moment.
    """

    def __init__(self, abort: AbortFlag) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-embed-engine")
        self._thread = self._pool.submit(threading.get_ident).result()
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._borrowers = 0
        self._abort = abort
        self._current: object = None
        self.closed = False

    def call(self, work: Callable[[], T], stop: Cancellation | None = None) -> T:
        """The work's result. An interrupt of the waiting thread, or ``stop``, ends the computation first."""
        self._check_process()
        job = object()

        def run() -> T:
            with self._lock:
                self._current = job
                self._abort.clear()
            try:
                if stop is not None:
                    stop.check()
                return work()
            finally:
                with self._lock:
                    self._current = None

        with self._lock:
            self._check_open()
            future: Future[T] = self._pool.submit(run)

        def interrupt() -> None:
            if not future.cancel():
                with self._lock:
                    if self._current is job:
                        self._abort.set()

        with stop.interrupting(interrupt) if stop is not None else contextlib.nullcontext():
            try:
                return future.result()
            except (CancelledError, CallCancelledError):
                if stop is not None:
                    stop.check()  # says why
                raise
            except BaseException:
                if not future.done():
                    interrupt()
                    wait([future])
                raise

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """The model stays in memory inside the block, for reading it on any thread."""
        self._check_process()
        with self._lock:
            self._check_open()
            self._borrowers += 1
        try:
            yield
        finally:
            with self._lock:
                self._borrowers -= 1
                self._lock.notify_all()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineUnavailableError(
                "the engine belongs to another process",
                hint="make the Embedder after forking, one in each process",
            )

    def _check_open(self) -> None:
        if self.closed:
            raise EngineClosedError("the engine is closed", hint="make a new Embedder")

    def close(self, last: Callable[[], None]) -> None:
        """Run ``last`` behind the work that is there, and end the thread."""
        if os.getpid() != self._pid:
            return  # a forked child: the parent owns the memory, and perhaps held the lock when it forked
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._lock.wait_for(lambda: self._borrowers == 0)
            if (
                threading.get_ident() == self._thread
            ):  # a finished call held the last reference: it cannot wait for itself
                last()
                self._pool.shutdown(wait=False)
                return
            future = None
            with contextlib.suppress(RuntimeError):  # the interpreter is ending and its pools are shut: free from here
                future = self._pool.submit(last)
        if future is not None:
            future.result()
        else:
            last()
        self._pool.shutdown(wait=True)


def shutdown(owner: Owner, handles: Handles) -> None:
    """Free the C objects on their thread, and end it."""
    owner.close(handles.free)
