"""Which texts are computed next, of all that wait for one model. Pure bookkeeping: no threads, no clock, no model.

Two lines wait. A request of few tokens is *interactive*; one of many is *bulk*, and its texts go a batch at a time, in
equal shares with those of other bulk requests. Interactive requests go first, in the order in which they came, up to a
share of the computed tokens (``INTERACTIVE_SHARE``) while bulk ones wait, so neither line starves.

The first request of the line whose turn it is always has a text in the batch, so nobody is passed over for ever. Texts
that the model would see alike are computed once for all who wait for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Generic, TypeVar

from edge_embed.batching import pack
from edge_embed.types import Batch, Encoding, EngineLimits

INTERACTIVE_SHARE: Final = 0.75
"""Of the computed tokens, what interactive requests may have while bulk ones wait."""
_LOOKED_AT: Final = 8  # times a batch's tokens: where beginnings are shared, more texts go into it than it has tokens


@dataclass(slots=True)
class Depth:
    """How much waits."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0


@dataclass(eq=False, slots=True)
class Request:
    """A request with texts that wait.

    Attributes:
        encodings: all its texts as the model will see them.
        order: positions of those that are to be computed, as ``suitable`` has them; what is taken leaves it.
        interactive: the line that it waits in.
        tokens: whether the vectors of its tokens are asked for; these are computed in batches of their own.
        n_tokens: tokens of ``order``.
    """

    encodings: Sequence[Encoding]
    order: dict[int, None]
    interactive: bool
    tokens: bool
    n_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_tokens = sum(self.encodings[i].n_tokens for i in self.order)


R = TypeVar("R", bound=Request)


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[R]):
    """What is computed at once.

    Attributes:
        batch: for the engine.
        owners: for each sequence of the batch the requests that want it, and which of their texts it is.
        interactive: the line that it came from.
    """

    batch: Batch
    owners: list[list[tuple[R, int]]]
    interactive: bool

    @property
    def requests(self) -> dict[R, None]:
        """Those that have texts in it."""
        return dict.fromkeys(request for request, _ in chain.from_iterable(self.owners))


class Lines(Generic[R]):
    """The two lines.

    Attributes:
        depth: what waits; to be read, not written.
    """

    def __init__(self) -> None:
        self.depth = Depth()
        self._interactive: dict[R, None] = {}  # in the order in which they came
        self._bulk: dict[R, None] = {}  # the one whose turn it is first
        self._owed = 0.0  # tokens that bulk requests may have before interactive ones
        self._spread = (
            1.0  # tokens of the texts of a batch for each that was computed: more where beginnings are shared
        )

    def add(self, request: R) -> None:
        """The last one in its line. It must have something to compute."""
        self._line(request)[request] = None
        self._count(1, len(request.order), request.n_tokens)

    def remove(self, request: R) -> None:
        """What still waits of it is not computed; nothing happens where nothing waits."""
        if request in self._line(request):
            del self._line(request)[request]
            self._count(-1, -len(request.order), -request.n_tokens)
            request.order, request.n_tokens = {}, 0

    def everything(self) -> list[R]:
        """All requests that wait."""
        return [*self._interactive, *self._bulk]

    def take(self, limits: EngineLimits, *, bulk_tokens: int) -> Work[R]:
        """The next batch; its texts wait no more. Something must be waiting.

        Args:
            limits: the engine's.
            bulk_tokens: most tokens of a batch of bulk requests; one text may have more.
        """
        bulk_tokens = min(bulk_tokens, limits.n_batch)
        kept_waiting = bool(self._interactive and self._bulk)
        interactive = bool(self._interactive) and not (self._bulk and self._owed >= bulk_tokens)
        n_batch = limits.n_batch if interactive else bulk_tokens
        line = self._interactive if interactive else self._bulk
        work = self._batch(line, limits, n_batch, interactive=interactive)
        for request, position in chain.from_iterable(work.owners):
            self._leave(request, position)
        if interactive:
            self._owed += work.batch.n_tokens * (1 - INTERACTIVE_SHARE) / INTERACTIVE_SHARE
        else:
            left = self._owed - work.batch.n_tokens
            self._owed = left if kept_waiting else max(left, min(self._owed, 0.0))
            if line:  # the next turn begins with another
                first = next(iter(line))
                del line[first]
                line[first] = None
        if not self._bulk:
            self._owed = 0.0
        return work

    def _batch(self, line: dict[R, None], limits: EngineLimits, n_batch: int, *, interactive: bool) -> Work[R]:
        tokens = next(iter(line)).tokens
        requests = [request for request in line if request.tokens == tokens]
        shares = limits.shares_prefixes and not tokens
        most = _LOOKED_AT * n_batch if shares else n_batch
        encodings, owners = _window(requests, most, limits.n_seq_max, in_turns=not interactive)
        batches = pack(encodings, n_batch=n_batch, n_seq_max=limits.n_seq_max, share=shares)
        batch = next(batch for batch in batches if 0 in batch.indices)  # it has the text whose turn it is
        return Work(batch, [owners[i] for i in batch.indices], interactive)

    def _leave(self, request: R, position: int) -> None:
        n_tokens = request.encodings[position].n_tokens
        del request.order[position]
        request.n_tokens -= n_tokens
        self._count(0, -1, -n_tokens)
        if not request.order:
            del self._line(request)[request]
            self._count(-1, 0, 0)

    def _line(self, request: R) -> dict[R, None]:
        return self._interactive if request.interactive else self._bulk

    def _count(self, requests: int, texts: int, tokens: int) -> None:
        self.depth.requests += requests
        self.depth.texts += texts
        self.depth.tokens += tokens


def suitable(encodings: Sequence[Encoding], positions: Sequence[int], limits: EngineLimits) -> dict[int, None]:
    """Positions in the order in which neighbours suit each other in a batch, as ``batching.pack`` puts them."""
    if limits.shares_prefixes:
        found = sorted(positions, key=lambda i: encodings[i].token_ids.astype(">u4").tobytes())
    else:
        found = sorted(positions, key=lambda i: -encodings[i].n_tokens)
    return dict.fromkeys(found)


def _window(
    requests: Sequence[R], most: int, most_texts: int, *, in_turns: bool
) -> tuple[list[Encoding], list[list[tuple[R, int]]]]:
    """Different texts of requests, and whose they are; the first one is the first request's.

    Args:
        requests: at least one.
        most: tokens of the texts, unless the first has more.
        most_texts: how many.
        in_turns: in equal shares, and what is left over again so; otherwise one request after another.
    """
    share = most // len(requests) if in_turns else most
    turns = deque((request, iter(request.order)) for request in requests)
    places: dict[tuple[int, bytes], int] = {}
    encodings: list[Encoding] = []
    owners: list[list[tuple[R, int]]] = []
    n_tokens = 0
    while turns:
        request, positions = turns.popleft()
        own = 0
        for position in positions:
            encoding = request.encodings[position]
            place = places.setdefault((encoding.n_first, encoding.token_ids.tobytes()), len(encodings))
            if place < len(encodings):
                owners[place].append((request, position))
                continue
            if encodings and (n_tokens + encoding.n_tokens > most or len(encodings) == most_texts):
                places.popitem()  # it waits, and so does what comes behind it
                break
            encodings.append(encoding)
            owners.append([(request, position)])
            n_tokens += encoding.n_tokens
            own += encoding.n_tokens
            if own >= share:
                turns.append((request, positions))
                break
    return encodings, owners
