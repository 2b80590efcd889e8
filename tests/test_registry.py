"""Models by name, in memory and out of it. Nothing is loaded: an opener hands out FakeEngines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_embed.errors import (
    EngineMemoryError,
    InvalidOptionError,
    ModelFileError,
    ModelNotFoundError,
    NotReadyError,
    QueueFullError,
    WrongModelKindError,
)
from edge_embed.registry import FOREVER, Loaded, Model, Registry, Served
from edge_embed.scheduler import Scheduler
from edge_embed.testing import fake_embedder, fake_reranker

PATIENCE = 30.0  # seconds after which a test that hangs has failed


def served(name: str, size: int = 1, *aliases: str, reranker: bool = False) -> Served:
    """A model whose file need not exist."""
    one = Served(name, f"{name}.gguf", aliases)
    info = (fake_reranker() if reranker else fake_embedder()).info
    vars(one).update(path=Path(one.target), info=replace(info, name=name, size_bytes=size))
    return one


class Opener:
    """Opens fake models, and remembers what became of them."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.may_open = threading.Event()
        self.may_open.set()
        self.opening = threading.Semaphore(0)
        self.failure: Exception | None = None

    def __call__(self, one: Served) -> tuple[Model, Scheduler]:
        self.opened.append(one.name)
        self.opening.release()
        assert self.may_open.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        model: Model = fake_reranker() if one.kind == "reranker" else fake_embedder()
        close = model.close

        def closing() -> None:
            close()
            self.closed.append(one.name)

        model.close = closing  # type: ignore[method-assign]
        return model, Scheduler(model.backend)


@contextmanager
def registry_of(*models: Served, opener: Opener | None = None, **options: Any) -> Iterator[tuple[Registry, Opener]]:
    opener = opener or Opener()
    registry = Registry(models, opener, memory_of=lambda info: info.size_bytes, **options)
    try:
        yield registry, opener
    finally:
        opener.may_open.set()
        registry.close()


def use(registry: Registry, one: Served, keep_alive: float | None = None) -> Loaded:
    loaded = registry.acquire(one)
    registry.release(loaded, keep_alive)
    return loaded


@contextmanager
def on_threads(n: int = 8) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(n) as pool:
        yield pool


