"""From the bytes of a request to a checked body: limits of size, time and depth, then its shape."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive

from edge_embed.errors import EdgeEmbedError, PayloadTooLargeError, RequestShapeError, RequestTimeoutError

B = TypeVar("B", bound="Body")
_SHOWN: Final = 200  # characters of what was wrong that a message repeats


class Body(BaseModel):
    """A body as JSON. Fields that are not known are left alone: clients send more than they need.

    A field's description ends the message about it: "expected ...".
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class ClientLeftError(Exception):
    """The connection was closed by the client: nobody is there to answer."""


async def read_body(receive: Receive, headers: Headers, *, limit: int, seconds: float) -> bytes:
    """All of a body.

    Args:
        receive: the connection.
        headers: of the request.
        limit: most bytes.
        seconds: within which it must be here.

    Raises:
        PayloadTooLargeError: it is, or says that it is, longer.
        RequestTimeoutError: it did not arrive in time.
        ClientLeftError: the client closed the connection.
    """
    said = headers.get("content-length", "")
    if said.isdigit() and int(said) > limit:
        raise _too_large(limit)
    try:
        return await asyncio.wait_for(_read(receive, limit), seconds)
    except asyncio.TimeoutError:
        raise RequestTimeoutError(f"the body did not arrive within {seconds:g} s") from None


async def _read(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    n = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        n += len(chunk)
        if n > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> EdgeEmbedError:
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
