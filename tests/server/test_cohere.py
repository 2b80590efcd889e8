"""Cohere's embeddings: its own client, unmodified; several types of vectors are one run of the model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cohere
import httpx
import numpy as np
import pytest
from cohere.core.api_error import ApiError
from langchain_cohere import CohereEmbeddings

from edge_embed import Embedder
from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.testing import FakeEngine, fake_embedder
from edge_embed.types import Precision
from tests.serving import FAKES, QUIET, Running, fake_server

MODEL = FAKES[0]
OLD_PYDANTIC = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # the client's
TEXTS = ["A cat sleeps on the windowsill.", "", "Die Zentralbank hob die Zinsen.", "猫が窓辺で眠る。" * 60]
TYPES: dict[str, Precision] = {
    "float": "float32", "int8": "int8", "uint8": "uint8", "binary": "binary", "ubinary": "ubinary",
}  # fmt: skip


@pytest.fixture
def client(real: Running) -> Iterator[cohere.ClientV2]:
    """Cohere's client."""
    with httpx.Client() as transport:
        yield cohere.ClientV2(api_key="none", base_url=real.url, httpx_client=transport)


def post(server: Running, path: str, **body: Any) -> Any:
    """The answer to a body, which is a success."""
    answer = httpx.post(f"{server.url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# The client


def test_all_types_at_once_are_the_librarys(client: cohere.ClientV2, library: Embedder) -> None:
    found = client.embed(
        model=DEFAULT_MODEL, texts=TEXTS, input_type="search_document", embedding_types=[*TYPES, "base64"]
    )
    assert found.texts == TEXTS
    vectors = {"float": found.embeddings.float_, **{name: getattr(found.embeddings, name) for name in [*TYPES][1:]}}
    for name, precision in TYPES.items():
        expected = library.encode(TEXTS, precision=precision)
        assert np.array_equal(np.array(vectors[name], dtype=expected.dtype), expected), name
    assert found.embeddings.base64 is not None
    raw = np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in found.embeddings.base64])
    assert np.array_equal(raw, library.encode(TEXTS))
    assert found.meta is not None
    assert found.meta.billed_units is not None
    assert found.meta.billed_units.input_tokens == library.embed(TEXTS).usage.n_tokens
    assert found.meta.api_version is not None
    assert found.meta.api_version.version == "2"


def test_floats_are_what_is_asked_for_by_default(client: cohere.ClientV2, library: Embedder) -> None:
    found = client.embed(model=DEFAULT_MODEL, texts=TEXTS, input_type="classification", output_dimension=128)
    assert np.array_equal(np.array(found.embeddings.float_, np.float32), library.encode(TEXTS, truncate_dim=128))
    assert found.embeddings.int8 is None


@pytest.mark.parametrize(("truncate", "side"), [("START", "left"), ("END", "right")])
def test_long_texts_lose_the_end_that_is_named(
    truncate: Any, side: Any, client: cohere.ClientV2, library: Embedder
) -> None:
    found = client.embed(model=DEFAULT_MODEL, texts=TEXTS[3:], input_type="clustering", truncate=truncate)
    assert np.array_equal(np.array(found.embeddings.float_, np.float32), library.encode(TEXTS[3:], truncate=side))


def test_a_lower_limit_counts_and_a_higher_one_does_not(client: cohere.ClientV2, library: Embedder) -> None:
    for asked, limit in ((16, 16), (100_000, None)):
        found = client.embed(model=DEFAULT_MODEL, texts=TEXTS[3:], input_type="clustering", max_tokens=asked)
        expected = library.encode(TEXTS[3:], max_tokens=limit)
        assert np.array_equal(np.array(found.embeddings.float_, np.float32), expected)


def test_inputs_of_parts_are_lines_of_a_text(client: cohere.ClientV2, library: Embedder) -> None:
    parts = [cohere.TextEmbedContent(text="a cat"), cohere.TextEmbedContent(text="on a mat")]
    inputs = [cohere.EmbedInput(content=parts[:1]), cohere.EmbedInput(content=parts)]
    found = client.embed(model=DEFAULT_MODEL, inputs=inputs, input_type="search_document")
    expected = library.encode(["a cat", "a cat\non a mat"])
    assert np.array_equal(np.array(found.embeddings.float_, np.float32), expected)


def test_images_are_refused_with_the_reason(client: cohere.ClientV2) -> None:
    image = "data:image/png;base64,iVBORw0KGgo="
    part = cohere.ImageUrlEmbedContent(image_url=cohere.EmbedImageUrl(url=image))
    for body in ({"images": [image]}, {"inputs": [cohere.EmbedInput(content=[part])]}):
        with pytest.raises(ApiError) as caught:
            client.embed(model=DEFAULT_MODEL, input_type="image", **body)  # type: ignore[arg-type]
        assert caught.value.status_code == 400
        assert "the model reads text" in caught.value.body["message"]


def test_a_text_that_may_not_be_cut_is_refused(client: cohere.ClientV2) -> None:
    with pytest.raises(ApiError) as caught:
        client.embed(model=DEFAULT_MODEL, texts=TEXTS, input_type="search_query", truncate="NONE")
    assert caught.value.status_code == 400
    assert "text 3 has" in caught.value.body["message"]


@OLD_PYDANTIC
def test_the_first_interface_answers_with_a_plain_list_or_by_type(real: Running, library: Embedder) -> None:
    with httpx.Client() as transport:
        first = cohere.Client(api_key="none", base_url=real.url, httpx_client=transport)
        plain = first.embed(texts=TEXTS, model=DEFAULT_MODEL, input_type="search_document")
        assert np.array_equal(np.array(plain.embeddings, np.float32), library.encode(TEXTS))
        by_type = first.embed(
            texts=TEXTS, model=DEFAULT_MODEL, input_type="search_document", embedding_types=["int8", "float"]
        )
        assert np.array_equal(by_type.embeddings.int8, library.encode(TEXTS, precision="int8"))
        assert np.array_equal(np.array(by_type.embeddings.float_, np.float32), library.encode(TEXTS))


