"""Rerank routes: real clients, unmodified, and the exact requests of applications; scores are the library's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import pytest
from cohere.core.api_error import ApiError
from langchain_cohere import CohereRerank
from langchain_core.documents import Document

from edge_embed import Reranker
from edge_embed.testing import FakeEngine, fake_reranker
from tests.serving import FAKES, QUIET, Running, fake_server, real_server

EMBED, RERANKER = FAKES
ROUTES = ["/rerank", "/v1/rerank", "/v2/rerank", "/api/rerank"]
DOCUMENTS = ["a", "bbbb", "cc", "dd"]
"""The longer, the better: 1, then 2 and 3, which are equal, then 0."""
ORDER = [1, 2, 3, 0]
SCORES = [8.0, 6.0, 6.0, 5.0]  # a token for each letter of query and document, and three special ones
RANKED = list(zip(ORDER, SCORES, strict=True))


@pytest.fixture(scope="module")
def real(reranker_path: Path) -> Iterator[Running]:
    """A tiny causal reranker of yes and no, beside the bundled embedding model."""
    with real_server("all-minilm-l6-v2", f"tiny-reranker={reranker_path}") as server:
        yield server


def post(server: Running, path: str, **body: Any) -> Any:
    """The answer to a body, which is a success."""
    answer = httpx.post(f"{server.url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# Clients


@pytest.fixture
def client(fake: Running) -> Iterator[cohere.ClientV2]:
    with httpx.Client() as transport:
        yield cohere.ClientV2(api_key="none", base_url=fake.url, httpx_client=transport)


def test_cohere_ranks(client: cohere.ClientV2) -> None:
    found = client.rerank(model=RERANKER, query="q", documents=DOCUMENTS, top_n=3)
    assert [(result.index, result.relevance_score) for result in found.results] == [(1, 8.0), (2, 6.0), (3, 6.0)]
    assert found.meta is not None
    assert found.meta.api_version is not None
    assert found.meta.api_version.version == "2"
    assert found.meta.billed_units is not None
    assert found.meta.billed_units.search_units == 1
    assert found.meta.tokens is not None
    assert found.meta.tokens.input_tokens == sum(SCORES)


def test_cohere_cuts_documents(client: cohere.ClientV2) -> None:
    found = client.rerank(model=RERANKER, query="q", documents=DOCUMENTS, max_tokens_per_doc=2)
    assert [(result.index, result.relevance_score) for result in found.results] == [(1, 6), (2, 6), (3, 6), (0, 5)]


def test_coheres_first_interface_returns_documents(fake: Running) -> None:
    with httpx.Client() as transport:
        first = cohere.Client(api_key="none", base_url=fake.url, httpx_client=transport)
        documents: list[Any] = [{"text": "a", "id": "one"}, {"text": "bbb", "id": "two"}]
        found = first.rerank(model=RERANKER, query="q", documents=documents, return_documents=True)
        assert [result.index for result in found.results] == [1, 0]
        assert found.results[0].document is not None
        assert (found.results[0].document.text, found.results[0].document.id) == ("bbb", "two")  # type: ignore[attr-defined]
        plain = first.rerank(model=RERANKER, query="q", documents=DOCUMENTS, return_documents=False)
        assert [result.document for result in plain.results] == [None] * 4


def test_cohere_is_told_what_is_wrong(client: cohere.ClientV2) -> None:
    with pytest.raises(ApiError) as caught:
        client.rerank(model="nobody", query="q", documents=["a"])
    assert caught.value.status_code == 404
    assert "'nobody' is not served" in caught.value.body["message"]


def test_langchain_compresses_documents(fake: Running) -> None:
    compressor = CohereRerank(model=RERANKER, cohere_api_key="none", base_url=fake.url, top_n=2)
    try:
        found = compressor.compress_documents([Document(text) for text in DOCUMENTS], "q")
    finally:
        compressor.client._client_wrapper.httpx_client.httpx_client.close()
    assert [(one.page_content, one.metadata["relevance_score"]) for one in found] == [("bbbb", 8.0), ("cc", 6.0)]


# Applications


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_open_webuis_external_reranker(path: str, fake: Running) -> None:
    """It sorts by ``index`` and takes the scores."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    body = {"model": RERANKER, "query": "q", "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
    results = httpx.post(f"{fake.url}{path}", json=body, headers=headers).json()["results"]
    assert [one["relevance_score"] for one in sorted(results, key=lambda one: one["index"])] == [5.0, 8.0, 6.0, 6.0]


def test_continues_reranker_reads_voyages_list(fake: Running) -> None:
    body = {"model": RERANKER, "query": "q", "documents": DOCUMENTS}
    answer = httpx.post(f"{fake.url}/v1/rerank", json=body, headers={"api-key": "none", "Authorization": "Bearer none"})
    assert [(one["index"], one["relevance_score"]) for one in answer.json()["data"]] == RANKED


