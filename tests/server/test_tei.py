"""text-embeddings-inference's routes: real clients, unmodified, and the exact requests of Continue and Dify."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from edge_embed import Embedder, __version__
from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.errors import NonFiniteError, NotReadyError, PayloadTooLargeError, QueueFullError, TextTooLongError
from edge_embed.server.families import TEI
from edge_embed.testing import FakeEngine, fake_embedder, fake_reranker
from tests.serving import FAKES, QUIET, Running, fake_server

EMBED, RERANKER = FAKES
TEXTS = ["A cat sleeps on the windowsill.", "", "Die Zentralbank hob die Zinsen.", "猫が窓辺で眠る。" * 60]


def post(server: Running, path: str, **body: Any) -> Any:
    """The answer to a body, which is a success."""
    answer = httpx.post(f"{server.url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Running, path: str, body: Any, status: int) -> str:
    """What is said of a body that is not answered, in TEI's shape."""
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert said["error_type"] == ("Backend" if status == 424 else "Validation")
    return str(said["error"])


# Clients


def test_llama_index_gets_the_librarys_vectors_bit_for_bit(real: Running, library: Embedder) -> None:
    client = TextEmbeddingsInference(model_name=DEFAULT_MODEL, base_url=real.url, embed_batch_size=32)
    found = np.array(client.get_text_embedding_batch(TEXTS), dtype=np.float32)
    assert np.array_equal(found, library.encode(TEXTS))
    query = np.array(client.get_query_embedding("Wer hob die Zinsen?"), dtype=np.float32)
    assert np.array_equal(query, library.encode("Wer hob die Zinsen?"))
    later = asyncio.run(client.aget_text_embedding("later"))
    assert np.array_equal(np.array(later, dtype=np.float32), library.encode("later"))


def test_hugging_faces_inference_client_embeds_at_the_bare_address(real: Running, library: Embedder) -> None:
    client = InferenceClient(real.url)
    found = client.feature_extraction(TEXTS, normalize=True, truncate=True, truncation_direction="left")
    assert found.dtype == np.float32
    assert np.array_equal(found, library.encode(TEXTS, truncate="left"))
    assert np.array_equal(client.feature_extraction("a cat"), library.encode(["a cat"]))
    raw = client.feature_extraction("a cat", normalize=False)
    assert np.array_equal(raw, library.encode(["a cat"], normalize=False))
    assert np.array_equal(client.feature_extraction("a", dimensions=64), library.encode(["a"], truncate_dim=64))


def test_hugging_faces_inference_client_asks_for_the_model_of_a_whole_route(real: Running, library: Embedder) -> None:
    client = InferenceClient(f"{real.url}/embed")
    assert np.array_equal(client.feature_extraction("a cat"), library.encode(["a cat"]))


def test_hugging_faces_inference_client_compares_sentences(real: Running, library: Embedder) -> None:
    others = ["A kitten naps by the window.", "Interest rates rose."]
    expected = library.similarity(library.encode(TEXTS[:1]), library.encode(others))[0]
    for address in (real.url, f"{real.url}/similarity"):
        found = InferenceClient(address).sentence_similarity(TEXTS[0], other_sentences=others)
        assert found == pytest.approx(expected.tolist(), abs=1e-6)
        assert found[0] > found[1]


def test_the_inference_client_shows_what_was_wrong(fake: Running) -> None:
    with pytest.raises(HfHubHTTPError, match="no prompt named 'nothing'"):
        InferenceClient(fake.url).feature_extraction("a", prompt_name="nothing")


def test_langchains_older_endpoint_class_posts_to_the_root(fake: Running) -> None:
    """``HuggingFaceEndpointEmbeddings``: ``{inputs, parameters}`` where ``parameters`` is empty."""
    with fake_embedder() as embedder:
        expected = embedder.encode(["a", "b"]).tolist()
    body = json.dumps({"inputs": ["a", "b"], "parameters": {}}).encode()
    answer = httpx.post(fake.url, content=body, headers={"content-type": "application/octet-stream"})
    assert answer.json() == [pytest.approx(row) for row in expected]


# Applications


