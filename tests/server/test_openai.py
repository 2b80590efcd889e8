"""OpenAI's routes: real clients, unmodified; vectors are the library's; the exact requests of applications."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import llama_index.core
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

from edge_embed import Embedder
from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.server.token_ids import read_table
from edge_embed.testing import fake_embedder
from tests.serving import FAKES, QUIET, Running, fake_server, real_server

EMBED, RERANKER = FAKES
TEXTS = ["A cat sleeps on the windowsill.", "", "Die Zentralbank hob die Zinsen.", "猫が窓辺で眠る。" * 60]
# LlamaIndex ships the tables that tiktoken would download.
TABLES = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"


@pytest.fixture(scope="module")
def counts() -> Iterator[Embedder]:
    """What the fake server's vectors must be."""
    with fake_embedder() as embedder:
        yield embedder


@pytest.fixture
def client(real: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, over the bundled model."""
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
def quick(fake: Running) -> Iterator[openai.OpenAI]:
    """The same over the fakes."""
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def post(server: Running, body: dict[str, Any], path: str = "/v1/embeddings", **headers: str) -> Any:
    """The answer to a body, which is a success."""
    answer = httpx.post(f"{server.url}{path}", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(answer: Any) -> np.ndarray:
    """Those of an answer, of a client or in JSON, in the order of their indices."""
    data = answer["data"] if isinstance(answer, dict) else [one.model_dump() for one in answer.data]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data], dtype=np.float32)


# Real clients, real vectors


@pytest.mark.parametrize("form", [openai.omit, "base64", "float"])
def test_openai_embeds_as_the_library_does(client: openai.OpenAI, library: Embedder, form: Any) -> None:
    """By default it asks for base64 and makes numbers of it; one that asks for base64 itself gets that."""
    answer = client.embeddings.create(model=DEFAULT_MODEL, input=TEXTS, encoding_format=form)
    expected = library.embed(TEXTS, truncate="right")
    if form == "base64":
        rows = [np.frombuffer(base64.b64decode(str(one.embedding)), dtype="<f4") for one in answer.data]
        found = np.array(rows)
    else:
        found = vectors(answer)
    assert np.array_equal(found, expected.vectors), np.abs(found - expected.vectors).max()
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == expected.usage.n_tokens
    assert (answer.model, answer.object) == (DEFAULT_MODEL, "list")


def test_openai_asks_asynchronously_and_nothing_is_swapped(fake: Running, counts: Embedder) -> None:
    """64 clients at once, with sizes, prompts and forms of their own: every vector is the library's, bit for bit."""

    async def ask(number: int) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="any", timeout=60) as client:
            return await client.embeddings.create(
                model=EMBED if number % 3 else f"{EMBED}:query",
                input=[f"client {number} text {i}" for i in range(1 + number % 17)],
                dimensions=(4, 7, 16)[number % 3],
                encoding_format=("float", openai.omit)[number % 2],  # type: ignore[arg-type]
            )

    async def ask_all() -> Any:
        return await asyncio.gather(*(ask(number) for number in range(64)))

    for number, answer in enumerate(asyncio.run(ask_all())):
        texts = [f"client {number} text {i}" for i in range(1 + number % 17)]
        expected = counts.encode(texts, truncate_dim=(4, 7, 16)[number % 3], role=None if number % 3 else "query")
        assert np.array_equal(vectors(answer), expected)


def test_openai_sends_token_ids_and_sizes(quick: openai.OpenAI, counts: Embedder) -> None:
    expected = counts.encode(["ab", "c"])
    ids = [[3 + byte for byte in text.encode()] for text in ("ab", "c")]
    assert np.array_equal(vectors(quick.embeddings.create(model=EMBED, input=ids)), expected)
    assert np.array_equal(vectors(quick.embeddings.create(model=EMBED, input=ids[0])), expected[:1])
    cut = quick.embeddings.create(model=EMBED, input=["ab", "c"], dimensions=5)
    assert np.array_equal(vectors(cut), counts.encode(["ab", "c"], truncate_dim=5))