def test_difys_openai_compatible_reranker(fake: Running) -> None:
    found = post(fake, "/v1/rerank", model=RERANKER, query="q", documents=DOCUMENTS, top_n=2)
    assert [(one["index"], one["document"]["text"]) for one in found["results"]] == [(1, "bbbb"), (2, "cc")]


def test_difys_ollama_reranker(fake: Running) -> None:
    """A document, where there is one, is a string."""
    found = post(fake, "/api/rerank", model=RERANKER, query="q", documents=DOCUMENTS, top_n=2)
    assert found["results"] == [{"index": 1, "relevance_score": 8.0}, {"index": 2, "relevance_score": 6.0}]
    found = post(fake, "/api/rerank", query="q", documents=DOCUMENTS, top_n=1, return_documents=True)
    assert found["results"] == [{"index": 1, "relevance_score": 8.0, "document": "bbbb"}]


# Shapes


def test_one_answer_is_jinas_coheres_and_voyages(fake: Running) -> None:
    found = post(fake, "/v1/rerank", query="q", documents=["a", "bb"], return_documents=True)
    assert (found["object"], found["model"]) == ("list", RERANKER)
    assert found["results"] == [
        {"index": 1, "relevance_score": 6.0, "document": {"text": "bb"}},
        {"index": 0, "relevance_score": 5.0, "document": {"text": "a"}},
    ]
    assert found["data"] == [
        {"index": 1, "relevance_score": 6.0, "document": "bb"},
        {"index": 0, "relevance_score": 5.0, "document": "a"},
    ]
    assert found["usage"] == {"prompt_tokens": 11, "total_tokens": 11}


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/rerank", {}, {"text": "b"}),  # as vLLM and Jina answer
        ("/v1/rerank", {}, {"text": "b"}),
        ("/v2/rerank", {}, None),  # as Cohere does
        ("/api/rerank", {}, None),
        ("/v1/rerank", {"return_documents": False}, None),
        ("/v1/rerank", {"top_k": 1}, None),  # as Voyage does
        ("/v1/rerank", {"truncation": True}, None),
        ("/v1/rerank", {"max_chunks_per_doc": 10}, None),  # as Cohere's first interface does
        ("/v2/rerank", {"return_documents": True}, {"text": "b"}),
        ("/rerank", {"raw_scores": False, "return_documents": True}, "b"),  # as Infinity does
        ("/rerank", {"raw_scores": False}, None),
        ("/v1/rerank", {"raw_scores": False, "return_documents": True}, {"text": "b"}),
        ("/v1/rerank", {"instruct": None, "return_documents": True}, {"text": "b"}),
    ],
)
def test_documents_come_back_as_each_dialect_has_it(
    path: str, more: dict[str, Any], expected: Any, fake: Running
) -> None:
    found = post(fake, path, query="q", documents=["b"], **more)
    assert found["results"][0].get("document") == expected
    assert found["object"] == ("rerank" if path == "/rerank" and "raw_scores" in more else "list")


def test_teis_answer_is_a_bare_list(fake: Running) -> None:
    assert post(fake, "/rerank", query="q", texts=["a", "bb"]) == [
        {"index": 1, "score": 6.0}, {"index": 0, "score": 5.0},
    ]  # fmt: skip
    assert post(fake, "/rerank", query="q", texts=["a"], return_text=True) == [{"index": 0, "text": "a", "score": 5.0}]


def test_documents_are_read_by_their_fields(fake: Running) -> None:
    documents = [
        {"text": "x", "title": "long title", "year": 2026, "note": None},
        {"text": "xx", "title": "t"},
        "plain",
    ]
    found = post(fake, "/v1/rerank", query="q", documents=documents, rank_fields=["title", "year"])
    assert [one["index"] for one in found["results"]] == [0, 2, 1]
    assert found["results"][0]["relevance_score"] == 4 + len("long title\n2026")
    found = post(fake, "/v1/rerank", query="q", documents=documents, return_documents=True)
    assert [one["document"] for one in found["results"]] == [{"text": "plain"}, documents[1], documents[0]]


def test_a_query_may_be_an_object(fake: Running) -> None:
    assert post(fake, "/v1/rerank", query={"text": "q"}, documents=["a"])["results"][0]["relevance_score"] == 5.0


@pytest.mark.parametrize("name", ["top_n", "top_k"])
def test_only_the_best_come_back(name: str, fake: Running) -> None:
    for n in (1, 2, 4, 9):
        found = post(fake, "/v1/rerank", query="q", documents=DOCUMENTS, **{name: n})
        assert [one["index"] for one in found["results"]] == ORDER[:n]


