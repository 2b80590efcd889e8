"""One thread that keeps one model busy with the texts of many requests.

What waits is kept as encodings, so texts of different requests share the model's batches whatever each request wants
of its vectors. Nothing waits for company: a batch is made of what is there when the model is free.

Two lines wait. A request of few tokens is *interactive*; one of many is *bulk*, and its texts go a batch at a time,
taking turns with those of other bulk requests. Interactive ones go first, up to a share of the model's tokens
(``INTERACTIVE_SHARE``) while bulk ones wait, so neither starves. While interactive requests come, bulk batches are
kept so small that nobody waits for one longer than about ``PATIENCE_SECONDS``.

The queue is bounded. A request whose client went away leaves it at once; the batch under way is stopped when nobody
is left who wants it. A batch that the engine refuses is computed text by text, so that only the guilty request fails.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from edge_embed.batching import alone, pack
from edge_embed.cache import Lookup
from edge_embed.cancellation import Cancellation
from edge_embed.errors import CallCancelledError, EngineClosedError, InvalidOptionError, NotReadyError, QueueFullError
from edge_embed.running import Backend
from edge_embed.types import Batch, Encoding, Float32Array

INTERACTIVE_SHARE: Final = 0.75
"""Of the model's tokens, what interactive requests may have while bulk ones wait."""
PATIENCE_SECONDS: Final = 0.25
"""How long a bulk batch may take while interactive requests come."""
_LIVELY_SECONDS: Final = 10.0  # after the last interactive request they are no longer expected
_SMALLEST_BATCH: Final = 64  # tokens; the weights are read once a batch, however small it is
_MOST_SHARED: Final = 8  # a window holds at most so many times the batch, where beginnings are shared
_SHORTEST_WAIT: Final = 1.0  # seconds that a refused client is told to wait, at least


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one call of the engine did.

    Attributes:
        n_texts: sequences in it.
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


