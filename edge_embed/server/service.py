"""One internal request to its answer: find the model, tokenize, queue, finish. All of the server that touches models.

Short work is done where it comes, on the event loop's thread: handing it to another would take longer than doing it.
What may take long (many texts, loading a model) goes to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, TypeVar, cast

from edge_embed import prompts
from edge_embed.cancellation import Cancellation, watched
from edge_embed.embedder import Embedder
from edge_embed.errors import DeadlineExceededError, ModelNotFoundError, PayloadTooLargeError
from edge_embed.inputs import text_or_ids
from edge_embed.prompts import Role
from edge_embed.registry import Kind, Loaded, Registry, Served
from edge_embed.reranker import Reranker
from edge_embed.scheduler import Computed, Ticket
from edge_embed.server.metrics import Metrics
from edge_embed.server.requests import (
    Embedded,
    EmbedRequest,
    Reranked,
    RerankRequest,
    Timing,
    Tokenized,
    TokenizeRequest,
)
from edge_embed.server.settings import ServerSettings
from edge_embed.tokenizer import Text, Token
from edge_embed.tokens import Vocabulary
from edge_embed.types import Encoding, Truncate

T = TypeVar("T")

_SHORT: Final = 8192  # characters or ids that are tokenized in about a millisecond
_MOST_LOADING: Final = 16  # models that are loaded or freed at the same time; a thread each
_MOST_LISTED: Final = 500_000  # tokens of an answer that lists them, some 500 bytes each while it is made
_MOST_CHARACTERS: Final = 8 * _MOST_LISTED
_MOST_VALUES: Final = 1 << 25  # of an answer with the vectors of tokens, some 16 bytes each
_FEW: Final = 64  # vectors that are finished in about a millisecond


class Service:
    """Answers requests with the models of a registry.

    Args:
        registry: the models; closed by the caller.
        settings: limits and defaults.
        metrics: told of what happens.
        threads: for tokenizing and finishing what takes long.
    """

    def __init__(self, registry: Registry, settings: ServerSettings, metrics: Metrics, *, threads: int = 2) -> None:
        self.registry, self.settings, self.metrics = registry, settings, metrics
        self.n_threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="edge-embed-work")
        self._loading = ThreadPoolExecutor(_MOST_LOADING, thread_name_prefix="edge-embed-load")
        self._being_loaded: dict[Served, asyncio.Future[Loaded]] = {}

    async def embed(self, request: EmbedRequest) -> Embedded:
        """Vectors for texts.

        Raises:
            InputError, ModelError, EngineError, HubError, ServerError: leaves of these.
        """
        self._check_count(len(request.texts), "texts")
        async with self._held(request.model, "embedding", request.keep_alive) as (loaded, role, timing):
            embedder = cast(Embedder, loaded.model)
            dimensions = request.dimensions
            if request.clamp_dimensions and dimensions is not None:
                dimensions = min(dimensions, embedder.info.n_embd)
            prompt, prompt_name = self._prompt(embedder, request, role)
            stop = Cancellation()
            started = time.perf_counter()
            job = await self._stoppable(
                stop,
                _length(request.texts) <= _SHORT,
                lambda: embedder.prepare(
                    cast("Sequence[str]", request.texts),
                    prompt=prompt,
                    prompt_name=prompt_name,
                    instruction=request.instruction,
                    role=request.role or cast("Role | None", role),
                    truncate_dim=dimensions,
                    normalize=request.normalize,
                    precision=request.precision,
                    truncate=self._truncate(request.truncate),
                    max_tokens=_lower(request.max_tokens, embedder.info.max_tokens),
                    output="tokens" if request.tokens else "vectors",
                    cancellation=stop,
                ),
            )
            timing.tokenization = time.perf_counter() - started
            if job.tokens:
                n_values = embedder.info.n_hidden * sum(job.encodings[i].n_tokens for i in job.positions)
                _check_most(n_values, _MOST_VALUES, "values of tokens' vectors in the answer")
            computed = await self._computed(loaded, job.encodings, timing, tokens=job.tokens)
            result = await self._done(
                len(job.positions) <= _FEW, lambda: embedder.finish(job, computed.found, computed.tokens)
            )
            self.metrics.answered(loaded.served.name, result.usage)
            return Embedded(loaded.served, result, timing)

    async def rerank(self, request: RerankRequest) -> Reranked:
        """Scores of pairs. Raises as ``embed``."""
        self._check_count(len(request.pairs), "pairs")
        async with self._held(request.model, "reranker", request.keep_alive) as (loaded, _, timing):
            reranker = cast(Reranker, loaded.model)
            stop = Cancellation()
            started = time.perf_counter()
            job = await self._stoppable(
                stop,
                sum(map(_length, request.pairs)) <= _SHORT,
                lambda: reranker.prepare(
                    request.pairs,
                    instruction=request.instruction,
                    truncate=self._truncate(request.truncate),
                    max_document_tokens=request.max_document_tokens,
                    cancellation=stop,
                ),
            )
            timing.tokenization = time.perf_counter() - started
            computed = await self._computed(loaded, job.encodings, timing)
            result = reranker.finish(job, computed.found)
            self.metrics.answered(loaded.served.name, result.usage)
            return Reranked(loaded.served, result, timing)

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """The tokens of texts, with the prompt that the request names and no other. Raises as ``embed``."""
        self._check_count(len(request.texts), "texts")
        _check_most(_length(request.texts), _MOST_CHARACTERS, "characters")
        async with self._held(request.model, self._kind(request.model), None) as (loaded, role, timing):
            model = loaded.model
            prompt = prompts.resolve(
                model.prompts if isinstance(model, Embedder) else {},
                prompt=request.prompt,
                prompt_name=request.prompt_name,
                role=request.role or cast("Role | None", role),
            )
            stop = Cancellation()

            def located() -> tuple[tuple[Token, ...], ...]:
                found: list[tuple[Token, ...]] = []
                n = 0
                for index, text in enumerate(watched(request.texts, stop)):
                    tokens = model.tokenizer.located(text, prompt=prompt, special=request.special, index=index)
                    found.append(tuple(islice(tokens, _MOST_LISTED - n + 1)))
                    n += len(found[-1])
                    _check_most(n, _MOST_LISTED, "tokens or more")
                return tuple(found)

            started = time.perf_counter()
            tokens = await self._stoppable(stop, _length(request.texts) <= _SHORT, located)
            timing.tokenization = time.perf_counter() - started
            return Tokenized(loaded.served, tokens, await self._vocabulary(loaded.served), timing)

    async def spell(self, model: str | None, lists: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """The texts that ids stand for. The model is not loaded for it.

        Raises:
            InvalidTextError: an id that the model does not have.
            ModelError leaves: the model.
        """
        self._check_count(len(lists), "lists")
        _check_most(sum(map(len, lists)), _MOST_LISTED, "tokens")
        served, _ = self.registry.find(model, self._kind(model))
        vocabulary = await self._vocabulary(served)

        def spelled() -> list[str]:
            checked = [text_or_ids(tuple(ids), index, len(vocabulary)) for index, ids in enumerate(lists)]
            return [vocabulary.text(cast("tuple[int, ...]", ids), skip_special=skip_special) for ids in checked]

        return await self._done(sum(map(len, lists)) <= _SHORT, spelled)

    async def load(self, model: str | None, kind: Kind = "embedding", keep_alive: float | None = None) -> Timing:
        """Bring a model into memory, or say with ``keep_alive`` how long it stays."""
        async with self._held(model, kind, keep_alive) as (_, _, timing):
            return timing

    async def unload(self, model: str) -> None:
        """Give up a model as soon as no request uses it. One that is not in memory is not loaded for that."""
        loaded = self.registry.try_acquire(self.registry.lookup(model))
        if loaded is not None:
            self.registry.release(loaded, 0.0)
            await self.sweep()

    async def sweep(self) -> None:
        """Give up the models whose time is over."""
        await asyncio.get_running_loop().run_in_executor(self._loading, self.registry.sweep)

    async def close(self) -> None:
        """Finish what was accepted, and free the models."""
        await asyncio.get_running_loop().run_in_executor(self._loading, self.registry.close)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._loading.shutdown(wait=False)

    # Steps

    @contextlib.asynccontextmanager
    async def _held(
        self, name: str | None, kind: Kind, keep_alive: float | None
    ) -> AsyncIterator[tuple[Loaded, str | None, Timing]]:
        """The model of a request, in memory, for as long as the request takes."""
        timing = Timing()
        served, role = self.registry.find(name, kind)
        loaded = self.registry.try_acquire(served)
        if loaded is None:
            started = time.perf_counter()
            loaded = await self._acquired(served)
            timing.load = time.perf_counter() - started
        try:
            yield loaded, role, timing
        finally:
            self.registry.release(loaded, keep_alive)
            if keep_alive is not None and keep_alive <= 0:
                with contextlib.suppress(RuntimeError):  # the server is ending: all models are freed anyway
                    self._loading.submit(self.registry.sweep)

    async def _acquired(self, served: Served) -> Loaded:
        """A model that has to be loaded first, by one thread however many requests wait for it."""
        registry = self.registry
        while (loading := self._being_loaded.get(served)) is not None:
            await asyncio.shield(loading)
            loaded = registry.try_acquire(served)
            if loaded is not None:
                return loaded
        loading = asyncio.get_running_loop().run_in_executor(self._loading, registry.acquire, served)
        self._being_loaded[served] = loading
        loading.add_done_callback(lambda _: self._being_loaded.pop(served))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:  # the model is loaded all the same, and must not stay held
            loading.add_done_callback(lambda done: _let_go(registry, done))
            raise

    async def _computed(
        self, loaded: Loaded, encodings: Sequence[Encoding], timing: Timing, *, tokens: bool = False
    ) -> Computed:
        n_tokens = sum(encoding.n_tokens for encoding in encodings)
        most = self.settings.max_request_tokens
        if most is not None and n_tokens > most:
            raise PayloadTooLargeError(f"the request has {n_tokens} tokens, and the limit is {most}", hint="split it")
        ticket = await self._submitted(loaded, encodings, tokens=tokens)
        try:
            self.metrics.tokenized(loaded.served.name, timing.tokenization)  # while the model computes already
            computed = await asyncio.wait_for(asyncio.wrap_future(ticket.future), self.settings.timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(
                f"the request took longer than {self.settings.timeout:g} s", hint="send fewer or shorter texts"
            ) from None
        finally:
            ticket.cancel()  # does nothing to one that is done
        timing.queue, timing.inference = computed.queue_seconds, computed.inference_seconds
        self.metrics.computed(loaded.served.name, timing.queue, timing.inference)
        return computed

    async def _submitted(self, loaded: Loaded, encodings: Sequence[Encoding], *, tokens: bool) -> Ticket:
        """A place in the queue; on a thread for many texts, which are put in order and looked for in the cache."""
        if len(encodings) <= _FEW:
            return loaded.scheduler.submit(encodings, tokens=tokens)
        loop = asyncio.get_running_loop()
        submitting = loop.run_in_executor(self._pool, lambda: loaded.scheduler.submit(encodings, tokens=tokens))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:  # it gets its place all the same, and must not keep it
            submitting.add_done_callback(_give_up)
            raise

    async def _stoppable(self, stop: Cancellation, short: bool, work: Callable[[], T]) -> T:
        try:
            return await self._done(short, work)
        except asyncio.CancelledError:
            stop.cancel()
            raise

    async def _done(self, short: bool, work: Callable[[], T]) -> T:
        if short:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _kind(self, model: str | None) -> Kind:
        """Of the model of a request that both kinds can answer: the one that it names, else an embedding model."""
        if model:
            return self.registry.lookup(model).kind
        try:
            return self.registry.find(None, "embedding")[0].kind
        except ModelNotFoundError:
            return "reranker"

    async def _vocabulary(self, served: Served) -> Vocabulary:
        return await self._done("vocabulary" in vars(served), lambda: served.vocabulary)

    def _truncate(self, asked: Truncate | None) -> Truncate:
        return asked or ("right" if self.settings.truncate else "error")

    def _prompt(self, embedder: Embedder, request: EmbedRequest, role: str | None) -> tuple[str | None, str | None]:
        """The prompt and prompt name of a request; the server's own where it says nothing at all."""
        said = (request.prompt, request.prompt_name, request.instruction, request.role, role)
        if any(value is not None for value in said):
            return request.prompt, request.prompt_name
        if self.settings.prompt_name is not None and self.settings.prompt_name not in embedder.prompts:
            return None, None  # another model's
        return self.settings.prompt, self.settings.prompt_name

    def _check_count(self, n: int, what: str) -> None:
        if n > self.settings.max_texts:
            raise PayloadTooLargeError(
                f"the request has {n} {what}, and the limit is {self.settings.max_texts}",
                hint="send it in parts; --max-texts sets the limit",
            )


def _lower(asked: int | None, limit: int) -> int | None:
    """A limit that was asked for, if it is one: a text is never longer than the model's."""
    return None if asked is None or asked >= limit else asked


def _check_most(n: int, most: int, what: str) -> None:
    """Raises PayloadTooLargeError where an answer would take more memory than a request may."""
    if n > most:
        raise PayloadTooLargeError(f"the request has {n} {what}, and the limit is {most}", hint="send it in parts")


def _length(texts: Sequence[Text]) -> int:
    return sum(len(text) for text in texts)


def _give_up(done: asyncio.Future[Ticket]) -> None:
    if not done.cancelled() and done.exception() is None:
        done.result().cancel()


def _let_go(registry: Registry, done: asyncio.Future[Loaded]) -> None:
    if not done.cancelled() and done.exception() is None:
        registry.release(done.result())