def test_a_search_is_a_hundred_documents(fake: Running) -> None:
    units = [
        post(fake, "/v2/rerank", query="q", documents=["a"] * n)["meta"]["billed_units"]["search_units"]
        for n in (1, 100, 101)
    ]
    assert units == [1, 1, 2]


def test_a_long_document_is_cut_unless_that_is_refused(fake: Running) -> None:
    long = "a" * 600
    assert post(fake, "/rerank", query="q", documents=[long])["usage"]["total_tokens"] == 512
    for more in ({"truncation": False}, {"truncate": False}, {"truncate": "NONE"}):
        answer = httpx.post(f"{fake.url}/rerank", json={"query": "q", "documents": ["a", long], **more})
        assert answer.status_code == 422
        assert "text 1 has 604 tokens, and the limit is 512" in answer.json()["message"]
    with fake_server(settings=replace(QUIET, truncate=False)) as server:
        assert httpx.post(f"{server.url}/rerank", json={"query": "q", "documents": [long]}).status_code == 422
        found = post(server, "/rerank", query="q", documents=[long], max_tokens_per_doc=7)
        assert found["usage"]["total_tokens"] == 11


# Scores


QUERY = "Which animals sleep?"
TEXTS = ["the cat sat on the mat", "", "good morning", "the cat sat on the mat", "猫が眠る。" * 20]


@pytest.mark.parametrize("raw_scores", [False, True])
@pytest.mark.parametrize("path", ROUTES)
def test_order_and_scores_are_the_librarys(path: str, raw_scores: bool, real: Running, reranker: Reranker) -> None:
    expected = reranker.rank(QUERY, TEXTS, raw_scores=raw_scores)
    found = post(real, path, query=QUERY, documents=TEXTS, raw_scores=raw_scores)["results"]
    assert [one["index"] for one in found] == [one.index for one in expected]
    assert [one["relevance_score"] for one in found] == pytest.approx([one.score for one in expected], abs=1e-6)
    assert found[0]["relevance_score"] > found[-1]["relevance_score"]


def test_equal_documents_stay_in_their_order_even_where_scores_are_all_one(real: Running, reranker: Reranker) -> None:
    found = [one["index"] for one in post(real, "/rerank", query=QUERY, documents=TEXTS)["results"]]
    assert found.index(0) + 1 == found.index(3)
    logits = reranker.predict([(QUERY, text) for text in TEXTS], raw_scores=True)
    assert found == np.argsort(-logits, kind="stable").tolist()


@pytest.mark.parametrize("name", ["instruction", "instruct"])
def test_an_instruction_is_the_models(name: str, real: Running, reranker: Reranker) -> None:
    expected = reranker.rank(QUERY, TEXTS, instruction="Find the animal")
    found = post(real, "/v1/rerank", query=QUERY, documents=TEXTS, **{name: "Find the animal"})["results"]
    assert [one["relevance_score"] for one in found] == pytest.approx([one.score for one in expected], abs=1e-6)
    assert expected[0].score != pytest.approx(reranker.rank(QUERY, TEXTS)[0].score, abs=1e-4)


def test_usage_counts_real_tokens(real: Running, reranker: Reranker) -> None:
    expected = reranker.score([(QUERY, text) for text in TEXTS]).usage.n_tokens
    assert post(real, "/v1/rerank", query=QUERY, documents=TEXTS)["usage"]["total_tokens"] == expected


def test_teis_predictions_are_named_yes(real: Running, reranker: Reranker) -> None:
    (found,) = post(real, "/predict", inputs=[QUERY, TEXTS[0]])
    assert found["label"] == "yes"
    assert found["score"] == pytest.approx(float(reranker.predict([(QUERY, TEXTS[0])])[0]), abs=1e-6)
    info = httpx.get(f"{real.url}/info", params={"model": "tiny-reranker"}).json()
    assert info["model_type"] == {"reranker": {"id2label": {"0": "yes"}, "label2id": {"yes": 0}}}