@dataclass(slots=True)
class Depth:
    """What waits."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0


@dataclass(eq=False, slots=True)
class Ticket:
    """A request on its way.

    Attributes:
        future: its rows; a ``CallCancelledError`` after ``cancel()``.
        interactive: the line that it waits in.
    """

    future: Future[Computed]
    interactive: bool
    encodings: Sequence[Encoding]
    found: Lookup
    waiting: list[int]
    tokens: dict[int, Float32Array] | None
    scheduler: Scheduler | None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    left: int = 0

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self.scheduler is not None:
            self.scheduler._cancel(self)

    @property
    def n_tokens(self) -> int:
        """Tokens that wait."""
        return sum(self.encodings[i].n_tokens for i in self.waiting)


class Scheduler:
    """Computes rows of encodings on a thread of its own.

    Args:
        backend: the model; the caller closes it, after this.
        max_texts: most texts that may wait.
        max_tokens: most tokens that may wait.
        report: told of each batch, on this thread; must be quick.
        name: of the thread.

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
    ) -> None:
        if max_texts < 1 or max_tokens < 1:
            raise InvalidOptionError(f"limits must be at least 1, got {max_texts} texts and {max_tokens} tokens")
        self.backend = backend
        self.max_texts, self.max_tokens = max_texts, max_tokens
        self._report = report
        self._lock = threading.Condition()
        self._lines: dict[bool, deque[Ticket]] = {True: deque(), False: deque()}  # interactive, bulk
        self._depth = Depth()
        self._running: dict[Ticket, int] = {}  # texts of the batch under way
        self._stop = Cancellation()
        self._closing = self._dropped = False
        self._last_interactive = -_LIVELY_SECONDS
        self._ahead = 0.0  # tokens that interactive requests had since the last bulk batch
        self._rate: float | None = None  # tokens a second
        self._sharing = 1.0  # tokens of sequences per token computed
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    # For callers

    def submit(self, encodings: Sequence[Encoding], *, tokens: bool = False) -> Ticket:
        """Queue the texts of a request.

        Args:
            encodings: as the model will see them; none is a request that is done at once.
            tokens: whether the vectors of all tokens are asked for, instead of the pooled rows.

        Raises:
            QueueFullError: more would wait than is allowed.
            NotReadyError: after ``close()``.
        """
        found = Lookup(None if tokens else self.backend.cache, encodings, self.backend.width)
        waiting = self._ordered(encodings, found.missing)
        n_tokens = sum(encodings[i].n_tokens for i in waiting)
        interactive = n_tokens <= self.backend.engine.limits.n_batch
        ticket = Ticket(Future(), interactive, encodings, found, waiting, {} if tokens else None, self)
        ticket.left = len(waiting)
        if not waiting:
            self._finish(ticket)
            return ticket
        with self._lock:
            if self._closing:
                raise NotReadyError("the server is ending", hint="send the request again in a while")
            self._check_room(len(waiting), n_tokens)
            self._count(1, len(waiting), n_tokens)
            self._lines[interactive].append(ticket)
            if interactive:
                self._last_interactive = time.monotonic()
            self._lock.notify_all()
        return ticket

    @property
    def depth(self) -> Depth:
        """What waits now, what is being computed not counted."""
        with self._lock:
            return Depth(self._depth.requests, self._depth.texts, self._depth.tokens)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        with self._lock:
            return not (self._depth.requests or self._running)

    def wait_seconds(self) -> float:
        """How long what waits will take, as far as can be said now."""
        with self._lock:
            return self._wait_seconds()

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests and end the thread, after what waits is done or, without ``drain``, refused."""
        with self._lock:
            self._closing = True
            if not drain:
                self._dropped = True
                for ticket in [*self._lines[True], *self._lines[False]]:
                    self._remove(ticket)
                    _fail(ticket, NotReadyError("the server is ending", hint="send the request again in a while"))
                self._stop.cancel()
            self._lock.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # Bookkeeping, with the lock held

    def _check_room(self, n_texts: int, n_tokens: int) -> None:
        if self._depth.texts + n_texts <= self.max_texts and self._depth.tokens + n_tokens <= self.max_tokens:
            return
        raise QueueFullError(
            f"{self._depth.texts} texts of {self._depth.tokens} tokens are waiting, and {n_texts} of {n_tokens} would "
            f"be more than {self.max_texts} texts or {self.max_tokens} tokens",
            retry_after=max(_SHORTEST_WAIT, min(60.0, self._wait_seconds() / 2)),
            hint="send it again later, or in smaller parts",
        )

    def _wait_seconds(self) -> float:
        return self._depth.tokens / self._rate if self._rate else 0.0

    def _count(self, requests: int, texts: int, tokens: int) -> None:
        self._depth.requests += requests
        self._depth.texts += texts
        self._depth.tokens += tokens

    def _remove(self, ticket: Ticket) -> None:
        """Take what still waits of a request out of its line."""
        with contextlib.suppress(ValueError):
            self._lines[ticket.interactive].remove(ticket)
            self._count(-1, -len(ticket.waiting), -ticket.n_tokens)
            ticket.waiting = []

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            self._remove(ticket)
            _fail(ticket, CallCancelledError("the request was cancelled"))
            if self._running and all(other.future.done() for other in self._running):
                self._stop.cancel()
            self._lock.notify_all()

    def _ordered(self, encodings: Sequence[Encoding], positions: list[int]) -> list[int]:
        """Texts in the order in which neighbours suit each other in a batch, as ``batching.pack`` puts them."""
        if self.backend.engine.limits.shares_prefixes:
            return sorted(positions, key=lambda i: encodings[i].token_ids.astype(">u4").tobytes())
        return sorted(positions, key=lambda i: -encodings[i].n_tokens)

    def _window(self) -> tuple[list[tuple[Ticket, int]], int]:
        """Texts that are to be computed next, and how many tokens their batches may have."""
        limits = self.backend.engine.limits
        waiting, bulk = self._lines[True], self._lines[False]
        turn_of_bulk = not waiting or (bulk and self._ahead >= _ahead_at_most(limits.n_batch))
        n_batch = limits.n_batch
        if turn_of_bulk and time.monotonic() - self._last_interactive < _LIVELY_SECONDS and self._rate:
            n_batch = max(min(n_batch, int(self._rate * PATIENCE_SECONDS)), min(n_batch, _SMALLEST_BATCH))
        most = int(n_batch * min(self._sharing, _MOST_SHARED)) if limits.shares_prefixes else n_batch
        line = bulk if turn_of_bulk else waiting
        chosen = _in_turns(line, most, 4 * limits.n_seq_max, whole=not turn_of_bulk)
        if turn_of_bulk:
            line.rotate(-1)  # the next turn begins with another
        return chosen, n_batch

    def _take(self, members: list[tuple[Ticket, int]]) -> None:
        """Texts leave the queue: they are computed now."""
        now = time.monotonic()
        taken: dict[Ticket, set[int]] = {}
        for ticket, position in members:
            taken.setdefault(ticket, set()).add(position)
        for ticket, positions in taken.items():
            n_tokens = sum(ticket.encodings[i].n_tokens for i in positions)
            ticket.waiting = [i for i in ticket.waiting if i not in positions]
            ticket.started = ticket.started or now
            self._count(0, -len(positions), -n_tokens)
            if ticket.interactive:
                self._ahead += n_tokens
            else:
                self._ahead = 0.0
            if not ticket.waiting:
                self._lines[ticket.interactive].remove(ticket)
                self._count(-1, 0, 0)
        if not self._lines[False]:
            self._ahead = 0.0
        self._running = {ticket: len(positions) for ticket, positions in taken.items()}
        self._stop = Cancellation()
        if self._dropped:
            self._stop.cancel()

    # The thread

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._depth.requests or self._closing)
                if not self._depth.requests:
                    return
                window, n_batch = self._window()
            self._run_window(window, n_batch)

    def _run_window(self, window: list[tuple[Ticket, int]], n_batch: int) -> None:
        limits = self.backend.engine.limits
        tokens = window[0][0].tokens is not None
        bulk = not window[0][0].interactive
        encodings = [ticket.encodings[position] for ticket, position in window]
        batches = pack(
            encodings, n_batch=n_batch, n_seq_max=limits.n_seq_max, share=limits.shares_prefixes and not tokens
        )
        for turn, batch in enumerate(batches):
            members = [window[i] for i in batch.indices]
            with self._lock:
                gone = {ticket for ticket, _ in members if ticket.future.done()}
                for ticket in gone:
                    self._remove(ticket)
                if gone or (bulk and turn and self._lines[True]):
                    return  # what was not computed still waits, and goes into another batch
                self._take(members)
            try:
                self._compute(batch, members, tokens=tokens)
            finally:
                with self._lock:
                    self._running = {}

    def _compute(self, batch: Batch, members: list[tuple[Ticket, int]], *, tokens: bool) -> None:
        started = time.monotonic()
        try:
            rows = self._rows(batch, tokens=tokens)
        except CallCancelledError:
            return  # everybody in it went away, or the server drops what is left
        except Exception as error:
            self._compute_alone(batch, members, error, tokens=tokens)
            return
        seconds = time.monotonic() - started
        n_tokens = int((batch.starts + batch.lengths).sum())
        self._learn(n_tokens, batch.n_tokens, seconds)
        self._report(BatchReport(batch.n_seqs, n_tokens, batch.n_tokens, len(self._running), seconds))
        self._deliver(members, rows)

    def _rows(self, batch: Batch, *, tokens: bool) -> list[Float32Array] | Float32Array:
        engine = self.backend.engine
        if not tokens:
            return engine.decode(batch, self._stop)
        return np.split(engine.decode_tokens(batch, self._stop), np.cumsum(batch.lengths)[:-1])

    def _compute_alone(
        self, batch: Batch, members: list[tuple[Ticket, int]], error: Exception, *, tokens: bool
    ) -> None:
        """After a batch that failed: each text by itself, and the request fails whose text fails."""
        for single, member in zip(alone(batch), members, strict=True):
            if member[0].future.done():
                continue
            try:
                if batch.n_seqs == 1 or isinstance(error, EngineClosedError):
                    raise error
                self._deliver([member], self._rows(single, tokens=tokens))
            except Exception as again:
                with self._lock:
                    self._remove(member[0])
                _fail(member[0], again)

    def _learn(self, n_tokens: int, n_computed: int, seconds: float) -> None:
        """Moving averages: tokens a second, and how many tokens of sequences a computed one stands for."""
        with self._lock:
            rate = n_computed / max(seconds, 1e-6)
            self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate
            self._sharing = 0.5 * self._sharing + 0.5 * n_tokens / max(n_computed, 1)

    def _deliver(self, members: list[tuple[Ticket, int]], rows: list[Float32Array] | Float32Array) -> None:
        places: dict[Ticket, list[int]] = {}
        for place, (ticket, _) in enumerate(members):
            places.setdefault(ticket, []).append(place)
        for ticket, own in places.items():
            positions = [members[place][1] for place in own]
            if ticket.tokens is None:
                assert not isinstance(rows, list)
                ticket.found.keep(positions, rows[own])
            else:
                ticket.tokens.update((position, rows[place]) for position, place in zip(positions, own, strict=True))
            ticket.left -= len(own)
            if ticket.left == 0:
                self._finish(ticket)

    @staticmethod
    def _finish(ticket: Ticket) -> None:
        now = time.monotonic()
        started = ticket.started or now
        tokens = None
        if ticket.tokens is not None:
            tokens = tuple(ticket.tokens[i] for i in range(len(ticket.encodings)))
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            ticket.future.set_result(Computed(ticket.found, tokens, started - ticket.submitted, now - started))


def _in_turns(line: deque[Ticket], most: int, most_texts: int, *, whole: bool) -> list[tuple[Ticket, int]]:
    """Texts of the requests in a line, at most so many tokens but at least one text.

    Args:
        line: not empty.
        most: tokens.
        most_texts: texts.
        whole: the requests one after another; otherwise in equal shares, and what is left over again so.
    """
    kind = line[0].tokens is None  # vectors of tokens are computed in batches of their own
    turns = deque((ticket, iter(ticket.waiting)) for ticket in line if (ticket.tokens is None) == kind)
    share = most if whole else most // len(turns)
    chosen: list[tuple[Ticket, int]] = []
    n_tokens = 0
    while turns:
        ticket, positions = turns.popleft()
        own = 0
        for position in positions:
            n = ticket.encodings[position].n_tokens
            if chosen and (n_tokens + n > most or len(chosen) == most_texts):
                break
            chosen.append((ticket, position))
            own += n
            n_tokens += n
            if own >= share:
                turns.append((ticket, positions))
                break
    return chosen


def _ahead_at_most(n_batch: int) -> float:
    """Tokens that interactive requests may have before a bulk batch of ``n_batch``."""
    return n_batch * INTERACTIVE_SHARE / (1 - INTERACTIVE_SHARE)


def _fail(ticket: Ticket, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        ticket.future.set_exception(error)
