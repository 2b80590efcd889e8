"""Work whose client goes away, told of it by the server's own connections and by those of another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edge_embed.server.bodies import ClientLeftError
from edge_embed.server.leaving import EXTENSION, WhileConnected


class Client:
    """A client that leaves when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.watching: set[Callable[[], None]] = set()

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def watch(self, left: Callable[[], None]) -> Callable[[], object]:
        self.watching.add(left)
        return lambda: self.watching.discard(left)

    def leave(self) -> None:
        self.gone.set()
        for left in tuple(self.watching):
            left()


@pytest.fixture(params=["extension", "receive"])
def scope_of(request: pytest.FixtureRequest) -> Callable[[Client], Any]:
    if request.param == "extension":
        return lambda client: {"extensions": {EXTENSION: client.watch}}
    return lambda _: {}


def test_the_block_ends_where_it_is_when_the_client_leaves(scope_of: Callable[[Client], Any]) -> None:
    async def run() -> list[str]:
        client, seen = Client(), []
        asyncio.get_running_loop().call_later(0.01, client.leave)
        try:
            with WhileConnected(scope_of(client), client.receive):
                try:
                    await asyncio.sleep(30)
                finally:
                    seen.append("cleaned up")
        except ClientLeftError:
            seen.append("left")
        await asyncio.sleep(0)  # the task itself goes on, and is not cancelled
        return seen

    assert asyncio.run(run()) == ["cleaned up", "left"]


def test_nothing_watches_behind_the_block(scope_of: Callable[[Client], Any]) -> None:
    async def run() -> tuple[int, int]:
        client = Client()
        before = len(asyncio.all_tasks())
        with WhileConnected(scope_of(client), client.receive):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        client.leave()
        await asyncio.sleep(0)
        return len(asyncio.all_tasks()) - before, len(client.watching)

    assert asyncio.run(run()) == (0, 0)


def test_another_cancellation_stays_one(scope_of: Callable[[Client], Any]) -> None:
    async def work(client: Client) -> None:
        with WhileConnected(scope_of(client), client.receive):
            await asyncio.sleep(30)

    async def run() -> bool:
        task = asyncio.ensure_future(work(Client()))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(run())


def test_what_the_block_raises_comes_through(scope_of: Callable[[Client], Any]) -> None:
    async def run() -> None:
        client = Client()
        with WhileConnected(scope_of(client), client.receive):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(run())
