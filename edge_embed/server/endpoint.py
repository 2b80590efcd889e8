"""One route: who may ask, what was asked, the answer, and what is said when there is none.

Everything that all routes have in common happens here, once and in one order: id, key, room, body, answer, counters,
log. A dialect's handler is a function of a checked body; what it raises becomes its family's error.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from edge_embed.errors import AccessDeniedError, ComputeError, EdgeEmbedError, NotReadyError, QueueFullError
from edge_embed.server.bodies import Body, ClientLeftError, Room, receive_body
from edge_embed.server.families import Family
from edge_embed.server.log import AccessLog
from edge_embed.server.metrics import Metrics
from edge_embed.server.origins import Origins
from edge_embed.server.requests import (
    Embedded,
    EmbedRequest,
    Reranked,
    RerankRequest,
    Timing,
    Tokenized,
    TokenizeRequest,
)
from edge_embed.server.service import Service
from edge_embed.server.settings import ServerSettings
from edge_embed.server.token_ids import TokenTable
from edge_embed.tokenizer import Text

if TYPE_CHECKING:
    from edge_embed.server.searching import Searched

_ID: Final = re.compile(r"[\w.:/+=@-]{1,100}", re.ASCII)
TIMING_HEADERS: Final = (
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
    "x-compute-tokens",
)
CLIENT_LEFT: Final = 499  # as nginx writes it into its log; nobody receives it
_BODIES: Final = 8  # bodies of the longest kind that may be on their way at once


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        content: what becomes JSON (NumPy arrays too), or bytes that are sent as they are.
        status: HTTP status.
        headers: beside those that every answer has.
        media_type: of the bytes.
    """

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/json"

    def encoded(self) -> bytes:
        """What is sent."""
        if isinstance(self.content, bytes):
            return self.content
        return orjson.dumps(self.content, option=orjson.OPT_SERIALIZE_NUMPY)


class Gate:
    """What all routes of a server share: who is let in, and how many at once.

    Args:
        service: answers.
        settings: limits and keys.
        metrics: counters.
        log: where a line for each request goes.
        token_table: what the token ids of requests stand for; None for the model's own.

    Attributes:
        ready: whether requests are taken; False while models are loaded.
        ending: whether no more are, because the server was told to end.
        under_way: requests being answered.
        started: when it was made, by the monotonic clock.
        announce: called once, when requests are taken.
        room: memory for bodies on their way.
        search: the database that questions are answered from, if the server has one.
        failure: why the server cannot start, and ends; None as long as it can.
    """

    search: Searched | None = None
    failure: EdgeEmbedError | None = None

    def __init__(
        self,
        service: Service,
        settings: ServerSettings,
        metrics: Metrics,
        log: AccessLog,
        token_table: TokenTable | None = None,
    ) -> None:
        self.service, self.settings, self.metrics, self.log = service, settings, metrics, log
        self.token_table = token_table
        self.ready = self.ending = False
        self.under_way = 0
        self.started = time.monotonic()
        self.announce: Callable[[], None] = lambda: None
        self.room = Room(_BODIES * settings.max_body_bytes)
        self._origins = Origins(settings)
        self._keys = [_digest(key) for key in settings.api_keys]
        self._said_ids = False

    def check_source(self, headers: Headers) -> None:
        """Raises ForeignOriginError for pages of other sites, and names that are not this server's."""
        self._origins.check(headers)

    def check_access(self, headers: Headers) -> None:
        """Look for a key where clients put it: ``Authorization`` (with ``Bearer`` or bare), ``X-Api-Key``, ``Api-Key``.

        Raises AccessDeniedError for a missing or wrong one. The time taken does not tell how wrong.
        """
        if not self._keys:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip() if scheme.lower() == "bearer" else f"{scheme} {bearer}".strip()]
        given += [headers.get("x-api-key", ""), headers.get("api-key", "")]
        given = [key for key in given if key]
        found = False
        for digest in map(_digest, given):
            for key in self._keys:
                found |= hmac.compare_digest(key, digest)
        if not found:
            raise AccessDeniedError(
                "the key is wrong" if given else "a key is needed", hint="send it as `Authorization: Bearer KEY`"
            )

    def check_open(self) -> None:
        """Raises NotReadyError, QueueFullError where no more requests are taken now."""
        if self.ending or not self.ready:
            raise NotReadyError(
                f"the server is {'ending' if self.ending else 'starting'}", hint="send the request again in a while"
            )
        if self.under_way >= self.settings.max_requests:
            raise QueueFullError(
                f"{self.under_way} requests are being answered, and no more are taken",
                retry_after=1.0,
                hint="send it again later; --max-requests sets the limit",
            )

    def enter(self) -> None:
        """A request is accepted: it will be answered. Raises as ``check_open``."""
        self.check_open()
        self.under_way += 1
        self.metrics.began()

    def leave(self) -> None:
        """A request is over."""
        self.under_way -= 1
        self.metrics.ended()

    def note_ids(self) -> None:
        """Say once that token ids came and were taken as the model's own, since they may well be another's."""
        if not self._said_ids:
            self._said_ids = True
            self.log.event("token ids", note="taken as the model's own; --token-encoding says that they are another's")


