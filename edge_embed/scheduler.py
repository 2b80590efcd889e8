"""A thread for each lane of one model, which keep it busy with the texts of many requests.

What waits is kept as encodings, so texts of different requests share the model's batches whatever each request wants
of its vectors. Nothing waits for company: a batch is made of what is there when a lane is free. Which texts these
are is decided in ``waiting.py``. While interactive requests come, bulk batches are kept so small that nobody waits for
one longer than about ``PATIENCE_SECONDS``.

The queue is bounded. A request whose client went away leaves it at once; a batch under way is stopped when nobody
is left who wants it. A batch that the engine refuses is computed text by text, so that only the guilty request fails.
Every request that was taken is answered, with its rows or with an error, whatever happens to a thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from edge_embed.batching import alone
from edge_embed.cache import Lookup
from edge_embed.cancellation import Cancellation
from edge_embed.errors import (
    CallCancelledError,
    ComputeError,
    EdgeEmbedError,
    EngineClosedError,
    InvalidOptionError,
    NotReadyError,
    PayloadTooLargeError,
    QueueFullError,
)
from edge_embed.running import Backend
from edge_embed.together import WORTH_A_LANE
from edge_embed.types import Batch, Encoding, EngineLimits, Float32Array
from edge_embed.waiting import Depth, Lines, Request, Work, suitable

PATIENCE_SECONDS: Final = 0.25
"""How long a bulk batch may take while interactive requests come."""
_LIVELY_SECONDS: Final = 10.0  # after the last interactive request they are no longer expected
_SMALLEST_BATCH: Final = 64  # tokens; the weights are read once a batch, however small it is
_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds that a refused client is told to wait


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one call of the engine did.

    Attributes:
        n_texts: sequences in it; a text that several requests wait for is one.
        n_tokens: tokens of these.
        n_computed: tokens that were computed, shared ones counted once.
        n_requests: requests that had texts in it.
        seconds: how long it took.
    """

    n_texts: int
    n_tokens: int
    n_computed: int
    n_requests: int
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What became of a request.

    Attributes:
        found: its rows, and which of them a cache had.
        tokens: float32 ``[n_tokens, n]`` for each encoding, where they were asked for.
        queue_seconds: how long the request waited before its first text was computed.
        inference_seconds: from then until its last text was done.
    """

    found: Lookup
    tokens: tuple[Float32Array, ...] | None
    queue_seconds: float
    inference_seconds: float


@dataclass(eq=False, slots=True)
class Ticket(Request):
    """A request on its way.

    Attributes:
        future: its rows; after ``cancel()`` a CallCancelledError. Only the ticket can be cancelled, not its future.
    """

    found: Lookup
    scheduler: Scheduler
    submitted: float
    future: Future[Computed] = field(default_factory=Future)
    started: float | None = None
    left: int = field(init=False)
    vectors: dict[int, Float32Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Request.__post_init__(self)  # super() does not know a class that was made again for its slots
        self.left = len(self.order)
        self.future.set_running_or_notify_cancel()

    def cancel(self) -> None:
        """Nobody waits for it any more. Does nothing once it is answered."""
        self.scheduler._cancel(self)


Owners = Sequence[Sequence[tuple[Ticket, int]]]


@dataclass(frozen=True, slots=True, eq=False)
class _UnderWay:
    """A batch that is being computed.

    Attributes:
        work: the batch and its owners.
        stop: ends it.
        tickets: requests with texts in it.
    """

    work: Work[Ticket]
    stop: Cancellation
    tickets: Collection[Ticket]


class Scheduler:
    """Computes rows of encodings on threads of its own: as many as the engine computes batches at a time.

    Args:
        backend: the model; the caller closes it, after this.
        max_texts: most texts that may wait.
        max_tokens: most tokens that may wait.
        report: told of each batch, on its thread, before its requests are answered; must be quick.
        name: of the threads.
        clock: seconds that only grow.

    Raises:
        InvalidOptionError: a limit below 1.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_texts: int = 16_384,
        max_tokens: int = 8_000_000,
        report: Callable[[BatchReport], None] = lambda _: None,
        name: str = "edge-embed-scheduler",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_texts < 1 or max_tokens < 1:
            raise InvalidOptionError(f"limits must be at least 1, got {max_texts} texts and {max_tokens} tokens")
        self.backend = backend
        self.max_texts, self.max_tokens = max_texts, max_tokens
        self._report, self._clock = report, clock
        self._lock = threading.Condition()  # no future is answered and no engine is called while it is held
        self._lines: Lines[Ticket] = Lines()
        self._under_way: list[_UnderWay] = []
        self._refusal: Callable[[], EdgeEmbedError] | None = None  # why no more requests are taken
        self._last_interactive = -_LIVELY_SECONDS
        self._rate: float | None = None  # computed tokens a second, of one lane
        self._threads = [
            threading.Thread(target=self._work, name=name, daemon=True) for _ in range(backend.engine.limits.lanes)
        ]
        for thread in self._threads:
            thread.start()

    # For callers

    def submit(self, encodings: Sequence[Encoding], *, tokens: bool = False) -> Ticket:
        """Queue the texts of a request.

        Args:
            encodings: as the model will see them; none is a request that is done at once.
            tokens: whether the vectors of all tokens are asked for, instead of the pooled rows.

        Raises:
            PayloadTooLargeError: it would not fit into an empty queue.
            QueueFullError: more would wait than is allowed.
            NotReadyError: after ``close()``.
            ComputeError: a thread has died.
        """
        limits = self.backend.engine.limits
        found = Lookup(None if tokens else self.backend.cache, encodings, self.backend.width)
        order = suitable(encodings, found.missing, limits)
        interactive = sum(encodings[i].n_tokens for i in order) <= limits.n_batch
        ticket = Ticket(encodings, order, interactive, tokens, found, self, self._clock())
        n_texts = ticket.left
        if n_texts > self.max_texts or ticket.n_tokens > self.max_tokens:
            raise PayloadTooLargeError(
                f"the request has {n_texts} texts of {ticket.n_tokens} tokens, and at most {self.max_texts} texts and "
                f"{self.max_tokens} tokens may wait",
                hint="send it in parts",
            )
        with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            if n_texts:
                self._check_room(n_texts, ticket.n_tokens)
                self._lines.add(ticket)
                if interactive:
                    self._last_interactive = ticket.submitted
                self._lock.notify()
        if not n_texts:
            self._finish(ticket)
        return ticket

    @property
    def depth(self) -> Depth:
        """What waits now, what is being computed not counted."""
        with self._lock:
            depth = self._lines.depth
            return Depth(depth.requests, depth.texts, depth.tokens)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        with self._lock:
            return not (self._lines.depth.requests or self._under_way)

    def wait_seconds(self) -> float:
        """How long what waits will take, as far as can be said now."""
        with self._lock:
            return self._wait_seconds()

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests and end the threads, after what waits is done or, without ``drain``, refused."""
        with self._lock:
            self._refusal = self._refusal or _ending
            refused = set() if drain else self._everything()
            stopped = [] if drain else [one.stop for one in self._under_way]
            self._lock.notify_all()
        self._fail(refused, _ending())
        for stop in stopped:
            stop.cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # With the lock held

    def _check_room(self, n_texts: int, n_tokens: int) -> None:
        depth = self._lines.depth
        if depth.texts + n_texts <= self.max_texts and depth.tokens + n_tokens <= self.max_tokens:
            return
        raise QueueFullError(
            f"{depth.texts} texts of {depth.tokens} tokens are waiting, and {n_texts} of {n_tokens} would be more than "
            f"{self.max_texts} texts or {self.max_tokens} tokens",
            retry_after=max(_SHORTEST_WAIT, min(_LONGEST_WAIT, self._wait_seconds() / 2)),
            hint="send it again later, or in smaller parts",
        )

    def _wait_seconds(self) -> float:
        return self._lines.depth.tokens / (self._rate * len(self._threads)) if self._rate else 0.0

    def _limits(self) -> EngineLimits:
        """The engine's; what little waits is shared out among the lanes that are free."""
        limits = self.backend.engine.limits
        free = limits.lanes - len(self._under_way)
        if free < 2:
            return limits
        share = max(-(-self._lines.depth.tokens // free), WORTH_A_LANE)
        return replace(limits, n_batch=min(limits.n_batch, share))

    def _everything(self) -> set[Ticket]:
        return {*self._lines.everything(), *(ticket for one in self._under_way for ticket in one.tickets)}

    def _bulk_tokens(self) -> int:
        """Most tokens of a bulk batch: fewer while interactive requests come."""
        most = self.backend.engine.limits.n_batch
        if self._rate is None or self._clock() - self._last_interactive >= _LIVELY_SECONDS:
            return most
        return min(most, max(int(self._rate * PATIENCE_SECONDS), _SMALLEST_BATCH))

    # Without it

    def _cancel(self, ticket: Ticket) -> None:
        if ticket.future.done():
            return
        self._fail([ticket], CallCancelledError("the request was cancelled"))
        with self._lock:
            unwanted = [one.stop for one in self._under_way if all(other.future.done() for other in one.tickets)]
        for stop in unwanted:
            stop.cancel()

    def _fail(self, tickets: Collection[Ticket], error: BaseException) -> None:
        """What still waits of them is not computed, and those that are not answered yet are answered so."""
        with self._lock:
            for ticket in tickets:
                self._lines.remove(ticket)
        for ticket in tickets:
            with contextlib.suppress(InvalidStateError):
                ticket.future.set_exception(error)

    # The threads

    def _work(self) -> None:
        try:
            while (one := self._next()) is not None:
                self._run(one.work.batch, one.work.owners, one.stop)
                with self._lock:
                    self._under_way = [other for other in self._under_way if other is not one]
                del one  # while nothing is there to do, no request is held
        except BaseException as error:
            self._die(error)
            raise

    def _next(self) -> _UnderWay | None:
        """Waits for something to compute; None where nothing will come."""
        with self._lock:
            self._lock.wait_for(lambda: self._lines.depth.requests or self._refusal is not None)
            if not self._lines.depth.requests:
                return None
            work = self._lines.take(self._limits(), bulk_tokens=self._bulk_tokens())
            if self._lines.depth.requests:
                self._lock.notify()  # another lane may be free
            one = _UnderWay(work, Cancellation(), work.requests)
            self._under_way.append(one)
            now = self._clock()
            for ticket in one.tickets:
                ticket.started = now if ticket.started is None else ticket.started
            return one

    def _run(self, batch: Batch, owners: Owners, stop: Cancellation) -> None:
        """Compute a batch for those who want it. Each of them has its rows afterwards, or is answered with an error."""
        tickets = {ticket for own in owners for ticket, _ in own}
        started = self._clock()
        try:
            try:
                rows = self._rows(batch, stop, tokens=owners[0][0][0].tokens)
            except Exception as error:
                if batch.n_seqs == 1 or isinstance(error, (CallCancelledError, EngineClosedError)):
                    raise
                self._run_alone(batch, owners, stop)
                return
            seconds = self._clock() - started
            n_tokens = int((batch.starts + batch.lengths).sum())
            self._learn(batch.n_tokens / max(seconds, 1e-6))
            self._report(BatchReport(batch.n_seqs, n_tokens, batch.n_tokens, len(tickets), seconds))
            self._deliver(owners, rows)
        except Exception as error:
            self._fail(tickets, error)

    def _run_alone(self, batch: Batch, owners: Owners, stop: Cancellation) -> None:
        """After a batch that failed: each text by itself, and the requests fail whose text fails."""
        for single, own in zip(alone(batch), owners, strict=True):
            wanted = [(ticket, position) for ticket, position in own if not ticket.future.done()]
            if wanted:
                self._run(single, [wanted], stop)

    def _rows(self, batch: Batch, stop: Cancellation, *, tokens: bool) -> list[Float32Array] | Float32Array:
        engine = self.backend.engine
        if not tokens:
            return engine.decode(batch, stop)
        return np.split(engine.decode_tokens(batch, stop), np.cumsum(batch.lengths)[:-1])

    def _learn(self, rate: float) -> None:
        with self._lock:
            self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate

    def _deliver(self, owners: Owners, rows: list[Float32Array] | Float32Array) -> None:
        places: dict[Ticket, list[tuple[int, int]]] = {}
        for place, own in enumerate(owners):
            for ticket, position in own:
                places.setdefault(ticket, []).append((position, place))
        for ticket, found in places.items():
            if isinstance(rows, list):
                ticket.vectors.update((position, rows[place]) for position, place in found)
            else:
                ticket.found.keep([position for position, _ in found], rows[[place for _, place in found]])
            with self._lock:  # another lane may have texts of the same request
                ticket.left -= len(found)
                is_last = ticket.left == 0
            if is_last:
                self._finish(ticket)

    def _finish(self, ticket: Ticket) -> None:
        now = self._clock()
        started = now if ticket.started is None else ticket.started
        vectors = tuple(ticket.vectors[i] for i in range(len(ticket.encodings))) if ticket.tokens else None
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            ticket.future.set_result(Computed(ticket.found, vectors, started - ticket.submitted, now - started))

    def _die(self, error: BaseException) -> None:
        """A thread ends where it should not: nobody must wait for it."""
        died = f"a thread of the model has ended: {type(error).__name__}: {error}"

        def refusal() -> EdgeEmbedError:
            return ComputeError(died, hint="this is a bug; start the program again")

        with self._lock:
            self._refusal = refusal
            left = self._everything()
            self._under_way.clear()
            self._lock.notify_all()
        self._fail(left, refusal())


def _ending() -> EdgeEmbedError:
    return NotReadyError("the server is ending", hint="send the request again in a while")
