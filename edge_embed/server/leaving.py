"""Work that ends when the client it is for goes away.

ASGI says so through ``receive`` alone, and to wait for that beside the work takes two more tasks for each request. The
server's own connections say it directly (``connections.py``); under another server ``receive`` is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final

from starlette.types import Receive, Scope

from edge_embed.server.bodies import ClientLeftError

EXTENSION: Final = "edge_embed.leaving"
"""Of an ASGI scope: a function that is given what to call when the client leaves, and returns how to take it back."""


class WhileConnected:
    """A block of a task that a client waits for.

    Args:
        scope, receive: of the request, whose body was received.

    Raises:
        ClientLeftError: out of the block, where it was when the client left.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope, self._receive = scope, receive
        self._left = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        watch = self._scope.get("extensions", {}).get(EXTENSION) or self._watch
        self._end: Callable[[], object] = watch(self._gone)

    def _gone(self) -> None:
        self._left = True
        self._task.cancel()

    def _watch(self, gone: Callable[[], None]) -> Callable[[], object]:
        watching = asyncio.ensure_future(_left(self._receive))
        watching.add_done_callback(lambda done: None if done.cancelled() else gone())
        return watching.cancel

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._end()
        if self._left and kind is asyncio.CancelledError:
            getattr(self._task, "uncancel", int)()  # from Python 3.11 on, the task remembers
            raise ClientLeftError from None


async def _left(receive: Receive) -> None:
    """Returns when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