def test_a_score_that_is_none_is_an_error_and_not_an_answer() -> None:
    class Broken(FakeEngine):
        def __init__(self, **_: Any) -> None:
            super().__init__(n_embd=1, poison=3 + ord("x"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.serving.FakeEngine", Broken)
        with fake_server([RERANKER]) as server:
            for path in ROUTES:
                answer = httpx.post(f"{server.url}{path}", json={"query": "q", "documents": ["a", "x", "b"]})
                assert answer.status_code in (424, 500)
                assert "non-finite values for 1 text(s): 1" in answer.json()["message"]
            assert len(post(server, "/rerank", query="q", documents=["a", "b"])["results"]) == 2


# What is refused


@pytest.mark.parametrize("path", ROUTES)
def test_without_a_reranker_clients_are_told_how_to_have_one(path: str) -> None:
    with fake_server([EMBED]) as server:
        answer = httpx.post(f"{server.url}{path}", json={"query": "q", "documents": ["a"]})
        assert answer.status_code == 404
        assert "no reranker is served" in answer.json()["message"]
        assert "edge-embed serve" in answer.json()["message"]


def test_an_embedding_model_gives_no_scores(fake: Running) -> None:
    answer = httpx.post(f"{fake.url}/v2/rerank", json={"query": "q", "documents": ["a"], "model": EMBED})
    assert answer.status_code == 400
    assert f"{EMBED} is an embedding model" in answer.json()["message"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/api/rerank"])
def test_an_error_is_found_where_each_dialect_looks(path: str, fake: Running) -> None:
    said = httpx.post(f"{fake.url}{path}", json={"query": "q"}).json()
    assert said == {
        "error": said["message"], "error_type": "Validation", "message": said["message"], "detail": said["message"],
    }  # fmt: skip
    assert "documents are missing" in said["message"]


HOSTILE: list[bytes] = [
    b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"query": "q"}', b'{"documents": ["a"]}',
    b'{"query": "q", "documents": []}', b'{"query": "q", "documents": {}}', b'{"query": "q", "documents": "a"}',
    b'{"query": "q", "documents": [1]}', b'{"query": "q", "documents": [null]}', b'{"query": "q", "documents": [[]]}',
    b'{"query": "q", "documents": [{}]}', b'{"query": "q", "documents": [{"text": 1}]}',
    b'{"query": "q", "documents": [{"image": "https://x/y.png"}]}', b'{"query": "q", "documents": ["\\ud800"]}',
    b'{"query": "\\udfff", "documents": ["a"]}', b'{"query": 1, "documents": ["a"]}',
    b'{"query": {}, "documents": ["a"]}', b'{"query": null, "documents": ["a"]}',
    b'{"query": "q", "documents": ["a"], "texts": ["a"]}', b'{"query": "q", "texts": []}',
    b'{"query": "q", "texts": [{"text": "a"}]}', b'{"query": "q", "documents": ["a"], "top_n": 0}',
    b'{"query": "q", "documents": ["a"], "top_n": -1}', b'{"query": "q", "documents": ["a"], "top_n": 1.5}',
    b'{"query": "q", "documents": ["a"], "top_n": "2"}', b'{"query": "q", "documents": ["a"], "top_n": 1, "top_k": 2}',
    b'{"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}',
    b'{"query": "q", "documents": ["a"], "truncate": "UP"}', b'{"query": "q", "documents": ["a"], "truncate": 3}',
    b'{"query": "q", "documents": ["a"], "truncate": true, "truncation": false}',
    b'{"query": "q", "documents": ["a"], "instruction": "no template"}',
    b'{"query": "q", "documents": ["a"], "instruction": "a", "instruct": "b"}',
    b'{"query": "q", "documents": ["a"], "model": "nobody"}', b'{"query": "q", "documents": ["a"], "model": 3}',
    b'{"query": "q", "documents": [{"a": "b"}], "rank_fields": ["c"]}',
    b'{"query": "q", "documents": [{"text": "b"}], "rank_fields": []}',
    b'{"query": "q", "documents": ["a"], "return_documents": "yes"}',
    b'{"query": "q", "documents": ["a"], "raw_scores": 1}',
    b'{"query": "q", "documents": ' + b"[" * 5000, b'{"query": "q", "documents": [NaN]}',
    b'{"query": "' + b"q" * 600 + b'", "documents": ["a"]}',
]  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
def test_hostile_bodies_are_told_what_is_wrong(path: str, fake: Running) -> None:
    with httpx.Client(base_url=fake.url) as client:
        for body in HOSTILE:
            answer = client.post(path, content=body)
            assert answer.status_code in (400, 404, 422, 424), (body[:80], answer.text)
            assert len(answer.json()["message"]) > 10, body[:80]
        assert client.post(path, json={"query": "q", "documents": ["still there"]}).status_code == 200


def test_fields_that_nobody_knows_change_nothing(fake: Running) -> None:
    plain = post(fake, "/v1/rerank", query="q", documents=DOCUMENTS)
    more = post(fake, "/v1/rerank", query="q", documents=DOCUMENTS, priority=3, user="me", late=[{"deep": [1]}])
    assert more["results"] == plain["results"]


def test_more_documents_than_the_server_takes_are_413() -> None:
    with fake_server(settings=replace(QUIET, max_texts=2)) as server:
        answer = httpx.post(f"{server.url}/rerank", json={"query": "q", "documents": ["a", "b", "c"]})
        assert (answer.status_code, "the limit is 2" in answer.json()["message"]) == (413, True)


def test_the_fakes_scores_are_what_this_file_says() -> None:
    with fake_reranker() as reranker:
        ranked = reranker.rank("q", DOCUMENTS)
    assert [(one.index, one.score) for one in ranked] == RANKED
