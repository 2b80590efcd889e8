"""The models that one process serves: known by name, loaded on first use, given up when nobody asks for them.

A loaded model has a scheduler, and with it a thread for each of its lanes. It is *held* while requests use it, and
goes when it was not asked for during its ``keep_alive``, or when another needs its memory: the one that was used
longest ago first, and those in use only when no other is left. Such a one takes no new requests until those that use it
are answered, so models that do not fit together take turns. How much memory a model takes is what the planner says.

Nothing here knows of HTTP or of an event loop: loading blocks the caller, and other callers of the same model with it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Protocol

from edge_embed import catalogue
from edge_embed.embedder import Embedder
from edge_embed.errors import (
    EdgeEmbedError,
    EngineMemoryError,
    InvalidOptionError,
    ModelError,
    ModelNotFoundError,
    NotReadyError,
    QueueFullError,
    WrongModelKindError,
)
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.provision import locate
from edge_embed.reranker import Reranker
from edge_embed.scheduler import Scheduler
from edge_embed.tokens import Vocabulary
from edge_embed.types import ModelInfo

Kind = Literal["embedding", "reranker"]
Model = Embedder | Reranker

FOREVER: Final = math.inf
"""A ``keep_alive`` that never ends."""
ROLES: Final = ("query", "document")
"""What may stand behind a model's name and a colon: the model's prompt for these."""
_SAME: Final = ("latest",)  # a suffix that other programs add to every name


@dataclass(frozen=True)
class Served:
    """A model that may be asked for.

    Attributes:
        name: what it is called here.
        target: a GGUF file or a name of ``edge-embed list``.
        aliases: other names that it answers to.
        download: whether it may be fetched where it is missing.
    """

    name: str
    target: str
    aliases: tuple[str, ...] = ()
    download: bool = False

    @cached_property
    def path(self) -> Path:
        """Its file. Raises what ``provision.locate`` raises; a long time where it has to be fetched."""
        return locate(self.target, download=self.download, show_progress_bar=True)

    @cached_property
    def info(self) -> ModelInfo:
        """What its file says of itself. Raises ModelError leaves."""
        return read_model_info(read_header(self.path))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What its ids stand for. Raises ModelError leaves."""
        return Vocabulary(read_header(self.path).metadata)

    @property
    def is_here(self) -> bool:
        """Whether its file is on this machine: whether ``path`` and ``info`` come without a download."""
        if "path" in vars(self):
            return True
        try:
            catalogue.resolve(self.target)
        except (ModelError, InvalidOptionError):
            return False
        return True

    @cached_property
    def kind(self) -> Kind:
        """What it is for: from its file or, as long as that would have to be fetched, from what is known of it."""
        known = catalogue.find(self.target.partition(":")[0]) if self.download and not self.is_here else None
        is_reranker = known.kind == "reranker" if known is not None else self.info.rerank is not None
        return "reranker" if is_reranker else "embedding"


class Opener(Protocol):
    """How a model is brought into memory."""

    def __call__(self, served: Served) -> tuple[Model, Scheduler]:
        """The model and its scheduler. Raises EdgeEmbedError leaves."""
        ...