def wait_for(condition: Callable[[], bool]) -> None:
    """Until something is so that another thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never was so"
        time.sleep(0.001)


# Names


def test_a_name_an_alias_and_what_may_stand_behind_it() -> None:
    one, other = served("MiniLM", 1, "sentence/minilm"), served("Rank", reranker=True)
    with registry_of(one, other) as (registry, _):
        for name in ("MiniLM", "minilm", "SENTENCE/MiniLM", "minilm:latest"):
            assert registry.find(name, "embedding") == (one, None)
        for role in ("query", "document"):
            assert registry.find(f"sentence/minilm:{role.upper()}", "embedding") == (one, role)
        assert registry.lookup("rank") is other
        for name in ("minilm:other", "other", "other:query", ":query", "x" * 1000):
            with pytest.raises(ModelNotFoundError, match="not served here") as said:
                registry.find(name, "embedding")
            assert "MiniLM, Rank" in said.value.hint
            assert len(said.value.message) < 300


def test_without_a_name_the_first_of_its_kind_answers() -> None:
    models = [served("rank-1", reranker=True), served("embed-1"), served("embed-2"), served("rank-2", reranker=True)]
    with registry_of(*models) as (registry, _):
        assert registry.find(None, "embedding") == (models[1], None)
        assert registry.find("", "reranker") == (models[0], None)
    with registry_of(models[1]) as (registry, _), pytest.raises(ModelNotFoundError, match="no reranker"):
        registry.find(None, "reranker")


def test_a_model_of_the_other_kind_is_named_as_what_it_is() -> None:
    with registry_of(served("embed"), served("rank", reranker=True)) as (registry, _):
        with pytest.raises(WrongModelKindError, match="embed is an embedding model"):
            registry.find("embed", "reranker")
        with pytest.raises(WrongModelKindError, match="rank is a reranker"):
            registry.find("rank", "embedding")


def test_a_model_that_is_not_here_does_not_stand_in_the_way_of_others(tmp_path: Path) -> None:
    missing, here = Served("missing", str(tmp_path / "missing.gguf")), served("here")
    with registry_of(missing, here) as (registry, _):
        assert registry.find(None, "embedding") == (here, None)
        with pytest.raises(ModelNotFoundError, match=r"missing\.gguf"):
            registry.find("missing", "embedding")


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        ([], {}, "no model to serve"),
        ([served("a"), served("b", 1, "A")], {}, "two models are called 'A'"),
        ([served("a")], {"keep_alive": -1.0}, "keep_alive"),
        ([served("a")], {"keep_alive": float("nan")}, "keep_alive"),
    ],
)
def test_what_cannot_be_served_is_refused(models: list[Served], options: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidOptionError, match=said):
        Registry(models, Opener(), memory_of=lambda _: 1, **options)


# Into memory


def test_a_model_is_loaded_on_first_use_and_then_there() -> None:
    one = served("a", 7)
    with registry_of(one) as (registry, opener):
        assert registry.try_acquire(one) is None
        loaded = registry.acquire(one)
        assert registry.try_acquire(one) is loaded is registry.acquire(one)
        assert (loaded.users, loaded.memory_bytes, registry.memory_bytes, registry.loads) == (3, 7, 7, 1)
        for _ in range(3):
            registry.release(loaded)
        assert loaded.users == 0
    assert (opener.opened, opener.closed) == (["a"], ["a"])


def test_threads_that_want_the_same_model_load_it_once() -> None:
    one = served("a")
    with registry_of(one) as (registry, opener), on_threads() as pool:
        opener.may_open.clear()
        waiting = [pool.submit(registry.acquire, one) for _ in range(8)]
        assert opener.opening.acquire(timeout=PATIENCE)
        assert registry.try_acquire(one) is None, "it is not here yet, and asking does not wait for it"
        opener.may_open.set()
        found = {future.result(PATIENCE) for future in waiting}
        assert len(found) == 1
        assert found.pop().users == 8
    assert opener.opened == ["a"]


def test_two_models_are_loaded_at_the_same_time() -> None:
    one, other = served("a"), served("b")
    with registry_of(one, other) as (registry, opener), on_threads() as pool:
        opener.may_open.clear()
        waiting = [pool.submit(registry.acquire, model) for model in (one, other)]
        for _ in range(2):
            assert opener.opening.acquire(timeout=PATIENCE)
        opener.may_open.set()
        assert [future.result(PATIENCE).served for future in waiting] == [one, other]


def test_a_model_that_cannot_be_loaded_may_be_tried_again() -> None:
    one = served("a", 5)
    with registry_of(one, memory_limit=5) as (registry, opener):
        opener.failure = ModelFileError("damaged")
        for _ in range(2):
            with pytest.raises(ModelFileError, match="damaged"):
                registry.acquire(one)
        opener.failure = None
        assert registry.acquire(one).users == 1
        assert (opener.opened, registry.loads) == (["a"] * 3, 1)


def test_a_failure_is_not_shared_by_those_who_wait() -> None:
    """They try again themselves: what was wrong may be over."""
    one = served("a")
    with registry_of(one) as (registry, opener), on_threads() as pool:
        opener.may_open.clear()
        opener.failure = ModelFileError("damaged")
        waiting = [pool.submit(registry.acquire, one) for _ in range(2)]
        assert opener.opening.acquire(timeout=PATIENCE)
        opener.may_open.set()
        assert [type(future.exception(PATIENCE)) for future in waiting] == [ModelFileError] * 2
    assert opener.opened == ["a", "a"]


def test_embedder_and_reranker_answer_side_by_side() -> None:
    one, other = served("embed"), served("rank", reranker=True)
    with registry_of(one, other) as (registry, _):
        embed, rank = registry.acquire(one), registry.acquire(other)
        assert [loaded.served.name for loaded in registry.loaded()] == ["embed", "rank"]
        assert embed.scheduler is not rank.scheduler
        assert embed.model.info.rerank is None
        assert rank.model.info.rerank is not None
        registry.acquire(one)
        assert [loaded.served.name for loaded in registry.loaded()] == ["rank", "embed"], "the last used one last"


# Out of memory


def test_a_model_goes_when_its_time_is_over_and_nobody_uses_it() -> None:
    kept, short, used = served("kept"), served("short"), served("used")
    with registry_of(kept, short, used, keep_alive=FOREVER) as (registry, opener):
        use(registry, kept)
        use(registry, short, keep_alive=0.0)
        loaded = registry.acquire(used)
        registry.acquire(used)
        registry.release(loaded, 0.0)
        assert registry.sweep() == [short]
        assert opener.closed == ["short"]
        assert registry.try_acquire(short) is None
        registry.release(loaded)
        assert registry.sweep() == [used], "as it was told while it was in use"
        use(registry, short)
        assert registry.sweep() == [], "loaded again, it stays as long as any"
    assert opener.opened == ["kept", "short", "used", "short"]


def test_one_that_cannot_be_closed_does_not_keep_others_in_memory() -> None:
    models = [served(name) for name in ("a", "b", "c")]
    with registry_of(*models, keep_alive=0.0) as (registry, opener):
        for one in models:
            loaded = use(registry, one)
            if one is models[1]:

                def broken() -> None:
                    raise OSError("broken")

                loaded.model.close = broken  # type: ignore[method-assign]
        with pytest.raises(OSError, match="broken"):
            registry.sweep()
        assert registry.loaded() == []
        assert sorted(opener.closed) == ["a", "c"]
        assert registry.acquire(models[1]).users == 1


def test_the_one_used_longest_ago_makes_room() -> None:
    a, b, c = served("a", 4), served("b", 4), served("c", 4)
    with registry_of(a, b, c, memory_limit=8) as (registry, opener):
        use(registry, a)
        use(registry, b)
        use(registry, a)
        use(registry, c)
        assert [loaded.served for loaded in registry.loaded()] == [a, c]
        assert (opener.closed, registry.evictions, registry.memory_bytes) == (["b"], 1, 8)


def test_several_make_room_for_a_large_one() -> None:
    a, b, large = served("a", 3), served("b", 3), served("large", 8)
    with registry_of(a, b, large, memory_limit=8) as (registry, opener):
        use(registry, a)
        use(registry, b)
        use(registry, large)
        assert opener.closed == ["a", "b"]


def test_what_never_fits_gives_up_nothing_for_it() -> None:
    small, large = served("small", 3), served("large", 9)
    with registry_of(small, large, memory_limit=8) as (registry, opener):
        use(registry, small)
        with pytest.raises(EngineMemoryError, match=r"large takes 0\.00 GB"):
            registry.acquire(large)
        assert opener.closed == []


def test_a_model_in_use_is_not_taken_away() -> None:
    a, b = served("a", 8), served("b", 8)
    with registry_of(a, b, memory_limit=8, patience=0.02) as (registry, opener):
        loaded = registry.acquire(a)
        with pytest.raises(QueueFullError, match=r"b has waited 0\.02 s for models that are in use") as refused:
            registry.acquire(b)
        assert refused.value.retry_after >= 1
        assert registry.try_acquire(a) is loaded, "it answers again as if nothing had been"
        registry.release(loaded)
        registry.release(loaded)
        assert registry.acquire(b).users == 1
        assert opener.closed == ["a"]


def test_models_that_do_not_fit_together_take_turns() -> None:
    """The one in use takes no new requests while another waits for its memory, or the other would wait for ever."""
    a, b = served("a", 8), served("b", 8)
    with registry_of(a, b, memory_limit=8, patience=PATIENCE) as (registry, opener), on_threads() as pool:
        first = registry.acquire(a)
        waiting = pool.submit(registry.acquire, b)
        wait_for(lambda: first.leaving)
        assert registry.try_acquire(a) is None
        again = pool.submit(registry.acquire, a)
        assert not waiting.done()
        registry.release(first)
        other = waiting.result(PATIENCE)
        wait_for(lambda: other.leaving)
        assert not again.done()
        registry.release(other)
        assert again.result(PATIENCE).served is a
        assert (opener.opened, opener.closed) == (["a", "b", "a"], ["a", "b"])


def test_two_that_are_loaded_at_once_do_not_both_take_the_last_room() -> None:
    a, b = served("a", 5), served("b", 5)
    with registry_of(a, b, memory_limit=8, patience=0.0) as (registry, opener), on_threads() as pool:
        opener.may_open.clear()
        first = pool.submit(registry.acquire, a)
        assert opener.opening.acquire(timeout=PATIENCE)
        with pytest.raises(QueueFullError):
            registry.acquire(b)
        opener.may_open.set()
        assert first.result(PATIENCE).served is a
    assert opener.opened == ["a"]


# The end


def test_closing_during_a_load_frees_what_was_loaded() -> None:
    one = served("a")
    opener = Opener()
    registry = Registry([one], opener, memory_of=lambda _: 1)
    opener.may_open.clear()
    with on_threads() as pool:
        loading, waiting = pool.submit(registry.acquire, one), pool.submit(registry.acquire, one)
        assert opener.opening.acquire(timeout=PATIENCE)
        closing = pool.submit(registry.close)
        assert isinstance(waiting.exception(PATIENCE), NotReadyError), "it does not wait for the load"
        assert not closing.done()
        opener.may_open.set()
        closing.result(PATIENCE)
        with pytest.raises(NotReadyError):
            loading.result(PATIENCE).scheduler.submit([])
    assert opener.closed == ["a"]
    with pytest.raises(NotReadyError):
        registry.acquire(one)
    with pytest.raises(NotReadyError):
        registry.try_acquire(one)
    registry.close()


def test_closing_while_one_waits_for_room() -> None:
    a, b = served("a", 8), served("b", 8)
    with registry_of(a, b, memory_limit=8, patience=PATIENCE) as (registry, opener), on_threads() as pool:
        held = registry.acquire(a)
        waiting = pool.submit(registry.acquire, b)
        wait_for(lambda: held.leaving)
        registry.close()
        assert isinstance(waiting.exception(PATIENCE), NotReadyError)
        assert opener.closed == ["a"]