def _digest(key: str) -> bytes:
    """Digests are compared, so that not even the length of a key shows."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass(slots=True)
class Call:
    """One request as a handler sees it.

    Attributes:
        gate: the server.
        headers, query, path_params: of the request.
        request_id: names it in the log and in the answer.
        timing: where the time went, once the service has answered.
        n_tokens: tokens that were asked for, likewise.
    """

    gate: Gate
    headers: Headers
    query: QueryParams
    path_params: dict[str, Any]
    request_id: str
    started: float
    timing: Timing | None = None
    n_tokens: int | None = None
    model: str | None = None

    @property
    def service(self) -> Service:
        return self.gate.service

    @property
    def settings(self) -> ServerSettings:
        return self.gate.settings

    def decoded(self, texts: tuple[Text, ...]) -> tuple[Text, ...]:
        """Texts in the place of token ids, where the server was told which encoding these are in.

        Raises:
            RequestShapeError: ids that the encoding does not have.
        """
        if all(isinstance(text, str) for text in texts):
            return texts
        table = self.gate.token_table
        if table is None:
            self.gate.note_ids()
            return texts
        return tuple(text if isinstance(text, str) else table.decode(text) for text in texts)

    async def embed(self, request: EmbedRequest) -> Embedded:
        """See ``Service.embed``."""
        done = await self.service.embed(request)
        self._note(done, done.result.usage.n_tokens)
        return done

    async def rerank(self, request: RerankRequest) -> Reranked:
        """See ``Service.rerank``."""
        done = await self.service.rerank(request)
        self._note(done, done.result.usage.n_tokens)
        return done

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """See ``Service.tokenize``."""
        done = await self.service.tokenize(request)
        self._note(done, sum(map(len, done.tokens)))
        return done

    def _note(self, done: Embedded | Reranked | Tokenized, n_tokens: int) -> None:
        self.timing, self.model = done.timing, done.served.name
        self.n_tokens = n_tokens + (self.n_tokens or 0)


Handler = Callable[[Any, Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of a dialect.

    Attributes:
        method, path: what it answers; a path may have ``{name}`` parameters, ``{name:path}`` with slashes.
        family: whose clients ask there.
        handler: body and call to the answer.
        summary: a line for the description of the interface.
        body: the shape of the request's body; None for none.
        returns: a type that describes the answer (as Pydantic understands it), for the description alone.
        public: whether it is answered without a key, while models are loaded, and whatever else is being answered.
        keyed: whether it needs a key all the same.
        media_type: of the answer.
    """

    method: str
    path: str
    family: Family
    handler: Handler
    summary: str
    body: type[Body] | None = None
    returns: Any = None
    public: bool = False
    keyed: bool = False
    media_type: str = "application/json"


