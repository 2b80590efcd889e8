"""From the bytes of a request to a checked body: limits of size, time and depth, then its shape."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema
from starlette.datastructures import Headers
from starlette.types import Receive

from edge_embed.errors import (
    BodyEncodingError,
    PayloadTooLargeError,
    QueueFullError,
    RequestShapeError,
    RequestTimeoutError,
)

B = TypeVar("B", bound="Body")
_SHOWN: Final = 200  # characters of what was wrong that a message repeats
_SLOWEST: Final = 16_384  # bytes a second: a body may take longer the more of it there is, down to this rate


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            _fail_fast(part)


class Body(BaseModel):
    """A body as JSON. Fields that are not known are left alone: clients send more than they need.

    A field's description ends the message about it: "expected ...".
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Lists are given up at their first wrong item: an error for each of millions takes gigabytes."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


class ClientLeftError(Exception):
    """The connection was closed by the client: nobody is there to answer."""


class Room:
    """Memory for bodies that are on their way, shared by all connections: many large ones at once are refused.

    Attributes:
        limit: most bytes.
        taken: bytes that are here now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self, n: int) -> None:
        """Raises QueueFullError where there is no room for so many more bytes."""
        if self.taken + n > self.limit:
            raise QueueFullError(
                f"bodies of {self.taken} bytes are on their way, and {n} bytes more are not taken",
                retry_after=1.0,
                hint="send it again later",
            )
        self.taken += n

    def give_back(self, n: int) -> None:
        """So many bytes are gone."""
        self.taken -= n


def check_encoding(headers: Headers) -> None:
    """Raises BodyEncodingError for a body that is compressed."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BodyEncodingError(f"the content encoding {encoding[:40]!r} is not taken", hint="send plain JSON")


async def receive_body(
    kind: type[B], receive: Receive, headers: Headers, *, limit: int, seconds: float, room: Room
) -> B:
    """The body of a request, whole and of the right shape.

    Args:
        kind: its shape.
        receive: the connection.
        headers: of the request.
        limit: most bytes.
        seconds: within which it must be here; longer for a large one that keeps coming.
        room: where it is kept until it is read.

    Raises:
        BodyEncodingError: it is compressed.
        PayloadTooLargeError: it is, or says that it is, longer.
        RequestTimeoutError: it did not arrive in time.
        QueueFullError: there is no room for it now.
        RequestShapeError: it is not JSON of that shape.
        ClientLeftError: the client closed the connection.
    """
    check_encoding(headers)
    said = headers.get("content-length", "")
    if said.isdigit() and int(said) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    taken = 0
    try:
        with _Patience(seconds) as patience:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if taken + len(chunk) > limit:
                    raise _too_large(limit)
                room.take(len(chunk))
                taken += len(chunk)
                chunks.append(chunk)
                patience.n_bytes = taken
        return parse(kind, chunks[0] if len(chunks) == 1 else b"".join(chunks))
    finally:
        room.give_back(taken)


class _Patience:
    """Ends a block that waits for bytes with RequestTimeoutError. A timer alone, no task: most bodies are here already.

    Attributes:
        n_bytes: how many have come; each second of patience beyond the first ones takes ``_SLOWEST`` of them.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.n_bytes = seconds, 0
        self._expired = False

    def __enter__(self) -> _Patience:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._loop = task, asyncio.get_running_loop()
        self._started = self._loop.time()
        self._timer = self._loop.call_later(min(self.seconds, 1e6), self._look)
        return self

    def _look(self) -> None:
        left = self._started + self.seconds + self.n_bytes / _SLOWEST - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._expired = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError:
            getattr(self._task, "uncancel", int)()  # from Python 3.11 on, the task remembers
            waited = math.ceil(self._loop.time() - self._started)
            raise RequestTimeoutError(f"the body did not arrive within {waited} s") from None


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the body has more than {limit} bytes", hint="send it in parts; --max-body-size sets the limit"
    )


def parse(kind: type[B], data: bytes) -> B:
    """The body, if it is JSON of the right shape.

    Raises:
        RequestShapeError: it is not; the message says where, and what was expected.
    """
    try:
        return kind.model_validate_json(data or b"{}")
    except ValidationError as error:
        raise _shape_error(kind, error) from None


def _shape_error(kind: type[Body], error: ValidationError) -> RequestShapeError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return RequestShapeError(f"the body is not JSON: {first['msg'].partition(': ')[2]}"[:_SHOWN])
    if not first["loc"]:
        return RequestShapeError(
            f"the body is not what this route takes: {first['msg']}"[:_SHOWN], hint="send an object"
        )
    param = str(first["loc"][0])
    if first["type"] == "missing":
        return RequestShapeError(f"{param} is missing", param=param, hint=_expected(kind, param))
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or not _is_type(part))
    return RequestShapeError(f"{place}: {first['msg']}"[:_SHOWN], param=param, hint=_expected(kind, param))


def _is_type(part: str) -> bool:
    """Whether a part of a place is a branch of a union, which is ours and not the client's."""
    return "[" in part or part in ("str", "int", "float", "bool")


def _expected(kind: type[Body], name: str) -> str:
    fields: dict[str, Any] = kind.model_fields
    field = fields.get(name) or next((one for one in fields.values() if one.alias == name), None)
    return f"expected {field.description}" if field is not None and field.description else ""