def test_openai_lists_models(client: openai.OpenAI, real: Running) -> None:
    (only,) = client.models.list().data
    assert (only.id, only.object, only.owned_by) == (DEFAULT_MODEL, "model", "edge-embed")
    assert only.created > 0
    assert client.models.retrieve(DEFAULT_MODEL).id == DEFAULT_MODEL
    assert httpx.get(f"{real.url}/models").json() == httpx.get(f"{real.url}/v1/models").json()
    described = only.model_dump()
    assert (described["dimensions"], described["kind"], described["available"]) == (384, "embedding", True)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_openai_raises_its_own_errors(quick: openai.OpenAI, fake: Running) -> None:
    ask = quick.embeddings.create
    with pytest.raises(openai.NotFoundError) as not_found:
        ask(model="text-embedding-3-small", input="x")
    assert not_found.value.code == "model_not_found"
    assert EMBED in not_found.value.message
    with pytest.raises(openai.BadRequestError) as too_large:
        ask(model=EMBED, input="x", dimensions=17)
    assert "16" in too_large.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(model=EMBED, input=[])
    assert wrong.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="reranker"):
        ask(model=RERANKER, input="x")
    with pytest.raises(openai.BadRequestError, match="expected float or base64"):
        ask(model=EMBED, input="x", encoding_format="hex")  # type: ignore[call-overload]
    with pytest.raises(openai.APIStatusError) as many:
        ask(model=EMBED, input=["x"] * 2049)
    assert many.value.status_code == 413
    with (
        fake_server(settings=replace(QUIET, api_keys=("right",))) as keyed,
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0) as client,
    ):
        with pytest.raises(openai.AuthenticationError) as denied:
            client.embeddings.create(model=EMBED, input="x")
        assert denied.value.code == "invalid_api_key"
        right = client.with_options(api_key="right")
        assert len(right.embeddings.create(model=EMBED, input="x").data) == 1


def test_openai_retries_when_it_is_told_to_come_back(counts: Embedder) -> None:
    """The client waits for as long as ``Retry-After`` says, and its user notices nothing."""
    with fake_server(settings=replace(QUIET, max_requests=1)) as server, ThreadPoolExecutor(6) as pool:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=30)
        texts = [[f"{i} {j}" for j in range(300)] for i in range(6)]
        answers = list(pool.map(lambda own: client.embeddings.create(model=EMBED, input=own), texts))
        client.close()
    for own, answer in zip(texts, answers, strict=True):
        assert np.array_equal(vectors(answer), counts.encode(own))


def test_langchain_embeds_texts(real: Running, library: Embedder) -> None:
    model = OpenAIEmbeddings(
        model=DEFAULT_MODEL, base_url=f"{real.url}/v1", api_key="any", check_embedding_ctx_length=False, dimensions=64
    )  # type: ignore[call-arg]
    expected = library.encode(TEXTS, truncate_dim=64)
    np.testing.assert_allclose(model.embed_documents(TEXTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        model.embed_query(TEXTS[0]), library.encode(TEXTS[0], truncate_dim=64), rtol=0, atol=0.02
    )


def test_langchains_default_is_told_what_to_change(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends ids of another tokenizer. Those that this model does not have give it away."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TABLES))
    model = OpenAIEmbeddings(model=DEFAULT_MODEL, base_url=f"{real.url}/v1", api_key="any")  # type: ignore[call-arg]
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        model.embed_documents(
            ["Interest rates rose unexpectedly on Wednesday afternoon, antidisestablishmentarianism."]
        )


def test_langchains_default_is_understood_where_the_server_knows(
    library: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TABLES))
    with real_server(settings=replace(QUIET, token_encoding="cl100k_base")) as server:
        model = OpenAIEmbeddings(model=DEFAULT_MODEL, base_url=f"{server.url}/v1", api_key="any")  # type: ignore[call-arg]
        found = np.array(model.embed_documents([TEXTS[0], TEXTS[2], "猫が窓辺で眠る。", "naïve 🐈"]))
        plain = np.array(post(server, {"input": TEXTS[0]})["data"][0]["embedding"])
        refused = httpx.post(f"{server.url}/v1/embeddings", json={"input": [[100, 200_000]]})
    expected = library.encode([TEXTS[0], TEXTS[2], "猫が窓辺で眠る。", "naïve 🐈"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(plain, library.encode(TEXTS[0]), rtol=0, atol=1e-6)
    assert refused.status_code == 400
    assert "200000 is none of cl100k_base" in refused.json()["error"]["message"]


def test_a_table_decodes_as_tiktoken_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TABLES))
    for name in ("cl100k_base", "o200k_base"):
        theirs, ours = tiktoken.get_encoding(name), read_table(name)
        for text in (*TEXTS, "def f(x):\n\treturn x  # ☃", "\U0001f9d1‍\U0001f680 \x00"):
            assert ours.decode(theirs.encode(text)) == text
        assert ours.decode(theirs.encode("猫")[:1]) == theirs.decode(theirs.encode("猫")[:1])


def test_token_ids_are_mentioned_once_in_the_log(fake: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """They may be another tokenizer's, which does not show where the model has as many."""
    with fake_server(settings=replace(QUIET, log="off")) as server:
        server.gate.log.form = "plain"
        for _ in range(3):
            post(server, {"input": [5, 6]})
        post(server, {"input": "x"})
    assert capsys.readouterr().err.count("--token-encoding") == 1


def test_llama_index_embeds(real: Running, library: Embedder) -> None:
    model = OpenAILikeEmbedding(DEFAULT_MODEL, api_base=f"{real.url}/v1", api_key="any", dimensions=128, max_retries=0)
    expected = library.encode(TEXTS[:3], truncate_dim=128)
    np.testing.assert_allclose(model.get_text_embedding_batch(TEXTS[:3]), expected, rtol=0, atol=1e-6)
    query = model.get_query_embedding(TEXTS[0])
    assert np.dot(query, expected[0]) > 0.999
    model._get_client().close()


# What other servers' clients send here as well


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        ({"input_type": "query"}, {"role": "query"}),
        ({"input_type": "search_document"}, {"role": "document"}),
        ({"task": "retrieval.query"}, {"role": "query"}),
        ({"task": "text-matching"}, {}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"prompt": "look: "}, {"prompt": "look: "}),
        ({"instruction": "find it"}, {"instruction": "find it"}),
        ({"model": f"{EMBED}:document"}, {"role": "document"}),
        ({"output_dim": 3}, {"truncate_dim": 3}),
        ({"output_dimension": 3, "dimensions": 3}, {"truncate_dim": 3}),
        ({"normalize": False}, {"normalize": False}),
        ({"normalized": False}, {"normalize": False}),
        ({"output_dtype": "int8"}, {"precision": "int8"}),
        ({"embedding_types": ["uint8"]}, {"precision": "uint8"}),
        ({"embedding_type": "ubinary"}, {"precision": "ubinary"}),
        ({"user": "me", "no_such_field": [{}]}, {}),
    ],
)
def test_fields_that_others_added(
    fake: Running, counts: Embedder, extra: dict[str, Any], options: dict[str, Any]
) -> None:
    found = [one["embedding"] for one in post(fake, {"input": ["ab", "xyz"], **extra})["data"]]
    expected = counts.embed(["ab", "xyz"], **options).vectors
    assert np.array_equal(np.array(found).astype(expected.dtype), expected)