def test_continue_looks_at_the_model_embeds_and_ranks(fake: Running) -> None:
    """Its provider ``huggingface-tei``."""
    info = httpx.get(f"{fake.url}/info", headers={"Authorization": "Bearer"}).json()
    assert (info["model_id"], info["max_client_batch_size"]) == (EMBED, 32)
    vectors = post(fake, "/embed", inputs=["one", "two"])
    assert [len(vector) for vector in vectors] == [16, 16]
    ranks = post(
        fake, "/rerank", query="q", return_text=False, raw_scores=False, texts=["a", "bbb", "cc"],
        truncation_direction="Right", truncate=True,
    )  # fmt: skip
    assert ranks == [{"index": 1, "score": 7.0}, {"index": 2, "score": 6.0}, {"index": 0, "score": 5.0}]


def test_dify_looks_what_kind_the_model_is(fake: Running) -> None:
    """The first key of ``model_type`` decides; a reranker is served by itself, or comes first, for that."""
    info = httpx.get(f"{fake.url}/info").json()
    assert next(iter(info["model_type"])) == "embedding"
    assert info["max_input_length"] == 512
    with fake_server([RERANKER]) as server:
        info = httpx.get(f"{server.url}/info").json()
        assert info["model_type"] == {"reranker": {"id2label": {"0": "score"}, "label2id": {"score": 0}}}
        ranks = post(server, "/rerank", query="q", texts=["a", "bb"], return_text=True)
    assert ranks == [{"index": 1, "text": "bb", "score": 6.0}, {"index": 0, "text": "a", "score": 5.0}]
    embedded = post(fake, "/v1/embeddings", input=["one"])  # without a model
    assert len(embedded["data"][0]["embedding"]) == 16


# What routes answer


def test_info_is_what_tei_says(real: Running, library: Embedder) -> None:
    found = httpx.get(f"{real.url}/info").json()
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (found["model_id"], found["model_dtype"], found["version"]) == (DEFAULT_MODEL, "q8_0", __version__)
    assert found["max_input_length"] == library.info.max_tokens
    assert set(found) == {
        "model_id", "model_sha", "model_dtype", "served_model_name", "model_type", "max_concurrent_requests",
        "max_input_length", "max_batch_tokens", "max_batch_requests", "max_client_batch_size", "auto_truncate",
        "tokenization_workers", "version", "sha", "docker_label",
    }  # fmt: skip


def test_info_of_another_model_is_asked_for_by_name(fake: Running) -> None:
    found = httpx.get(f"{fake.url}/info", params={"model": RERANKER}).json()
    assert next(iter(found["model_type"])) == "reranker"
    answer = httpx.get(f"{fake.url}/info", params={"model": "nobody"})
    assert (answer.status_code, answer.json()["error_type"]) == (404, "Validation")


def test_a_list_may_hold_texts_and_token_ids(fake: Running) -> None:
    with fake_embedder() as embedder:
        ids = embedder.tokenize("ab").token_ids.tolist()
        expected = [pytest.approx(row) for row in embedder.encode(["ab", "c"]).tolist()]
    assert post(fake, "/embed", inputs=[ids, "c"]) == expected
    assert post(fake, "/embed", inputs=ids) == expected[:1]
    assert post(fake, "/embed", inputs="ab") == expected[:1]


@pytest.mark.parametrize(
    ("field", "value", "options"),
    [
        ("truncation_direction", "Left", {"truncate": "left"}),
        ("truncation_direction", "left", {"truncate": "left"}),
        ("truncation_direction", "Right", {"truncate": "right"}),
        ("normalize", False, {"normalize": False}),
        ("normalize", None, {"normalize": True}),
        ("dimensions", 5, {"truncate_dim": 5}),
        ("prompt_name", "query", {"prompt_name": "query"}),
        ("prompt", "task: ", {"prompt": "task: "}),
        ("input_type", "document", {"role": "document"}),
        ("instruction", "find it", {"instruction": "find it"}),
        ("model", f"{EMBED}:query", {"role": "query"}),
    ],
)
def test_a_field_does_what_the_librarys_does(field: str, value: Any, options: dict[str, Any], fake: Running) -> None:
    text = "".join(chr(97 + i % 26) for i in range(400)) + "zyx" * 100
    with fake_embedder() as embedder:
        expected = embedder.encode([text], **options)[0].tolist()
        assert expected != embedder.encode([text])[0].tolist() or value in ("Right", None)
    assert post(fake, "/embed", inputs=text, **{field: value}) == [pytest.approx(expected, abs=1e-6)]