class Answering:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint, gate: Gate) -> None:
        self.endpoint, self.gate = endpoint, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        own = headers.get("x-request-id", "")
        call = Call(
            gate=self.gate,
            headers=headers,
            query=QueryParams(scope["query_string"]),
            path_params=scope.get("path_params", {}),
            request_id=own if _ID.fullmatch(own) else secrets.token_hex(8),
            started=time.perf_counter(),
        )
        error: EdgeEmbedError | None = None
        entered = False
        try:
            try:
                body = await self._admitted(headers, receive)
                call.started = time.perf_counter()
                if not self.endpoint.public:
                    self.gate.enter()
                    entered = True
                reply = await self._reply(body, call, receive)
                data = reply.encoded()
            except EdgeEmbedError as found:
                error = found
            except ClientLeftError:
                raise
            except asyncio.CancelledError:  # the time for ending is over
                error = NotReadyError("the server ended before the answer was there", hint="send the request again")
            except Exception as found:  # a bug: the client learns no more than that
                self.gate.log.unexpected(call.request_id, found)
                error = ComputeError(
                    f"unexpected {type(found).__name__}", hint="this is a bug; the server's log has it"
                )
            if error is not None:
                reply = refusal(self.endpoint.family, error)
                data = reply.encoded()
            seconds = time.perf_counter() - call.started
            try:
                await send_reply(send, scope, call, reply, data, last=self.gate.ending)
            finally:  # the client does not wait for our notes; before the next request they are there
                self._said(scope, call, reply.status, error, seconds)
        except ClientLeftError:
            self._said(scope, call, CLIENT_LEFT, None, time.perf_counter() - call.started)
        finally:
            if entered:
                self.gate.leave()

    async def _admitted(self, headers: Headers, receive: Receive) -> Body | None:
        """The body, of a request that may be made. What can be refused without reading it is."""
        gate, settings, endpoint = self.gate, self.gate.settings, self.endpoint
        gate.check_source(headers)
        if not endpoint.public or endpoint.keyed:
            gate.check_access(headers)
        if not endpoint.public:
            gate.check_open()
        if endpoint.body is None:
            return None
        return await receive_body(
            endpoint.body,
            receive,
            headers,
            limit=settings.max_body_bytes,
            seconds=settings.body_timeout,
            room=gate.room,
        )

    async def _reply(self, body: Body | None, call: Call, receive: Receive) -> Reply:
        if self.endpoint.public:
            return await self.endpoint.handler(body, call)
        return await self._watched(body, call, receive)

    async def _watched(self, body: Body | None, call: Call, receive: Receive) -> Reply:
        """The handler's answer, unless the client goes away before it is there: then the work is stopped."""
        work = asyncio.ensure_future(self.endpoint.handler(body, call))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientLeftError
            return work.result()
        finally:
            left.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    def _said(self, scope: Scope, call: Call, status: int, error: EdgeEmbedError | None, seconds: float) -> None:
        kind = type(error).__name__ if error is not None else "ClientLeft" if status == CLIENT_LEFT else None
        self.gate.metrics.replied(self.endpoint.path, self.endpoint.method, status, seconds, kind)
        self.gate.log.request(scope, call, self.endpoint, status, seconds, error)


async def _left(receive: Receive) -> None:
    """Returns when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def refusal(family: Family, error: EdgeEmbedError) -> Reply:
    """What a client is told that does not get what it wants, and when to ask again."""
    status = family.status(error)
    headers = {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif status == 503:
        headers["Retry-After"] = "1"
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Reply(family.body(error, status), status, headers)


async def send_reply(send: Send, scope: Scope, call: Call, reply: Reply, data: bytes, *, last: bool) -> None:
    """Send an answer; the ``last`` one of its connection says so."""
    headers = {
        "content-type": reply.media_type,
        "content-length": str(len(data)),
        "x-request-id": call.request_id,
        **({"connection": "close"} if last else {}),
        **_timing_headers(call),
        **reply.headers,
    }
    await send(
        {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else data})


def _timing_headers(call: Call) -> dict[str, str]:
    """Milliseconds, under text-embeddings-inference's names."""
    if call.timing is None:
        return {}
    timing = call.timing
    seconds = (time.perf_counter() - call.started, timing.tokenization, timing.queue, timing.inference)
    values = (*(f"{1000 * part:.0f}" for part in seconds), str(call.n_tokens or 0))
    return dict(zip(TIMING_HEADERS, values, strict=True))