@OLD_PYDANTIC
def test_langchain_embeds(real: Running, library: Embedder) -> None:
    embeddings = CohereEmbeddings(model=DEFAULT_MODEL, cohere_api_key="none", base_url=real.url)
    try:
        found = np.array(embeddings.embed_documents(TEXTS), np.float32)
        query = np.array(embeddings.embed_query("Wer?"), np.float32)
    finally:
        embeddings.client._client_wrapper.httpx_client.httpx_client.close()
    assert np.array_equal(found, library.encode(TEXTS))
    assert np.array_equal(query, library.encode("Wer?"))


# Translation


def test_the_model_runs_once_for_many_types() -> None:
    engine = FakeEngine()
    with fake_server([MODEL], engine=engine) as server:
        post(server, "/v2/embed", texts=["a", "b"], embedding_types=[*TYPES, "base64"])
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"input_type": "search_query"}, {"role": "query"}),
        ({"input_type": "search_document"}, {"role": "document"}),
        ({"input_type": "classification"}, {}),
        ({"input_type": "clustering"}, {}),
        ({"model": f"{MODEL}:query"}, {"role": "query"}),
        ({"prompt_name": "document"}, {"prompt_name": "document"}),
        ({"prompt": "p: "}, {"prompt": "p: "}),
        ({"instruction": "find"}, {"instruction": "find"}),
        ({"output_dimension": 3}, {"truncate_dim": 3}),
    ],
)
@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_a_field_does_what_the_librarys_does(
    path: str, body: dict[str, Any], options: dict[str, Any], fake: Running
) -> None:
    with fake_embedder() as embedder:
        expected = embedder.encode(["ab"], **options).tolist()
    found = post(fake, path, texts=["ab"], embedding_types=["float"], **body)
    assert found["response_type"] == "embeddings_by_type"
    assert found["embeddings"] == {"float": [pytest.approx(expected[0], abs=1e-6)]}


@pytest.mark.parametrize("types", [["binary"], ["float", "ubinary"]])
def test_bits_that_fill_no_byte_are_refused_before_the_model_runs(types: list[str]) -> None:
    engine = FakeEngine()
    with fake_server([MODEL], engine=engine) as server:
        body = {"texts": ["a"], "embedding_types": types, "output_dimension": 9}
        answer = httpx.post(f"{server.url}/v2/embed", json=body)
    assert (answer.status_code, "do not fill whole bytes" in answer.json()["message"]) == (400, True)
    assert engine.batches == []


def test_values_that_are_none_are_an_error_and_not_an_answer() -> None:
    with fake_server([MODEL], engine=FakeEngine(poison=3 + ord("x"))) as server:
        answer = httpx.post(f"{server.url}/v2/embed", json={"texts": ["a", "x"], "embedding_types": ["int8"]})
        assert (answer.status_code, "text(s): 1" in answer.json()["message"]) == (500, True)


HOSTILE: list[bytes] = [
    b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"texts": []}', b'{"texts": "a"}', b'{"texts": [1]}',
    b'{"texts": [null]}', b'{"texts": [["a"]]}', b'{"texts": ["\\ud800"]}', b'{"texts": ["a"], "inputs": []}',
    b'{"inputs": []}', b'{"inputs": [{}]}', b'{"inputs": ["a"]}', b'{"inputs": [{"content": []}]}',
    b'{"inputs": [{"content": [{}]}]}', b'{"inputs": [{"content": [{"type": "text"}]}]}',
    b'{"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
    b'{"inputs": [{"content": "a"}]}', b'{"texts": ["a"], "images": ["x"]}', b'{"texts": ["a"], "input_type": "image"}',
    b'{"texts": ["a"], "input_type": "poem"}', b'{"texts": ["a"], "input_type": 1}',
    b'{"texts": ["a"], "embedding_types": ["float64"]}', b'{"texts": ["a"], "embedding_types": "float"}',
    b'{"texts": ["a"], "output_dimension": 0}', b'{"texts": ["a"], "output_dimension": 17}',
    b'{"texts": ["a"], "output_dimension": 1e9}', b'{"texts": ["a"], "output_dimension": "8"}',
    b'{"texts": ["a"], "truncate": "MIDDLE"}', b'{"texts": ["a"], "truncate": true}',
    b'{"texts": ["a"], "max_tokens": 0}', b'{"texts": ["a"], "max_tokens": 1}', b'{"texts": ["a"], "model": "nobody"}',
    b'{"texts": ["a"], "model": "fake-reranker"}', b'{"texts": ["a"], "prompt": "a", "prompt_name": "query"}',
    b'{"texts": ["a"], "prompt_name": "nobody"}', b'{"texts": ' + b"[" * 5000, b'{"texts": [NaN]}',
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_hostile_bodies_are_told_what_is_wrong(path: str, fake: Running) -> None:
    with httpx.Client(base_url=fake.url) as client:
        for body in HOSTILE:
            answer = client.post(path, content=body)
            assert answer.status_code in (400, 404), (body[:80], answer.text)
            assert len(answer.json()["message"]) > 10, body[:80]
        assert client.post(path, json={"texts": ["still there"]}).status_code == 200


def test_more_texts_than_the_server_takes_are_413() -> None:
    with fake_server(settings=replace(QUIET, max_texts=2)) as server:
        answer = httpx.post(f"{server.url}/v2/embed", json={"texts": ["a"] * 3})
        assert (answer.status_code, "the limit is 2" in answer.json()["message"]) == (413, True)
