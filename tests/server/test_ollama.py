"""Ollama's routes: real clients, unmodified; vectors are the library's; models come and go as clients say."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from gguf import LlamaFileType
from langchain_ollama import OllamaEmbeddings
from llama_index.embeddings.ollama import OllamaEmbedding

from edge_embed import Embedder, store
from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.gguf_header import read_header
from edge_embed.registry import Registry, Served
from edge_embed.server.dialects.facts import FILE_TYPES, all_listed, facts_of
from edge_embed.server.start import served_models
from edge_embed.testing import fake_embedder
from tests.serving import FAKES, QUIET, Running, fake_server

TEXTS = ["A cat sleeps on the windowsill.", "", "Die Zentralbank hob die Zinsen.", "猫が窓辺で眠る。" * 60]
EMBED, RERANKER = FAKES


@pytest.fixture(scope="module")
def fake() -> Iterator[Running]:
    """An embedding model and a reranker that count tokens, kept for five minutes."""
    with fake_server(keep_alive=300) as server:
        yield server


@pytest.fixture
def client(real: Running) -> Iterator[ollama.Client]:
    """Ollama's own client."""
    with ollama.Client(host=real.url) as found:
        yield found


def post(server: Running, path: str, body: dict[str, Any]) -> Any:
    """The answer to a body, which is a success."""
    answer = httpx.post(f"{server.url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def same(ours: Any, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(ours), theirs, rtol=0, atol=1e-6)


# Real clients, real vectors


def test_ollama_embeds_texts_as_the_library_does(client: ollama.Client, library: Embedder) -> None:
    """Long ones lose their end, as Ollama's do; tokens are counted, and durations are nanoseconds."""
    answer = client.embed(model=DEFAULT_MODEL, input=TEXTS)
    expected = library.embed(TEXTS, truncate="right")
    same(answer.embeddings, expected.vectors)
    assert answer.model == DEFAULT_MODEL
    assert answer.prompt_eval_count == expected.usage.n_tokens
    assert answer.total_duration is not None
    assert 1_000 < answer.total_duration < 60_000_000_000
    assert answer.load_duration == 0


def test_ollama_embeds_one_text_cut_and_with_its_usual_names(client: ollama.Client, library: Embedder) -> None:
    same(client.embed(f"{DEFAULT_MODEL}:latest", TEXTS[0]).embeddings, library.encode(TEXTS[:1]))
    cut = client.embed(DEFAULT_MODEL, TEXTS[0], dimensions=64, keep_alive="5m", options={"temperature": 0.5}).embeddings
    same(cut, library.encode(TEXTS[:1], truncate_dim=64))
    whole = client.embed(DEFAULT_MODEL, TEXTS[0], dimensions=100_000).embeddings
    same(whole, library.encode(TEXTS[:1]))


def test_ollama_asks_asynchronously(real: Running, library: Embedder) -> None:
    """In whatever batches: 8-bit arithmetic moves the last digits with them."""
    texts = [text for text in TEXTS if text]

    async def ask() -> list[Any]:
        async with ollama.AsyncClient(host=real.url) as client:
            return await asyncio.gather(*(client.embed(DEFAULT_MODEL, text) for text in texts))

    for text, answer in zip(texts, asyncio.run(ask()), strict=True):
        assert np.array(answer.embeddings[0]) @ library.encode([text])[0] > 0.999


def test_the_legacy_route_gives_vectors_as_the_model_computes_them(client: ollama.Client, library: Embedder) -> None:
    vector = np.array(client.embeddings(DEFAULT_MODEL, TEXTS[0]).embedding)
    same(vector, library.encode(TEXTS[:1], normalize=False)[0])
    assert abs(np.linalg.norm(vector) - 1) > 0.1


def test_langchain_embeds(real: Running, library: Embedder) -> None:
    """It looks the name up in the list first, and sends ``num_ctx`` and ``keep_alive``."""
    model = OllamaEmbeddings(
        model=DEFAULT_MODEL, base_url=real.url, validate_model_on_init=True, num_ctx=4096, keep_alive=-1
    )
    same(model.embed_documents(TEXTS), library.encode(TEXTS))
    same(model.embed_query(TEXTS[0]), library.encode(TEXTS[:1])[0])

    async def ask() -> Any:
        async with model._async_client:  # closed with the loop that it belongs to
            return await model.aembed_documents(TEXTS)

    same(asyncio.run(ask()), library.encode(TEXTS))
    model._client.close()


def test_langchain_finds_a_model_by_ollamas_name_for_it(real: Running, library: Embedder) -> None:
    model = OllamaEmbeddings(model="all-minilm", base_url=real.url, validate_model_on_init=True)
    same(model.embed_query(TEXTS[0]), library.encode(TEXTS[:1])[0])
    model._client.close()


def test_llama_index_embeds(real: Running, library: Embedder) -> None:
    model = OllamaEmbedding(DEFAULT_MODEL, base_url=real.url, ollama_additional_kwargs={"mirostat": 0})
    same(model.get_text_embedding_batch(TEXTS[:1] * 3), library.encode(TEXTS[:1] * 3))
    same(model.get_query_embedding(TEXTS[0]), library.encode(TEXTS[:1])[0])
    model._client.close()


# Lists


def test_ollama_lists_and_shows_models(client: ollama.Client) -> None:
    """Types as its client checks them; the sizes are what this server takes and gives."""
    path = Served("m", DEFAULT_MODEL).path
    model, other = client.list().models
    assert (model.model, other.model) == (f"{DEFAULT_MODEL}:latest", "all-minilm:latest")
    assert other.digest == model.digest
    assert model.size == path.stat().st_size
    assert model.digest is not None
    assert len(bytes.fromhex(model.digest)) == 32
    assert model.modified_at == datetime.fromtimestamp(int(path.stat().st_mtime), timezone.utc)
    assert model.details is not None
    assert model.details.model_dump() == {
        "parent_model": "", "format": "gguf", "family": "bert", "families": ["bert"], "parameter_size": "22.6M",
        "quantization_level": "Q8_0",
    }  # fmt: skip
    shown = client.show(DEFAULT_MODEL)
    assert shown.capabilities == ["embedding"]
    assert shown.details == model.details
    assert shown.license == "apache-2.0"
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "bert"
    assert shown.modelinfo["bert.embedding_length"] == 384
    assert shown.modelinfo["bert.context_length"] == 256  # of its 512 positions the model was trained to use so many
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None


@pytest.mark.parametrize("name", ["all-minilm", "all-minilm:latest", "all-minilm:22m", "ALL-MINILM:l6-v2"])
def test_a_known_model_answers_to_the_name_that_ollamas_library_gives_it(client: ollama.Client, name: str) -> None:
    """People change an address, not their program."""
    assert len(client.embed(name, "a").embeddings[0]) == 384
    assert client.pull(name).status == "success"


def test_of_two_models_with_a_name_the_one_that_was_given_it_has_it_and_else_the_first() -> None:
    path = Served("m", DEFAULT_MODEL).path
    registry = Registry(
        served_models([f"a={path}", f"b={path}"], aliases=["all-minilm=b"]),
        lambda _: pytest.fail("nothing is loaded"),
        memory_of=lambda _: 1,
    )
    for asked, name in (("all-minilm", "b"), ("all-minilm:22m", "a"), (DEFAULT_MODEL, "a"), ("b:latest", "b")):
        assert registry.lookup(asked).name == name
    known = served_models(["qwen3-embedding-8b", "qwen3-embedding-0.6b:q8_0"])
    registry = Registry(known, lambda _: pytest.fail("nothing is loaded"), memory_of=lambda _: 1)
    for asked, served in (
        ("qwen3-embedding:latest", known[0]), ("qwen3-embedding:0.6b", known[1]),
        ("Qwen/Qwen3-Embedding-0.6B", known[1]), ("qwen3-embedding-0.6b", known[1]),
    ):  # fmt: skip
        assert registry.lookup(asked) is served


def test_show_takes_the_old_field_and_gives_everything_when_asked(real: Running) -> None:
    assert post(real, "/api/show", {"name": DEFAULT_MODEL}) == post(real, "/api/show", {"model": DEFAULT_MODEL})
    whole = post(real, "/api/show", {"model": DEFAULT_MODEL, "verbose": True})
    assert whole["model_info"]["tokenizer.ggml.tokens"][101] == "[CLS]"


def test_a_digest_is_the_recorded_one_or_stands_for_the_file(tmp_path: Any) -> None:
    """No list reads gigabytes: where no digest is recorded, one changes with name, size and time."""
    shipped = Served("m", DEFAULT_MODEL)
    assert facts_of(shipped).digest == store.sha256(shipped.path)
    content = Served("m", DEFAULT_MODEL).path.read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    stand_in = facts_of(Served("m", str(path))).digest
    assert stand_in == facts_of(Served("other", str(path))).digest
    (tmp_path / "other.gguf").write_bytes(content)
    assert stand_in != facts_of(Served("m", str(tmp_path / "other.gguf"))).digest
    path.write_bytes(content + bytes(32))
    recorded = store.StoredModel("m", "q8_0", "Org/M", "r", None, "ab" * 32, len(content) + 32, "mit", path)
    store.record(recorded)
    assert facts_of(Served("m", str(path))).digest == "ab" * 32


def test_file_types_are_those_of_ggufs_own_package() -> None:
    theirs = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    assert theirs.items() >= FILE_TYPES.items()


def test_a_list_leaves_out_what_is_not_here_or_damaged_and_fetches_nothing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_download(*_: object, **__: object) -> None:
        raise AssertionError("a list fetched a model")

    monkeypatch.setattr("edge_embed.provision.plan", no_download)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    served = [
        Served("elsewhere", "qwen3-embedding-0.6b", download=True), Served("bad", str(tmp_path / "bad.gguf")),
        Served("good", DEFAULT_MODEL),
    ]  # fmt: skip
    registry = Registry(served, lambda _: pytest.fail("nothing is loaded"), memory_of=lambda _: 1)
    assert [one.served.name for one in all_listed(registry)] == ["good"]
    assert registry.find("elsewhere", "embedding") == (served[0], None)  # what it is, is known without its file


# Models come and go


def test_ps_tells_what_is_in_memory_and_until_when() -> None:
    with fake_server(keep_alive=300) as server, ollama.Client(host=server.url) as client:
        assert client.ps().models == []
        client.embed(EMBED, "a")
        (model,) = client.ps().models
        assert (model.name, model.model) == (f"{EMBED}:latest", f"{EMBED}:latest")
        assert (model.size, model.size_vram, model.context_length) == (100, 0, 512)
        assert expires_in(client) == pytest.approx(300, abs=30)
        client.embed(EMBED, "a", keep_alive="2h")
        assert expires_in(client) == pytest.approx(7200, abs=30)
        client.embed(EMBED, "a")  # which says nothing about it
        assert expires_in(client) == pytest.approx(7200, abs=30)
        client.embed(EMBED, "a", keep_alive=60.5)
        assert expires_in(client) == pytest.approx(60, abs=30)
        client.embed(EMBED, "a", keep_alive=-1)
        assert expires_in(client) > timedelta(days=36_500).total_seconds()
        assert server.opened == [EMBED]


def expires_in(client: ollama.Client) -> float:
    expires = client.ps().models[0].expires_at
    assert expires is not None
    return (expires - datetime.now(timezone.utc)).total_seconds()


@pytest.mark.parametrize("body", [{"input": ""}, {"input": []}, {}, {"input": None}])
def test_embedding_nothing_loads_the_model(body: dict[str, Any]) -> None:
    with fake_server() as server:
        answer = post(server, "/api/embed", {"model": f"{EMBED}:latest", "keep_alive": "10m", **body})
        assert (answer["model"], answer["embeddings"], answer["prompt_eval_count"]) == (f"{EMBED}:latest", [], 0)
        assert answer["load_duration"] > 0
        assert server.opened == [EMBED]
        assert [one.keep_alive for one in server.registry.loaded()] == [600]


def test_a_prompt_of_nothing_loads_the_model() -> None:
    with fake_server() as server:
        assert post(server, "/api/embeddings", {"model": EMBED, "prompt": ""}) == {"embedding": []}
        assert server.opened == [EMBED]


def test_keep_alive_of_0_unloads_when_the_answer_is_there() -> None:
    with fake_server() as server, ollama.Client(host=server.url) as client:
        assert len(client.embed(EMBED, "a", keep_alive=0).embeddings) == 1
        gone(server)
        client.embed(EMBED, "a")
        client.embed(EMBED, "", keep_alive="0s")
        gone(server)
        assert server.opened == [EMBED, EMBED]
        assert server.engines[EMBED].closed
        client.embed(EMBED, "", keep_alive=0)  # nothing is loaded to be unloaded
        assert server.opened == [EMBED, EMBED]


def gone(server: Running) -> None:
    """Nothing is in memory, soon: a model is freed behind the answer."""
    with server.registry._lock:
        assert server.registry._lock.wait_for(lambda: not server.registry._loaded, timeout=30)


def test_a_model_that_nobody_uses_goes_by_itself() -> None:
    with fake_server(keep_alive=300) as server, ollama.Client(host=server.url) as client:
        client.embed(EMBED, "a", keep_alive="1ms")
        gone(server)
        assert client.ps().models == []


def test_the_model_used_longest_ago_makes_room() -> None:
    with fake_server(("a", "b", "c"), memory_limit=200) as server, ollama.Client(host=server.url) as client:
        for name in ("a", "b", "a", "c"):
            client.embed(name, "text", keep_alive=-1)
        assert [model.name for model in client.ps().models] == ["c:latest", "a:latest"]
        assert server.opened == ["a", "b", "c"]
        assert server.engines["b"].closed


def test_generate_and_chat_load_and_unload_either_kind(fake: Running) -> None:
    """``ollama stop`` and Open WebUI ask for it in this way; text is not written, and that is said."""
    with ollama.Client(host=fake.url) as client:
        for name in FAKES:
            assert client.generate(name).done_reason == "load"
        assert {model.model for model in client.ps().models} >= {f"{name}:latest" for name in FAKES}
        assert client.chat(RERANKER, [], keep_alive=0).done_reason == "unload"
        assert f"{RERANKER}:latest" not in {model.model for model in client.ps().models}
        with pytest.raises(ollama.ResponseError, match='"fake-embed" does not support generate') as caught:
            client.generate(EMBED, "Once upon a time")
        assert caught.value.status_code == 400
        with pytest.raises(ollama.ResponseError, match="does not support generate or chat"):
            client.chat(EMBED, [{"role": "user", "content": "hi"}])


def test_pull_succeeds_for_what_is_served_and_is_refused_for_the_rest(fake: Running) -> None:
    with ollama.Client(host=fake.url) as client:
        assert client.pull(EMBED).status == "success"
        assert [step.status for step in client.pull(EMBED, stream=True)][-1] == "success"
        for stream in (False, True):
            with pytest.raises(ollama.ResponseError, match=r"llama9.*edge-embed pull") as caught:
                list(client.pull("llama9", stream=stream))
            assert caught.value.status_code == 404


def test_what_makes_moves_or_deletes_models_is_refused_with_the_reason(fake: Running) -> None:
    with ollama.Client(host=fake.url) as client:
        for ask, reason in (
            (lambda: client.delete(EMBED), "deleting a model over HTTP is not offered"),
            (lambda: client.copy(EMBED, "other"), "--alias"),
            (lambda: client.create("other", from_=EMBED), "edge-embed convert"),
            (lambda: client.push(EMBED), "publishing a model"),
        ):
            with pytest.raises(ollama.ResponseError, match=reason) as caught:
                ask()
            assert caught.value.status_code == 501


# Translation, over engines that count tokens


def test_fields_reach_the_model(fake: Running) -> None:
    """Prompts by every name that clients use; ``num_ctx`` is the most tokens of a text."""
    with fake_embedder() as own:
        for asked, expected in (
            ({"model": f"{EMBED}:query"}, own.encode_query(["abc"])),
            ({"model": EMBED, "input_type": "document"}, own.encode_document(["abc"])),
            ({"prompt_name": "query"}, own.encode(["abc"], prompt_name="query")),
            ({"prompt": "passage: "}, own.encode(["abc"], prompt="passage: ")),
            ({"instruction": "find"}, own.encode(["abc"], instruction="find")),
            ({"options": {"num_ctx": 4}}, own.encode(["abc"], max_tokens=4)),
            ({"options": {"num_ctx": 4.0}}, own.encode(["abc"], max_tokens=4)),
            ({"options": {"num_ctx": 10**30}}, own.encode(["abc"])),
            ({"options": {"num_ctx": 0}}, own.encode(["abc"])),
            ({"dimensions": 0}, own.encode(["abc"])),
            ({"dimensions": -5}, own.encode(["abc"])),
            ({"dimensions": 3}, own.encode(["abc"], truncate_dim=3)),
            ({"dimensions": 10**30}, own.encode(["abc"])),
        ):
            same(post(fake, "/api/embed", {"input": "abc", **asked})["embeddings"], expected)
        legacy = post(fake, "/api/embeddings", {"prompt": "abcdef", "options": {"num_ctx": 5}})["embedding"]
        same(legacy, own.encode(["abcdef"], max_tokens=5, normalize=False)[0])


def test_truncate_false_is_refused_in_the_words_that_clients_look_for(fake: Running) -> None:
    """Of what is too long alone; one that fits is not, also where ``num_ctx`` sets the limit."""
    long = "x" * 511
    assert len(post(fake, "/api/embed", {"input": long})["embeddings"]) == 1
    assert len(post(fake, "/api/embed", {"input": "x" * 510, "truncate": False})["embeddings"]) == 1
    for body in ({"input": long}, {"input": ["short", long]}, {"input": "xxxx", "options": {"num_ctx": 5}}):
        answer = httpx.post(f"{fake.url}/api/embed", json={**body, "truncate": False})
        assert answer.status_code == 400
        assert "the input length exceeds the context length" in answer.json()["error"]


def test_the_root_is_a_page_for_browsers_and_ollamas_words_for_programs(fake: Running) -> None:
    for method in ("GET", "HEAD"):
        answer = httpx.request(method, f"{fake.url}/")
        assert answer.status_code == 200
        assert answer.text == ("Ollama is running" if method == "GET" else "")
    page = httpx.get(f"{fake.url}/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert httpx.head(f"{fake.url}/api/tags").status_code == 200
    version = httpx.get(f"{fake.url}/api/version").json()["version"]
    assert [int(part) for part in version.split(".")] >= [0, 12, 0]  # embeds several texts, and cuts vectors


def test_show_lists_the_two_sizes_first_whatever_else_the_file_has(fake: Running) -> None:
    """Programs take the first key that contains the words."""
    for name, size, capability in ((EMBED, 16, "embedding"), (RERANKER, 1, "rerank")):
        shown = post(fake, "/api/show", {"model": name})
        first = list(shown["model_info"].items())[:2]
        assert first == [("fake.context_length", 512), ("fake.embedding_length", size)]
        assert shown["capabilities"] == [capability]
        assert shown["parameters"] == "num_ctx 512"


def test_metadata_of_the_file_is_shown(fake: Running) -> None:
    own = read_header(Served("m", DEFAULT_MODEL).path).metadata
    shown = post(fake, "/api/show", {"model": EMBED})["model_info"]
    assert {key for key, value in own.items() if not isinstance(value, list)} <= shown.keys()
    assert math.isclose(shown["bert.attention.layer_norm_epsilon"], own["bert.attention.layer_norm_epsilon"])


# What is wrong


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/api/show", "/api/pull", "/api/generate"])
def test_no_body_ends_in_anything_but_a_short_error(fake: Running, path: str) -> None:
    """Wrong types, wrong JSON, wrong bytes; a sentence each."""
    fields = ("model", "name", "input", "prompt", "truncate", "dimensions", "keep_alive", "options", "messages")
    wrong = [{"model": EMBED, field: value} for field in fields for value in ([[]], {"a": 1}, True, 7, "\x00", 1e308)]
    raw = [b"", b"[]", b"null", b"7", b'"a"', b"{", b"\xff\xfe", b'{"model": "\\ud800"}', b"[" * 100_000, b"{}x"]
    with httpx.Client(base_url=fake.url) as client:
        for body in [*wrong, *raw]:
            answer = client.post(path, **({"content": body} if isinstance(body, bytes) else {"json": body}))
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.status_code != 200:
                assert set(answer.json()) == {"error"}
                assert 0 < len(answer.json()["error"]) < 700


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/embed", {"input": [1, 2, 3]}, 400, "invalid input type"),
        ("/api/embed", {"input": [[1, 2], [3]]}, 400, "invalid input type"),
        ("/api/embed", {"input": ["a", 7]}, 400, "invalid input type"),
        ("/api/embed", {"input": 7}, 400, "invalid input type"),
        ("/api/embed", {"input": {"text": "a"}}, 400, "invalid input type"),
        ("/api/embed", {"input": "a", "model": "llama9"}, 404, "'llama9' is not served here"),
        ("/api/embed", {"input": "", "model": "llama9"}, 404, "model not found"),
        ("/api/embed", {"input": "a", "model": RERANKER}, 400, "is a reranker"),
        ("/api/embed", {"input": "", "model": RERANKER}, 400, "is a reranker"),
        ("/api/embed", {"input": ["a"] * 2049}, 413, "2049 texts"),
        ("/api/embed", {"input": "a", "keep_alive": "soon"}, 400, "'soon' is not a time"),
        ("/api/embed", {"input": "", "keep_alive": "5"}, 200, ""),
        ("/api/embed", {"input": "a", "keep_alive": True}, 400, "keep_alive"),
        ("/api/embed", {"input": "a", "options": {"num_ctx": "many"}}, 400, "num_ctx"),
        ("/api/embed", {"input": "a", "options": {"num_ctx": 2}}, 400, "max_tokens"),
        ("/api/embed", {"input": "a", "dimensions": 1.5}, 400, "dimensions"),
        ("/api/embed", {"input": "a", "input_type": "poem"}, 400, "'poem' is not known"),
        ("/api/embed", {"input": "a", "prompt_name": "poem"}, 400, "poem"),
        ("/api/embeddings", {"prompt": ["a"]}, 400, "prompt"),
        ("/api/embeddings", {"prompt": "a", "model": RERANKER}, 400, "is a reranker"),
        ("/api/embeddings", {"prompt": "a", "model": "../../etc/passwd"}, 404, "not served here"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": ""}, 400, "model is required"),
        ("/api/show", {"model": "llama9"}, 404, "model not found"),
        ("/api/pull", {}, 400, "model is required"),
        ("/api/generate", {"model": "llama9"}, 404, "model not found"),
    ],
)
def test_what_is_wrong_is_said(fake: Running, path: str, body: dict[str, Any], status: int, words: str) -> None:
    answer = httpx.post(f"{fake.url}{path}", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json().get("error", "")


def test_what_is_too_long_for_json_numbers_is_no_time(fake: Running) -> None:
    for written, status in (("NaN", 400), ("Infinity", 200), ("1e400", 200), ("1" + "0" * 400, 200)):
        answer = httpx.post(f"{fake.url}/api/embed", content=f'{{"input": "", "keep_alive": {written}}}')
        assert answer.status_code == status, (written, answer.text)


def test_a_key_is_asked_for_where_there_is_one() -> None:
    """By every route that names or uses a model; whether an Ollama is here may be asked without."""
    with fake_server(settings=replace(QUIET, api_keys=("secret",))) as server:
        for path in ("/api/tags", "/api/ps", "/api/v0/models"):
            assert httpx.get(f"{server.url}{path}").status_code == 401
            assert httpx.get(f"{server.url}{path}", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert httpx.post(f"{server.url}/api/embed", json={"input": "a"}).json()["error"].startswith("a key is needed")
        assert httpx.get(f"{server.url}/").text == "Ollama is running"
        with ollama.Client(server.url, headers={"Authorization": "Bearer secret"}) as client:
            assert len(client.embed(EMBED, "a").embeddings) == 1