def test_a_text_that_may_not_be_cut_is_refused(fake: Running) -> None:
    assert "has 602 tokens, and the limit is 512" in refused(
        fake, "/embed", {"inputs": "a" * 600, "truncate": False}, 422
    )


def test_vectors_of_all_tokens(real: Running, library: Embedder) -> None:
    expected = library.embed(TEXTS[:2], output="tokens").token_vectors
    found = post(real, "/embed_all", inputs=TEXTS[:2])
    assert expected is not None
    assert [len(vectors) for vectors in found] == [len(vectors) for vectors in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(ours), theirs, rtol=0, atol=1e-5)


def test_parameters_of_a_similarity_count(fake: Running) -> None:
    sentences = {"source_sentence": "a", "sentences": ["a", "b"]}
    with fake_embedder() as embedder:
        vectors = embedder.encode(["a", "a", "b"], prompt_name="query")
        expected = embedder.similarity(vectors[:1], vectors[1:])[0].tolist()
    found = post(fake, "/similarity", inputs=sentences, parameters={"prompt_name": "query"})
    assert found == pytest.approx(expected, abs=1e-6)
    assert found != pytest.approx(post(fake, "/similarity", inputs=sentences), abs=1e-3)
    assert "no prompt named" in refused(
        fake, "/similarity", {"inputs": sentences, "parameters": {"prompt_name": "x"}}, 422
    )


def test_the_root_ranks_a_query_and_texts(fake: Running) -> None:
    assert post(fake, "/", query="q", texts=["a", "bb"]) == post(fake, "/rerank", query="q", texts=["a", "bb"])


def test_predictions_of_pairs(fake: Running) -> None:
    with fake_reranker() as reranker:
        expected = reranker.predict([("q", "abc"), ("query", "d")]).tolist()
    found = post(fake, "/predict", inputs=[["q", "abc"], ["query", "d"]])
    assert found == [[{"score": score, "label": "score"}] for score in expected]
    assert post(fake, "/predict", inputs=["q", "abc"]) == found[0]
    for inputs in ("alone", ["alone"], [["alone"]], [["a", "b", "c"]]):
        assert "input 0 is not a pair" in refused(fake, "/predict", {"inputs": inputs}, 422)


def test_sparse_vectors_are_refused_with_the_reason(fake: Running) -> None:
    assert "SPLADE" in refused(fake, "/embed_sparse", {"inputs": "a"}, 424)


def test_ping_is_health(fake: Running) -> None:
    assert httpx.get(f"{fake.url}/ping").json() == {"status": "ok"}


# Tokens


def test_tokens_have_their_bytes_of_the_text(real: Running, library: Embedder) -> None:
    text = "Embedding a café, 猫."
    (tokens,) = post(real, "/tokenize", inputs=text)
    assert [token["id"] for token in tokens] == library.tokenize(text).token_ids.tolist()
    assert tokens[0] == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
    raw = text.encode()
    inside = [token for token in tokens if not token["special"]]
    assert [raw[token["start"] : token["stop"]].decode() for token in inside] == [token["text"] for token in inside]
    assert [token["text"] for token in inside] == ["Em", "bed", "ding", "a", "café", ",", "猫", "."]
    (bare,) = post(real, "/tokenize", inputs=[text], add_special_tokens=False)
    assert bare == inside


def test_tokens_are_never_cut(real: Running, library: Embedder) -> None:
    """Clients count tokens here before they split a text."""
    assert len(post(real, "/tokenize", inputs="cat " * 1000)[0]) == 1002 > library.info.max_tokens


