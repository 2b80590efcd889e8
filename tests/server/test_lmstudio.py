"""LM Studio's routes: the lists that its clients choose models from, and embeddings under its own path."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from edge_embed import Embedder
from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.testing import fake_embedder
from tests.serving import FAKES, Running, fake_server, real_server

EMBED, RERANKER = FAKES
TEXTS = ["first chunk", "second chunk"]


def vectors(texts: list[str]) -> list[list[float]]:
    """What the library gives."""
    with fake_embedder() as embedder:
        return [pytest.approx(row.tolist(), abs=1e-6) for row in embedder.encode(texts)]


def test_a_real_model_is_described_and_embeds() -> None:
    with real_server() as server:
        assert httpx.get(f"{server.url}/api/v0/models").json() == {
            "object": "list",
            "data": [
                {
                    "id": DEFAULT_MODEL, "object": "model", "type": "embeddings", "publisher": "sentence-transformers",
                    "arch": "bert", "compatibility_type": "gguf", "quantization": "Q8_0", "state": "loaded",
                    "max_context_length": 256, "loaded_context_length": 256,
                }
            ],
        }  # fmt: skip
        body = {"model": DEFAULT_MODEL, "input": TEXTS}
        data = httpx.post(f"{server.url}/api/v0/embeddings", json=body).json()["data"]
    with Embedder(n_threads=1) as embedder:
        expected = embedder.encode(TEXTS)
    assert [item["embedding"] for item in data] == [pytest.approx(row.tolist(), abs=1e-6) for row in expected]


def test_models_tell_whether_they_are_in_memory() -> None:
    """What is not loaded has no length that it was loaded with."""
    with fake_server() as server:
        before = httpx.get(f"{server.url}/api/v0/models").json()["data"]
        assert [(one["id"], one["type"], one["state"]) for one in before] == [
            (EMBED, "embeddings", "not-loaded"), (RERANKER, "rerank", "not-loaded"),
        ]  # fmt: skip
        assert "loaded_context_length" not in before[0]
        httpx.post(f"{server.url}/api/v0/embeddings", json={"input": "a"}).raise_for_status()
        after = httpx.get(f"{server.url}/api/v0/models/{EMBED}").json()
        assert after == {**before[0], "state": "loaded", "loaded_context_length": 512}
        assert httpx.get(f"{server.url}/api/v0/models/{RERANKER}").json() == before[1]
        assert server.opened == [EMBED]


def test_one_model_is_found_by_each_of_its_names(fake: Running) -> None:
    for name in (EMBED, EMBED.upper(), f"{EMBED}:latest", f"{EMBED}:query"):
        assert httpx.get(f"{fake.url}/api/v0/models/{name}").json()["id"] == EMBED


def test_smart_connections_chooses_a_model_and_embeds(fake: Running) -> None:
    """It keeps what is of the type ``embeddings``, and takes the loaded length for its chunks."""
    origin = {"Origin": "app://obsidian.md"}
    found = httpx.get(f"{fake.url}/api/v0/models", headers=origin).json()
    assert found["object"] == "list"
    kept = [one for one in found["data"] if one["id"] and one["type"] == "embeddings"]
    assert [(one["id"], one["max_context_length"]) for one in kept] == [(EMBED, 512)]
    body = {"model": EMBED, "input": TEXTS}
    answer = httpx.post(f"{fake.url}/api/v0/embeddings", json=body, headers=origin)
    assert [item["embedding"] for item in answer.json()["data"]] == vectors(TEXTS)


def test_anythingllm_asks_for_models_and_embeds_chunk_by_chunk(fake: Running) -> None:
    """Its requests without an explicit format; with ``base64`` it wants floats all the same, as nobody can know."""
    assert httpx.get(f"{fake.url}/v1/models").json()["data"]
    for text, vector in zip(TEXTS, vectors(TEXTS), strict=True):
        body = {"model": EMBED, "input": text}
        assert httpx.post(f"{fake.url}/v1/embeddings", json=body).json()["data"][0]["embedding"] == vector


def test_copilot_and_continue_embed_with_floats(fake: Running) -> None:
    body = {"model": EMBED, "input": TEXTS, "encoding_format": "float"}
    for path in ("/v1/embeddings", "/embeddings", "/api/v0/embeddings"):
        data = httpx.post(f"{fake.url}{path}", json=body, headers={"Authorization": "Bearer lm-studio"}).json()["data"]
        assert [item["embedding"] for item in data] == vectors(TEXTS)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "input is missing"),
        ({"input": []}, 400, "input is empty"),
        ({"input": 7}, 400, "input"),
        ({"input": [None]}, 400, "input"),
        ({"input": "a", "model": 7}, 400, "model"),
        ({"input": "a", "model": "llama9"}, 404, "'llama9' is not served here"),
        ({"input": "a", "model": RERANKER}, 400, "is a reranker"),
        ({"input": ["a"] * 2049}, 413, "2049 texts"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "dimensions": 17}, 400, "17"),
    ],
)
def test_what_is_wrong_is_said(fake: Running, body: dict[str, Any], status: int, words: str) -> None:
    answer = httpx.post(f"{fake.url}/api/v0/embeddings", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["llama9", "..%2F..%2Fetc%2Fpasswd", "%00", "a" * 5000, "%F0%9F%90%88"])
def test_a_model_that_is_not_served_is_not_found(fake: Running, name: str) -> None:
    answer = httpx.get(f"{fake.url}/api/v0/models/{name}")
    assert answer.status_code == 404
    assert "is not served here" in answer.json()["error"]["message"]
    assert len(answer.json()["error"]["message"]) < 400