def test_bytes_of_small_types_come_in_base64_too(fake: Running, counts: Embedder) -> None:
    answer = post(fake, {"input": "ab", "output_dtype": "int8", "encoding_format": "base64"})
    row = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), dtype=np.int8)
    assert np.array_equal(row, counts.encode("ab", precision="int8"))


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"dimensions": 4, "output_dim": 5}, "dimensions"),
        ({"input_type": "questions"}, "input_type"),
        ({"truncate": "middle"}, "truncate"),
        ({"prompt_name": "no-such"}, None),
        ({"output_dtype": "float64"}, "output_dtype"),
    ],
)
def test_what_contradicts_or_is_unknown_is_400(fake: Running, extra: dict[str, Any], param: str | None) -> None:
    refused = httpx.post(f"{fake.url}/v1/embeddings", json={"input": "x", **extra})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_long_texts_are_cut_or_refused_as_the_request_says(fake: Running, counts: Embedder) -> None:
    long = "a" * 300 + "b" * 300
    for truncate, expected in ((None, "right"), (True, "right"), ("START", "left"), ("left", "left")):
        answer = post(fake, {"input": long, "truncate": truncate})
        assert np.array_equal(vectors(answer)[0], counts.encode(long, truncate=expected))
        assert answer["usage"]["total_tokens"] == 512
    refused = httpx.post(f"{fake.url}/v1/embeddings", json={"input": ["x", long], "truncate": False})
    assert refused.status_code == 400
    assert "text 1 has 602 tokens" in refused.json()["error"]["message"]