def test_tokens_have_the_prompt_that_is_named_and_no_other(fake: Running) -> None:
    prompted, plain = (
        [token["id"] for token in post(fake, "/tokenize", inputs="a", **more)[0]]
        for more in ({"prompt_name": "query"}, {})
    )
    assert prompted == [1, *(3 + byte for byte in b"query: a"), 2]
    assert plain == [1, 3 + ord("a"), 2]
    by_name = post(fake, "/tokenize", inputs="a", model=f"{EMBED}:query")[0]
    assert [token["id"] for token in by_name] == prompted


def test_llama_servers_shape(real: Running) -> None:
    found = post(real, "/tokenize", content="café 猫")
    assert found == {"tokens": [7668, 100]}
    assert post(real, "/tokenize", content="café 猫", add_special=True) == {"tokens": [101, 7668, 100, 102]}
    pieces = post(real, "/tokenize", content="embedding", with_pieces=True)["tokens"]
    assert [piece["piece"] for piece in pieces] == ["em", "##bed", "##ding"]
    assert post(real, "/detokenize", tokens=[7861, 8270, 4667])["content"] == "embedding"


def test_vllms_shape(real: Running, library: Embedder) -> None:
    found = post(real, "/tokenize", prompt="embedding", model=DEFAULT_MODEL, return_token_strs=True)
    assert found == {
        "count": 5,
        "max_model_len": library.info.max_tokens,
        "tokens": [101, 7861, 8270, 4667, 102],
        "token_strs": ["[CLS]", "em", "##bed", "##ding", "[SEP]"],
    }


def test_ids_become_text_again(real: Running) -> None:
    ids = [101, 7861, 8270, 4667, 1010, 7592, 102]
    assert post(real, "/decode", ids=ids) == ["embedding, hello"]
    assert post(real, "/decode", ids=[ids, [7592]]) == ["embedding, hello", "hello"]
    assert post(real, "/decode", ids=ids, skip_special_tokens=False) == ["[CLS] embedding, hello [SEP]"]
    assert "ids from 0 to 30521" in refused(real, "/decode", {"ids": [30522]}, 422)
    assert "ids from 0 to 30521" in refused(real, "/decode", {"ids": [[1], [-1]]}, 422)


def test_a_server_of_rerankers_alone_tokenizes_with_one() -> None:
    with fake_server([RERANKER]) as server:
        assert [token["id"] for token in post(server, "/tokenize", inputs="a")[0]] == [1, 3 + ord("a"), 2]


# What is refused


ROUTES = ["/embed", "/embed_all", "/embed_sparse", "/similarity", "/tokenize", "/decode", "/predict"]
HOSTILE: list[bytes] = [
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"inputs": NaN}', b'{"inputs": null}', b'{"inputs": {}}',
    b'{"inputs": 1}', b'{"inputs": []}', b'{"inputs": [[]]}', b'{"inputs": [[[]]]}', b'{"inputs": [null]}',
    b'{"inputs": ["a", 1]}', b'{"inputs": [1.5]}', b'{"inputs": [true]}', b'{"inputs": "\\ud800"}',
    b'{"inputs": [99999999999999999999999]}', b'{"inputs": [-1]}', b'{"inputs": ["a", "\\udc00"]}',
    b'{"inputs": "a", "dimensions": 0}', b'{"inputs": "a", "dimensions": 1e400}', b'{"inputs": "a", "dimensions": "4"}',
    b'{"inputs": "a", "truncation_direction": "Up"}', b'{"inputs": "a", "truncate": "yes"}',
    b'{"inputs": "a", "prompt_name": 3}', b'{"inputs": "a", "prompt_name": "x", "prompt": "y"}',
    b'{"inputs": "a", "model": "nobody"}', b'{"inputs": "a", "normalize": 0}', b'{"inputs": ' + b"[" * 10000,
    b'{"inputs": {"source_sentence": "a", "sentences": []}}', b'{"inputs": {"source_sentence": 1, "sentences": ["a"]}}',
    b'{"ids": []}', b'{"ids": [[1], "a"]}', b'{"ids": [[1], 2]}', b'{"ids": "a"}', b'{"tokens": [[1]]}',
    b'{"content": 1}', b'{"prompt": ["a"]}', b'{"query": "q", "texts": []}', b'{"query": "q"}', b'{"texts": ["a"]}',
]  # fmt: skip


