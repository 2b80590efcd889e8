"""The one thread that touches a context, the C objects of a model, and how a computation under way is stopped.

OpenMP keeps a team of workers for each thread that calls it. As a context is always computed by its owner, there are
as many teams as contexts, however many threads ask.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakSet

from edge_embed.cancellation import Cancellation
from edge_embed.errors import CallCancelledError, EngineClosedError, EngineUnavailableError

T = TypeVar("T")

# How long closing waits for a thread that has nothing more to do. Not for ever: a destructor may have interrupted its
# caller inside one of the locks that an ending thread takes.
_END_SECONDS: Final = 1.0
# How long the end of the program waits for a thread that is busy, which otherwise frees a model while the libraries are
# torn down. A large model takes a second.
_EXIT_SECONDS: Final = 10.0


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
        """End what is computed."""
        self._text[0] = b"x"

    def clear(self) -> None:
        """Let what comes next be computed."""
        self._text[0] = b"\0"


class Handles:
    """The C objects, freed in the right order, once."""

    def __init__(self, c: Any) -> None:
        self._c = c
        self.model: Any = None
        self.adapter: Any = None  # freed with the model
        self.context: Any = None

    def free_context(self) -> None:
        """The engine's own context, if there is one; the model stays."""
        if self.context:
            self._c.llama_free(self.context)
            self.context = None

    def free(self) -> None:
        """All of them. Contexts of further lanes must be gone."""
        self.free_context()
        if self.model:
            self._c.llama_model_free(self.model)
            self.model = None


class SupportsClose(Protocol):
    """Something over a model, with a thread of its own."""

    def close(self) -> None:
        """End the thread, and free what it owns."""
        ...


_Job = tuple[Future[Any], Callable[[], Any]]


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    """Run what comes, until None does."""
    while (job := jobs.get()) is not None:
        future, run = job
        if future.set_running_or_notify_cancel():
            try:
                result = run()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
        del job, future, run  # it may hold the last reference to the engine


_OWNERS: Final[WeakSet[Owner]] = WeakSet()


class Owner:
    """Runs work on one thread, in the order in which it came.

    Not a ThreadPoolExecutor: those take no more work once the main thread has ended, although others are still busy,
    and the lock that they share must not be asked for by a destructor, which may run in the midst of any of them.

    Args:
        abort: ends what is computed at the moment.
    """

    def __init__(self, abort: AbortFlag) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()  # whose put() may interrupt another
        # A daemon: it is ended by close(), at the latest when the interpreter ends.
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name="edge-embed-engine", daemon=True)
        self._thread.start()
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._borrowers = 0
        self._abort = abort
        self._current: object = None
        self.closed = False
        _OWNERS.add(self)

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
            future = self._submit(run)

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

    def _submit(self, run: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put((future, run))
        return future

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

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside the block nobody reads the model; for work of the owner's thread that replaces it."""
        with self._lock:
            self._lock.wait_for(lambda: self._borrowers == 0)
            yield

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
            if threading.get_ident() == self._thread.ident:
                last()  # a finished call held the last reference: it cannot wait for itself
                self._jobs.put(None)
                return
            future = self._submit(last)
            self._jobs.put(None)
        future.result()
        self._thread.join(_END_SECONDS)

    def settle(self) -> None:
        """Wait until the thread has nothing to do, or has ended."""
        if os.getpid() != self._pid:
            return
        behind = self._submit(lambda: None)
        until = time.monotonic() + _EXIT_SECONDS
        while self._thread.is_alive() and not behind.done() and time.monotonic() < until:
            time.sleep(0.001)


@atexit.register
def _settle() -> None:
    """A model whose last reference was dropped by its own thread is being freed there, and nobody waits for it."""
    for owner in list(_OWNERS):
        owner.settle()


def shutdown(owner: Owner, handles: Handles, further: Sequence[SupportsClose] = ()) -> None:
    """Free the C objects on their thread, and end it; before that, what is made over the same model."""
    for one in further:
        one.close()
    owner.close(handles.free)