def test_timing_headers_and_ids_are_there(fake: Running) -> None:
    answer = httpx.post(f"{fake.url}/v1/embeddings", json={"input": "abc"}, headers={"X-Request-Id": "mine:1"})
    assert answer.headers["x-request-id"] == "mine:1"
    assert answer.headers["x-compute-tokens"] == "5"
    for name in ("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert int(answer.headers[name]) >= 0
    other = httpx.post(f"{fake.url}/v1/embeddings", json={"input": "abc"}, headers={"X-Request-Id": "no id: <&>"})
    assert other.headers["x-request-id"] != "no id: <&>"


def test_the_servers_own_prompt_is_used_where_a_request_says_nothing(counts: Embedder) -> None:
    with fake_server(settings=replace(QUIET, prompt_name="query")) as server:
        assert np.array_equal(vectors(post(server, {"input": "ab"}))[0], counts.encode_query("ab"))
        said = vectors(post(server, {"input": "ab", "input_type": "document"}))[0]
        assert np.array_equal(said, counts.encode_document("ab"))
        assert np.array_equal(vectors(post(server, {"input": "ab", "prompt": ""}))[0], counts.encode("ab"))


# Applications that do not run here: their exact requests

OBSIDIAN = {
    "Origin": "app://obsidian.md",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) obsidian/1.8.4 Electron/34",
}
STAINLESS = {
    "Authorization": "Bearer default-key",
    "X-Stainless-Lang": "js",
    "X-Stainless-Package-Version": "4.95.1",
    "X-Stainless-Runtime": "browser:chrome",
    "X-Stainless-Retry-Count": "0",
    "X-Stainless-Timeout": "600",
}


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        pytest.param("/v1/embeddings", {"input": ["ab", "c"], "model": EMBED}, {"Authorization": "Bearer sk"},
                     id="Open WebUI"),
        pytest.param("/embeddings", {"input": ["ab", "c"], "model": EMBED, "prompt": ""},
                     {"Authorization": "Bearer", "X-OpenWebUI-User-Name": "Zo%C3%AB"}, id="Open WebUI, prefix field"),
        pytest.param("/v1/embeddings", {"model": EMBED, "input": ["ab", "c"], "encoding_format": "base64"}, STAINLESS,
                     id="AnythingLLM, generic"),
        pytest.param("/v1/embeddings", {"model": EMBED, "input": ["ab", "c"], "encoding_format": "float"},
                     {"Authorization": "Bearer"}, id="Dify, empty key"),
        pytest.param("/v1/embeddings", {"input": ["ab", "c"]}, {"Authorization": ""}, id="Dify, no model"),
        pytest.param("/v1/embeddings", {"model": EMBED, "input": ["ab", "c"], "encoding_format": "base64"},
                     {**OBSIDIAN, **STAINLESS}, id="Obsidian Copilot"),
        pytest.param("/v1/embeddings", {"model": EMBED, "input": ["ab", "c"], "encoding_format": "float"},
                     {**OBSIDIAN, **STAINLESS}, id="Smart Composer"),
        pytest.param("/v1/embeddings", {"model": EMBED, "input": ["ab", "c"], "encoding_format": "float"},
                     {**STAINLESS, "X-Stainless-Runtime": "node", "User-Agent": "OpenAI/JS 5.12.2"}, id="n8n"),
        pytest.param("/v1/embeddings", {"input": ["ab", "c"], "model": EMBED, "encoding_format": "base64"},
                     {"User-Agent": "OpenAI/2.2.0 (.NET 9.0.4; Linux)", "Authorization": "Bearer any"},
                     id="Microsoft.Extensions.AI"),
        pytest.param("/v1/embeddings", {"input": ["ab", "c"], "model": EMBED},
                     {"Authorization": "Bearer undefined", "api-key": "undefined"}, id="Continue"),
        pytest.param("/v1/embeddings/", {"input": ["ab", "c"], "model": EMBED.upper(), "user": ""}, {},
                     id="a slash too many"),
    ],
)  # fmt: skip
def test_applications_are_answered(
    fake: Running, counts: Embedder, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    answer = httpx.post(f"{fake.url}{path}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    rows = [one["embedding"] for one in found["data"]]
    if body.get("encoding_format") == "base64":
        rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows]
    assert np.array_equal(np.array(rows, dtype=np.float32), counts.encode(["ab", "c"]))
    assert found["usage"]["total_tokens"] == 7
    if "Origin" in headers:
        assert answer.headers["access-control-allow-origin"] == "app://obsidian.md"


def test_anythingllm_sends_five_hundred_chunks(fake: Running, counts: Embedder) -> None:
    texts = [f"chunk {i}" for i in range(500)]
    assert np.array_equal(vectors(post(fake, {"model": EMBED, "input": texts})), counts.encode(texts))


def test_obsidian_asks_first(fake: Running) -> None:
    first = httpx.options(
        f"{fake.url}/v1/embeddings",
        headers={
            "Origin": "app://obsidian.md",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": ",".join(name.lower() for name in STAINLESS),
        },
    )
    assert first.status_code == 200
    assert first.headers["access-control-allow-origin"] == "app://obsidian.md"


def test_no_client_names_a_file(fake: Running) -> None:
    """What is not served is unknown, wherever it lies."""
    for name in ("/etc/passwd", os.fspath(Path(__file__)), "../models/all-minilm-l6-v2-q8_0.gguf"):
        assert httpx.post(f"{fake.url}/v1/embeddings", json={"input": "x", "model": name}).status_code == 404