@pytest.mark.parametrize("path", [*ROUTES, "/", "/detokenize"])
def test_hostile_bodies_are_answered_in_teis_words(path: str, fake: Running) -> None:
    """With success, where a route takes them; otherwise with what was wrong."""
    with httpx.Client(base_url=fake.url) as client:
        for body in HOSTILE:
            answer = client.post(path, content=body)
            assert answer.status_code in (200, 400, 404, 422, 424), (body[:60], answer.text)
            if answer.status_code != 200:
                said = answer.json()
                assert said["error_type"] in ("Validation", "Backend"), body[:60]
                assert len(said["error"]) > 10
        assert client.post("/embed", json={"inputs": "still there"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": []}),
        ("/embed", {}),
        ("/embed", {"inputs": "a", "dimensions": 17}),
        ("/embed_all", {"inputs": []}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}),
        ("/tokenize", {"inputs": []}),
        ("/tokenize", {}),
        ("/decode", {"ids": []}),
        ("/predict", {"inputs": []}),
        ("/", {}),
    ],
)
def test_what_is_wrong_with_a_body_is_422(path: str, body: dict[str, Any], fake: Running) -> None:
    assert refused(fake, path, body, 422)


def test_statuses_are_teis() -> None:
    expected = {
        QueueFullError("full", retry_after=3.0): (429, "Overloaded"),
        NotReadyError("starting"): (503, "Unhealthy"),
        PayloadTooLargeError("long"): (413, "Validation"),
        TextTooLongError(0, 9, 8): (422, "Validation"),
        NonFiniteError([0]): (424, "Backend"),
    }
    assert {
        error: (TEI.status(error), TEI.body(error, TEI.status(error))["error_type"]) for error in expected
    } == expected


def test_more_texts_than_the_server_takes_are_413() -> None:
    with fake_server(settings=replace(QUIET, max_texts=2)) as server:
        assert httpx.get(f"{server.url}/info").json()["max_client_batch_size"] == 2
        for path, body in (
            ("/embed", {"inputs": ["a"] * 3}),
            ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}),
            ("/predict", {"inputs": [["a", "b"]] * 3}),
            ("/tokenize", {"inputs": ["a"] * 3}),
            ("/decode", {"ids": [[1]] * 3}),
        ):
            assert "the limit is 2" in refused(server, path, body, 413)


def test_answers_that_would_fill_the_memory_are_413(fake: Running) -> None:
    for path, body in (
        ("/tokenize", {"inputs": ["a" * 300_000] * 2}),
        ("/tokenize", {"inputs": "a" * 4_000_001}),
        ("/decode", {"ids": [[1] * 300_000] * 2}),
    ):
        assert "the limit is" in refused(fake, path, body, 413)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_embed.server.service._MOST_VALUES", 16 * 10)
        assert "has 208 values" in refused(fake, "/embed_all", {"inputs": ["a", "bb", "a", "c"]}, 413)
        assert len(post(fake, "/embed_all", inputs=["a", "bb"])) == 2


def test_values_that_are_none_are_an_error_and_not_an_answer() -> None:
    with fake_server([EMBED], engine=FakeEngine(poison=3 + ord("x"))) as server:
        assert "non-finite" in refused(server, "/embed", {"inputs": ["a", "x"]}, 424)
        assert "non-finite" in refused(
            server, "/similarity", {"inputs": {"source_sentence": "a", "sentences": ["x"]}}, 424
        )
        assert len(post(server, "/embed", inputs=["a", "b"])) == 2


def test_timings_and_tokens_are_in_the_headers(fake: Running) -> None:
    headers = httpx.post(f"{fake.url}/embed", json={"inputs": ["abc", "d"]}).headers
    assert headers["x-compute-tokens"] == "8"
    assert {"x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"} <= set(headers)
    assert httpx.post(f"{fake.url}/tokenize", json={"inputs": "abc"}).headers["x-compute-tokens"] == "5"
