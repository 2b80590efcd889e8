"""Many clients at once: everybody has an own answer, and those who leave cost nothing."""

from __future__ import annotations

import asyncio
import base64
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from edge_embed import Embedder
from edge_embed.types import AnyArray, EmbedResult, Precision
from tests.serving import Running, fake_server
from tests.stepped import SteppedEngine

PATIENCE = 60.0
CLIENTS = 64
WORDS = (
    "river window copper signal winter garden engine paper market silver shadow ocean letter bridge candle forest "
    "mirror planet copper thread velvet harbor glacier meadow lantern violin desert compass orchard tunnel"
).split()
PROMPTS = (None, "query: ", "Represent this sentence for searching relevant passages: ")
DIMENSIONS = (None, 384, 128, 32, 7)
DTYPES: dict[str, tuple[Precision, Any]] = {
    "float": ("float32", np.float32),
    "int8": ("int8", np.int8),
    "uint8": ("uint8", np.uint8),
    "binary": ("binary", np.int8),
    "ubinary": ("ubinary", np.uint8),
}


@dataclass(frozen=True)
class Asked:
    """A request."""

    texts: tuple[str, ...]
    prompt: str | None
    dimensions: int | None
    dtype: str
    packed: bool

    @staticmethod
    def some(chance: random.Random, name: str) -> Asked:
        """Any; its texts are like no other's, but for one that several clients send."""
        sizes = (1, 1, 1, 2, 5, 20)
        texts = [
            " ".join([name, str(i), *chance.choices(WORDS, k=chance.choice((1, 3, 9, 30)))])
            for i in range(chance.choice(sizes))
        ]
        if len(texts) > 2:
            texts[1] = "a sentence that everybody sends"
        dtype = chance.choice(("float", "float", "float", *DTYPES))
        dimensions = chance.choice([d for d in DIMENSIONS if "binary" not in dtype or d is None or d % 8 == 0])
        return Asked(tuple(texts), chance.choice(PROMPTS), dimensions, dtype, chance.random() < 0.5)

    @property
    def body(self) -> dict[str, Any]:
        fields = {
            "input": list(self.texts),
            "prompt": self.prompt,
            "dimensions": self.dimensions,
            "output_dtype": self.dtype,
            "encoding_format": "base64" if self.packed else "float",
        }
        return {name: value for name, value in fields.items() if value is not None}

    def read(self, answer: dict[str, Any]) -> AnyArray:
        """The vectors of an answer."""
        assert [row["index"] for row in answer["data"]] == list(range(len(self.texts)))
        rows = [row["embedding"] for row in answer["data"]]
        kind = DTYPES[self.dtype][1]
        if self.packed:
            return np.stack([np.frombuffer(base64.b64decode(row), dtype=kind) for row in rows])
        return np.array(rows, dtype=kind)

    def computed(self, embedder: Embedder) -> EmbedResult:
        """What the library says."""
        return embedder.embed(
            self.texts, prompt=self.prompt, truncate_dim=self.dimensions, precision=DTYPES[self.dtype][0]
        )


def assert_same(asked: Asked, found: AnyArray, embedder: Embedder) -> None:
    """The answer is what the library computes, to the last bit, whatever else was in the batch."""
    expected = asked.computed(embedder).vectors
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected), asked


def test_64_clients_each_get_their_own_vectors(real: Running, library: Embedder) -> None:
    """Of mixed sizes, prompts, dimensions and types, all at once; token counts, too."""
    chances = [random.Random(i) for i in range(CLIENTS)]
    asked = [[Asked.some(chance, f"client {i} asks {k}") for k in range(4)] for i, chance in enumerate(chances)]

    async def everybody() -> list[list[dict[str, Any]]]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=real.url, timeout=PATIENCE, limits=limits) as client:

            async def one(requests: list[Asked]) -> list[dict[str, Any]]:
                answers = []
                for request in requests:
                    answer = await client.post("/v1/embeddings", json=request.body)
                    assert answer.status_code == 200, answer.text
                    answers.append(answer.json())
                return answers

            return await asyncio.gather(*(one(requests) for requests in asked))

    for requests, answers in zip(asked, asyncio.run(everybody()), strict=True):
        for request, answer in zip(requests, answers, strict=True):
            assert_same(request, request.read(answer), library)
            assert answer["usage"]["prompt_tokens"] == request.computed(library).usage.n_tokens
    until(lambda: is_quiet(real))


def test_clients_that_vanish_leave_the_others_their_answers(real: Running, library: Embedder) -> None:
    chance = random.Random(1)
    leaving = [
        {"input": [" ".join(["leaving", str(i), str(k), *chance.choices(WORDS, k=20)]) for k in range(300)]}
        for i in range(12)
    ]
    staying = [Asked.some(chance, f"stays {i}") for i in range(16)]

    async def vanish(body: dict[str, Any], seconds: float) -> None:
        async with httpx.AsyncClient(base_url=real.url, timeout=PATIENCE) as client:
            task = asyncio.create_task(client.post("/v1/embeddings", json=body))
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def everybody() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=real.url, timeout=PATIENCE) as client:
            gone = [asyncio.create_task(vanish(body, 0.02 * i)) for i, body in enumerate(leaving)]
            found = await asyncio.gather(*(client.post("/v1/embeddings", json=one.body) for one in staying))
            await asyncio.gather(*gone)
            return found

    for request, answer in zip(staying, asyncio.run(everybody()), strict=True):
        assert answer.status_code == 200, answer.text
        assert_same(request, request.read(answer.json()), library)
    until(lambda: is_quiet(real))


def test_the_texts_of_a_client_that_left_are_not_computed() -> None:
    """The model is held up, so that they all wait when the connection ends."""
    engine = SteppedEngine(n_batch=64)
    with fake_server(engine=engine) as running:
        first = connected(running, {"input": "first"})
        engine.wait_until_busy()
        (loaded,) = running.registry.loaded()
        gone = [connected(running, {"input": [f"gone {i} {k}" for k in range(50)]}) for i in range(5)]
        stays = connected(running, {"input": "stays"})
        until(lambda: loaded.scheduler.depth.requests == 6)
        for connection in gone:
            connection.close()
        until(lambda: loaded.scheduler.depth.requests == 1)
        engine.run_freely()
        for connection in (first, stays):
            assert connection.recv(100_000).startswith(b"HTTP/1.1 200")
            connection.close()
        until(lambda: is_quiet(running))
    assert [bytes(i - 3 for i in text[1:-1]).decode() for text in engine.computed] == ["first", "stays"]


def test_a_client_that_leaves_alone_stops_the_batch_under_way() -> None:
    engine = SteppedEngine(n_batch=64)
    with fake_server(engine=engine) as running:
        only = connected(running, {"input": "nobody reads this"})
        engine.wait_until_busy()
        (loaded,) = running.registry.loaded()
        only.close()
        until(lambda: loaded.scheduler.idle)
        engine.run_freely()
        until(lambda: is_quiet(running))
    assert engine.computed == []


def connected(running: Running, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent."""
    request = httpx.Request("POST", f"{running.url}/v1/embeddings", json={**body, "model": "fake-embed"})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    found = socket.create_connection((request.url.host, request.url.port or 80), timeout=PATIENCE)
    found.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    return found


def is_quiet(running: Running) -> bool:
    """Whether nobody is answered, nothing waits and no model is held."""
    loaded = running.registry.loaded()
    return running.gate.under_way == 0 and all(
        one.scheduler.idle and one.users == 0 and one.scheduler.depth.tokens == 0 for one in loaded
    )


def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.005)