@dataclass(eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        served: which it is.
        model: it.
        scheduler: what computes for it.
        memory_bytes: what it takes by the plan.
        keep_alive: seconds that it stays after its last use.
        load_seconds: how long loading took.
        loaded_at: Unix time.
        users: requests that hold it.
        leaving: whether another waits for its memory.
    """

    served: Served
    model: Model
    scheduler: Scheduler
    memory_bytes: int
    keep_alive: float
    load_seconds: float
    loaded_at: float = field(default_factory=time.time)
    users: int = 0
    leaving: bool = False
    last_used: float = field(default_factory=time.monotonic)

    @property
    def expires_in(self) -> float:
        """Seconds until it goes, if nobody asks for it; infinity for never."""
        return self.last_used + self.keep_alive - time.monotonic()

    def close(self) -> None:
        """End its threads, after what waits is done, and free it."""
        try:
            self.scheduler.close()
        finally:
            self.model.close()


class Registry:
    """Models by name.

    Args:
        served: the models; the first of a kind is the one that answers where a request names none.
        opener: brings a model into memory.
        memory_of: bytes that a model takes.
        memory_limit: bytes that all loaded models may take together; None for no limit but the machine's.
        keep_alive: seconds that a model stays in memory after its last use; ``FOREVER`` for always.
        patience: seconds that a model waits for those in use to make room; on a busy machine, whoever waits in their
            queues takes more than half a minute to be answered.

    Raises:
        InvalidOptionError: a name twice, no model, or a ``keep_alive`` below 0.
    """

    def __init__(
        self,
        served: Sequence[Served],
        opener: Opener,
        *,
        memory_of: Callable[[ModelInfo], int],
        memory_limit: int | None = None,
        keep_alive: float = FOREVER,
        patience: float = 120.0,
    ) -> None:
        if not served:
            raise InvalidOptionError("there is no model to serve", hint="name one: `edge-embed list` shows them")
        if not keep_alive >= 0:
            raise InvalidOptionError(f"keep_alive is {keep_alive!r}", hint="give seconds, 0 or more")
        self.served = tuple(served)
        self._names: dict[str, Served] = {}
        for model in served:
            for name in (model.name, *model.aliases):
                if self._names.setdefault(name.lower(), model) is not model:
                    raise InvalidOptionError(f"two models are called {name!r}", hint="name one otherwise: NAME=MODEL")
        self._open, self._memory_of = opener, memory_of
        self.memory_limit, self.keep_alive, self.patience = memory_limit, keep_alive, patience
        self._lock = threading.Condition()
        self._loaded: dict[Served, Loaded] = {}
        self._busy: dict[Served, int] = {}  # being loaded or freed, and the bytes that this takes meanwhile
        self._closed = False
        self.loads = self.evictions = 0

    # Names

    def find(self, name: str | None, kind: Kind) -> tuple[Served, str | None]:
        """The model of a request, and the role that its name asks for.

        Args:
            name: ``NAME``, ``NAME:query``, ``NAME:document``, ``NAME:latest``; None or empty for the first model of
                the kind.
            kind: what it must be.

        Raises:
            ModelNotFoundError: no model is called so, or there is none of the kind.
            WrongModelKindError: it is of the other kind.
            ModelError: its file cannot be read.
        """
        if not name:
            found = next((served for served in self.served if _is_of(served, kind)), None)
            if found is None:
                what = "reranker" if kind == "reranker" else "embedding model"
                raise ModelNotFoundError(
                    f"no {what} is served",
                    hint="start the server with one: `edge-embed serve MODEL...`; `edge-embed list` has names",
                )
            return found, None
        model, role = self._named(name)
        if model.kind != kind:
            raise WrongModelKindError(
                f"{name} is {'a reranker' if kind == 'embedding' else 'an embedding model'}",
                hint=f"ask it for {'scores' if kind == 'embedding' else 'embeddings'}, or name another model",
            )
        return model, role

    def lookup(self, name: str) -> Served:
        """The model of that name, of either kind. Raises ModelNotFoundError."""
        return self._named(name)[0]

    def _named(self, name: str) -> tuple[Served, str | None]:
        found = self._names.get(name.lower())
        if found is not None:
            return found, None
        base, _, suffix = name.rpartition(":")
        found = self._names.get(base.lower())
        if found is not None and suffix.lower() in (*ROLES, *_SAME):
            return found, suffix.lower() if suffix.lower() in ROLES else None
        names = ", ".join(served.name for served in self.served[:10])
        raise ModelNotFoundError(f"the model {name[:200]!r} is not served here", hint=f"served: {names}")

    # Models in memory

    def loaded(self) -> list[Loaded]:
        """Those in memory, the last used one last."""
        with self._lock:
            return sorted(self._loaded.values(), key=lambda loaded: loaded.last_used)

    @property
    def memory_bytes(self) -> int:
        """What those in memory take by plan."""
        with self._lock:
            return sum(loaded.memory_bytes for loaded in self._loaded.values())

    def try_acquire(self, served: Served) -> Loaded | None:
        """A loaded model, held until ``release``; None where it has to be loaded first. Does not block."""
        with self._lock:
            self._check_open()
            loaded = self._loaded.get(served)
            return None if loaded is None or loaded.leaving else self._hold(loaded)

    def acquire(self, served: Served) -> Loaded:
        """The model, held until ``release``; loaded where it is not in memory, others given up for it if need be.

        Raises:
            EngineMemoryError: it does not fit, even when all others are given up.
            QueueFullError: these were in use for too long.
            NotReadyError: after ``close()``.
            EdgeEmbedError leaves: it cannot be loaded.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._closed or not self._is_changing(served))
            self._check_open()
            if served in self._loaded:
                return self._hold(self._loaded[served])
            self._busy[served] = 0
        try:
            needed = self._memory_of(served.info)
            self._make_room(served, needed)
            started = time.monotonic()
            model, scheduler = self._open(served)
            loaded = Loaded(served, model, scheduler, needed, self.keep_alive, time.monotonic() - started)
            with self._lock:
                self.loads += 1
                self._loaded[served] = loaded
                self._busy[served] = 0  # not counted twice
                return self._hold(loaded)
        finally:
            self._done(served)

    def release(self, loaded: Loaded, keep_alive: float | None = None) -> None:
        """A request is done with a model.

        Args:
            loaded: the model.
            keep_alive: seconds that it stays from now on; None leaves that as it is.
        """
        with self._lock:
            loaded.users -= 1
            loaded.last_used = time.monotonic()
            if keep_alive is not None:
                loaded.keep_alive = keep_alive
            self._lock.notify_all()

    def sweep(self) -> list[Served]:
        """Give up the models whose time is over. Blocks while they are freed; which they were."""
        with self._lock:
            due = [loaded for loaded in self._loaded.values() if loaded.users == 0 and loaded.expires_in <= 0]
            for loaded in due:
                self._take_out(loaded)
        self._free(due)
        return [loaded.served for loaded in due]

    def close(self) -> None:
        """Take no more requests, finish what waits, and free every model."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._busy)
            rest = list(self._loaded.values())
            for loaded in rest:
                self._take_out(loaded)
        self._free(rest)

    # With the lock held

    def _check_open(self) -> None:
        if self._closed:
            raise NotReadyError("the server is ending", hint="send the request again in a while")

    def _is_changing(self, served: Served) -> bool:
        """Whether the model is being loaded or freed, or will be."""
        return served in self._busy or (served in self._loaded and self._loaded[served].leaving)

    def _hold(self, loaded: Loaded) -> Loaded:
        loaded.users += 1
        loaded.last_used = time.monotonic()
        return loaded

    def _take_out(self, loaded: Loaded) -> None:
        del self._loaded[loaded.served]
        self._busy[loaded.served] = loaded.memory_bytes

    def _left(self) -> int:
        """Bytes below the limit that nothing takes."""
        assert self.memory_limit is not None
        taken = sum(loaded.memory_bytes for loaded in self._loaded.values()) + sum(self._busy.values())
        return self.memory_limit - taken

    # Without it

    def _done(self, served: Served) -> None:
        with self._lock:
            del self._busy[served]
            self._lock.notify_all()

    def _free(self, several: Sequence[Loaded]) -> None:
        """All of them, even where one cannot be closed properly; that is raised afterwards."""
        with contextlib.ExitStack() as stack:
            for loaded in reversed(several):
                stack.callback(self._done, loaded.served)
                stack.callback(loaded.close)

    def _make_room(self, served: Served, needed: int) -> None:
        """Give up others until the model fits. Its bytes are set aside then."""
        deadline = time.monotonic() + self.patience
        try:
            while self.memory_limit is not None:
                with self._lock:
                    self._check_open()
                    if needed <= self._left():
                        self._busy[served] = needed
                        return
                    oldest = min(self._loaded.values(), key=lambda one: (one.users > 0, one.last_used), default=None)
                    if needed > self.memory_limit:
                        raise self._no_room(served, needed)
                    if oldest is None or oldest.users:
                        left = deadline - time.monotonic()
                        if left <= 0:
                            raise self._too_busy(served)
                        if oldest is not None:
                            oldest.leaving = True
                        self._lock.wait(left)
                        continue
                    self._take_out(oldest)
                    self.evictions += 1
                self._free([oldest])
        finally:
            with self._lock:
                for loaded in self._loaded.values():
                    loaded.leaving = False  # whoever else waits will say so again
                self._lock.notify_all()

    def _too_busy(self, served: Served) -> QueueFullError:
        return QueueFullError(
            f"{served.name} has waited {self.patience:g} s for models that are in use to make room",
            retry_after=max(1.0, self.patience / 10),
            hint="send it again later; --memory-limit is what all models may take together",
        )

    def _no_room(self, served: Served, needed: int) -> EngineMemoryError:
        assert self.memory_limit is not None
        return EngineMemoryError(
            f"{served.name} takes {needed / 1e9:.2f} GB, and the limit of all is {self.memory_limit / 1e9:.2f} GB",
            hint="raise --memory-limit, or choose a smaller model or type",
        )


def _is_of(served: Served, kind: Kind) -> bool:
    """Whether a model is of a kind; one that is not here, or damaged, is of none."""
    try:
        return served.kind == kind
    except EdgeEmbedError:
        return False
