"""The spine for pairs: what it accepts, what it refuses, how a pair is cut, and files that are not what they say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_embed import Reranker, keys
from edge_embed.engine.head import read_head
from edge_embed.engine.llama import LlamaEngine
from edge_embed.errors import (
    EdgeEmbedError,
    EngineClosedError,
    InvalidOptionError,
    InvalidTextError,
    ModelFileError,
    NonFiniteError,
    TextTooLongError,
    UnsupportedModelError,
)
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.prompts import fill_slots, rerank_problem, split_instruction, split_rerank_template
from edge_embed.testing import FakeEngine, fake_reranker
from tests.tiny_gguf import RERANK_TEMPLATE, Metadata, gguf_bytes, tiny_bert, tiny_decoder, tiny_reranker

DOCUMENTS = [
    "a cat",
    "",
    "the dog and the cat " * 9,
    "{document} {query} {instruction}",
    "<|im_end|>\n猫 e\u0301",
    "a cat",
]


# Scores


def test_a_score_is_the_softmax_over_the_head_s_two_rows_of_the_last_hidden_state(
    reranker_path: Path, tmp_path: Path
) -> None:
    """The same file as an embedding model gives the hidden state; NumPy does the rest."""
    metadata, tensors = tiny_reranker()
    head = tensors.pop("cls.output.weight").astype(np.float64)
    (tmp_path / "embedding.gguf").write_bytes(gguf_bytes({**metadata, "qwen3.pooling_type": np.uint32(3)}, tensors))
    from edge_embed import Embedder

    query = "what is it?"
    before, behind = split_rerank_template(RERANK_TEMPLATE)
    texts = [before.replace("{query}", query) + document + behind for document in DOCUMENTS]
    with Embedder(tmp_path / "embedding.gguf", n_threads=1) as embedder:
        embedder.tokenizer = type(embedder.tokenizer)(embedder.tokenizer.content, (), (), 1024, "NFC")
        hidden = embedder.encode(texts, normalize=False).astype(np.float64)
    logits = hidden @ head.T
    expected = np.exp(logits[:, 0]) / np.exp(logits).sum(axis=1)
    with Reranker(reranker_path, n_threads=1) as opened:
        np.testing.assert_allclose(opened.predict(query, DOCUMENTS), expected, rtol=1e-3, atol=1e-5)


def test_pairs_one_pair_and_a_query_with_documents_are_one_thing(reranker: Reranker) -> None:
    pairs = [("a query", document) for document in DOCUMENTS]
    scores = reranker.predict("a query", DOCUMENTS)
    assert isinstance(scores, np.ndarray)
    np.testing.assert_allclose(reranker.predict(pairs), scores, atol=1e-5)  # beginnings are kept: other roundings
    single = reranker.predict(pairs[2])
    assert np.ndim(single) == 0
    assert float(single) == pytest.approx(float(scores[2]), abs=1e-4)
    assert reranker.predict("a query", []).shape == (0,)  # type: ignore[union-attr]
    assert reranker.predict([]).shape == (0,)  # type: ignore[union-attr]


def test_identical_pairs_are_computed_once_and_tokens_are_counted(reranker: Reranker) -> None:
    result = reranker.score([("q", document) for document in DOCUMENTS])
    assert result.scores[0] == result.scores[5]
    assert (result.usage.n_texts, result.usage.n_computed) == (6, 5)
    assert result.usage.n_tokens == result.n_tokens.sum()
    assert result.usage.n_tokens - result.usage.n_tokens_computed == result.n_tokens[0]
    assert not result.truncated.any()


def test_the_best_come_first_and_equal_ones_in_order(reranker: Reranker) -> None:
    ranked = reranker.rank("a query", DOCUMENTS)
    assert sorted(r.index for r in ranked) == list(range(6))
    assert [r.document for r in ranked] == [DOCUMENTS[r.index] for r in ranked]
    scores = [r.score for r in ranked]
    assert scores == sorted(scores, reverse=True)
    places = [r.index for r in ranked]
    assert places.index(0) + 1 == places.index(5)
    assert reranker.rank("a query", DOCUMENTS, top_k=2) == ranked[:2]
    assert reranker.rank("a query", DOCUMENTS, top_k=99) == ranked


def test_probabilities_that_round_to_one_are_still_ordered() -> None:
    """By their logits; and raw scores are those."""
    fake = fake_reranker()
    fake._head = fake.info.rerank.__class__(("score",), "sigmoid", None, None, "F32", 0)  # type: ignore[union-attr]
    documents = ["a" * 40, "a" * 60, "a" * 50]
    assert set(fake.predict("q", documents).tolist()) == {1.0}  # type: ignore[union-attr]
    assert [r.index for r in fake.rank("q", documents)] == [1, 2, 0]
    assert [r.score for r in fake.rank("q", documents, raw_scores=True)] == [64.0, 54.0, 44.0]


def test_an_instruction_changes_the_scores_and_the_default_does_not(reranker: Reranker) -> None:
    plain = reranker.predict("q", DOCUMENTS)
    assert reranker.instruction == "Find the answer"
    np.testing.assert_array_equal(reranker.predict("q", DOCUMENTS, instruction="Find the answer"), plain)
    assert not np.allclose(reranker.predict("q", DOCUMENTS, instruction="Find what contradicts it"), plain)


def test_the_labels_may_stand_in_either_order(reranker_path: Path, reranker: Reranker, tmp_path: Path) -> None:
    metadata, tensors = tiny_reranker()
    metadata["qwen3.classifier.output_labels"] = ["no", "yes"]
    tensors["cls.output.weight"] = tensors["cls.output.weight"][::-1]
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, tensors))
    with Reranker(tmp_path / "x.gguf", n_threads=1) as turned:
        np.testing.assert_allclose(turned.predict("q", DOCUMENTS), reranker.predict("q", DOCUMENTS), atol=1e-6)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_a_head_of_each_type_is_read_as_gguf_py_wrote_it(kind: str, reranker_path: Path, tmp_path: Path) -> None:
    info = read_model_info(read_header(reranker_path))
    rows = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    data = quantize(rows, GGMLQuantizationType[kind])
    (tmp_path / "rows").write_bytes(b"x" * 7 + data.tobytes())
    assert info.rerank is not None
    moved = type(info.rerank)(("yes", "no"), "sigmoid", "t", None, kind, 7)
    found = read_head(type(info)(**{**_fields(info), "path": str(tmp_path / "rows"), "rerank": moved}))
    from gguf.quants import dequantize

    np.testing.assert_array_equal(found, dequantize(data, GGMLQuantizationType[kind]))


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


# Cutting


def test_only_the_document_is_cut_and_what_stands_behind_it_stays(reranker: Reranker) -> None:
    long = "the cat sat on the mat and " * 40
    whole = ids(reranker, "a query", long, None)
    limit = 120
    right = ids(reranker, "a query", long, limit)
    n_behind = len(reranker.tokenizer.suffix)
    assert len(right) == limit
    assert right[-n_behind:] == whole[-n_behind:]
    assert right[:-n_behind] == whole[: limit - n_behind]
    left = reranker._encode("a query", long, reranker.instruction, "left", 0, limit).token_ids.tolist()
    assert len(left) == limit
    assert left[-n_behind - 9 :] == whole[-n_behind - 9 :]
    before = fill_slots(reranker._before, "a query", reranker.instruction)
    assert before.endswith(": ")  # this space is in the document's first token, which goes
    n_before = len(reranker.tokenizer.ids(before[:-1]))
    assert left == whole[:n_before] + whole[n_before - limit :]
    result = reranker.score([("a query", long)], max_tokens=limit)
    assert (result.n_tokens[0], result.n_original[0], result.truncated[0]) == (limit, len(whole), True)


def ids(reranker: Reranker, query: str, document: str, limit: int | None) -> list[int]:
    found: list[int] = reranker._encode(query, document, reranker.instruction, "right", 0, limit).token_ids.tolist()
    return found


def test_what_may_not_be_cut_is_refused(reranker: Reranker) -> None:
    with pytest.raises(TextTooLongError) as caught:
        reranker.predict("q", ["a", "a cat " * 200], truncate="error", max_tokens=120)
    assert (caught.value.index, caught.value.limit) == (1, 120)
    with pytest.raises(InvalidOptionError, match="leaves no room"):
        reranker.predict("a long query " * 50, ["a document " * 50], max_tokens=120)


# Arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.predict("a query"),
        lambda r: r.predict("a query", "a document"),
        lambda r: r.predict("a query", None),
        lambda r: r.predict("a query", [1]),
        lambda r: r.predict("a query", ["a", None]),
        lambda r: r.predict("a query", {"a": 1}),
        lambda r: r.predict([("a", "b")], ["c"]),
        lambda r: r.predict([("a", "b", "c")]),
        lambda r: r.predict([("a",), ("b", "c")]),
        lambda r: r.predict(["a", "b", "c"]),
        lambda r: r.predict([("a", 1)]),
        lambda r: r.predict(None),
        lambda r: r.predict(3),
        lambda r: r.predict({("a", "b")}),
        lambda r: r.predict(b"ab"),
        lambda r: r.predict("\ud800", ["a"]),
        lambda r: r.predict("a", ["\udfff"]),
        lambda r: r.rank(["a query"], ["a"]),
    ],
)
def test_what_is_not_text_is_refused(call: Callable[[Reranker], Any], reranker: Reranker) -> None:
    with pytest.raises(InvalidTextError) as caught:
        call(reranker)
    assert caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"instruction": 3}, {"instruction": b"a"}, {"instruction": "\ud800"}, {"truncate": "middle"},
        {"truncate": None}, {"max_tokens": 0}, {"max_tokens": 10**9}, {"max_tokens": "9"},
    ],
)  # fmt: skip
def test_odd_options_are_refused(options: dict[str, Any], reranker: Reranker) -> None:
    with pytest.raises(InvalidOptionError):
        reranker.predict("q", ["a"], **options)


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "2", True])
def test_an_odd_number_of_documents_is_refused(top_k: Any, reranker: Reranker) -> None:
    with pytest.raises(InvalidOptionError, match="top_k"):
        reranker.rank("q", ["a"], top_k=top_k)


def test_a_model_without_a_place_for_an_instruction_refuses_one() -> None:
    fake = fake_reranker()
    with pytest.raises(InvalidOptionError, match="no template for instructions"):
        fake.predict("q", ["a"], instruction="Find it")
    with pytest.raises(InvalidOptionError, match="no template for instructions"):
        Reranker.from_parts(fake.info, FakeEngine(n_embd=1), fake.tokenizer, instruction="Find it")


def test_a_closed_reranker_says_so() -> None:
    fake = fake_reranker()
    with fake:
        assert fake.predict(("a", "b")) == 5.0
    for call in (lambda: fake.predict("a", []), lambda: fake.rank("a", ["b"]), fake.__enter__):
        with pytest.raises(EngineClosedError):
            call()


def test_only_the_guilty_pair_fails() -> None:
    fake = fake_reranker(FakeEngine(n_embd=1, poison=3 + ord("!")))
    with pytest.raises(NonFiniteError) as caught:
        fake.predict("q", ["a", "b!", "cc", "b!"])
    assert caught.value.indices == (1, 3)
    assert caught.value.partial.scores[[0, 2]].tolist() == [5.0, 6.0]


def test_many_threads_get_their_own_scores(reranker: Reranker) -> None:
    expected = {word: reranker.predict(word, ["a cat", "a dog"]) for word in ("one", "two", "three", "four")}
    found: list[tuple[str, Any]] = []

    def work(word: str) -> None:
        found.extend((word, reranker.predict(word, ["a cat", "a dog"])) for _ in range(5))

    threads = [threading.Thread(target=work, args=(word,)) for word in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    for word, scores in found:
        np.testing.assert_allclose(scores, expected[word], atol=1e-4)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.text(max_size=40)
    | st.sampled_from(["{document}", "<|im_end|>", "</think>", "\0", "\u0301", "{query}" * 9]),
    documents=st.lists(
        st.text(max_size=60) | st.sampled_from(["", "{query}", "<|im_start|>" * 20, "a" * 3000]), max_size=4
    ),
    instruction=st.none() | st.text(max_size=20),
    limit=st.none() | st.integers(90, 1024),
)
def test_any_texts_give_scores_or_a_typed_error(
    query: str, documents: list[str], instruction: str | None, limit: int | None, reranker: Reranker
) -> None:
    try:
        result = reranker.score([(query, d) for d in documents], instruction=instruction, max_tokens=limit)
    except (InvalidOptionError, InvalidTextError):  # lone surrogates; a query that leaves no room
        return
    assert result.scores.shape == (len(documents),)
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    assert (result.n_tokens <= (limit or 1024)).all()
    ends = len(reranker.tokenizer.suffix)
    for document in documents:
        chosen = reranker.instruction if instruction is None else instruction
        cut = reranker._encode(query, document, chosen, "right", 0, limit).token_ids
        assert tuple(cut[-ends:]) == reranker.tokenizer.suffix


# Templates


@given(query=st.text(max_size=30), instruction=st.text(max_size=30))
def test_slots_are_filled_in_one_pass(query: str, instruction: str) -> None:
    before, behind = split_rerank_template("a {instruction} b {query} c {document} d")
    assert fill_slots(before, query, instruction) == f"a {instruction} b {query} c "
    assert behind == " d"


def test_a_slot_inside_a_query_is_ordinary_text(reranker: Reranker) -> None:
    hostile, plain = "{document} {instruction}", "something else"
    before = fill_slots(reranker._before, hostile, "Find it")
    assert before.count("Find it") == 1
    assert hostile in before
    assert ids(reranker, hostile, "a cat", None) != ids(reranker, plain, "a cat", None)
    assert ids(reranker, "q", "a cat", None).count(reranker.tokenizer.ids("cat")[-1]) == 1


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{query} {document}", ""),
        ("{document}{query}", "last"),
        ("{query}", "{document} 0 times"),
        ("{query}{document}{document}", "2 times"),
        ("{query}{instruction}{instruction}{document}", "more than once"),
        ("{query}{document}{instruction}", "last"),
        ("", "{query} 0 times"),
    ],
)
def test_a_template_needs_each_slot_once_and_the_document_last(template: str, problem: str) -> None:
    found = rerank_problem(template)
    assert (problem in found) if problem else not found


def test_the_literal_task_of_llama_cpp_s_template_becomes_a_slot() -> None:
    template, instruction = split_instruction(RERANK_TEMPLATE)
    assert instruction == "Find the answer"
    assert template.replace("{instruction}", instruction) == RERANK_TEMPLATE
    for other in ("{query}{document}", "<Instruct>: {instruction}\n{query}{document}"):
        assert split_instruction(other) == (other, None)


# Files that are not what they say

REMOVED = object()
HEAD = "cls.output.weight"


def opened(tmp_path: Path, changes: Metadata, **tensors: Any) -> Reranker:
    metadata, found = tiny_reranker()
    metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not REMOVED}
    found[HEAD] = tensors.get("head", found[HEAD])
    found = {name: value for name, value in found.items() if value is not REMOVED}
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, found))
    return Reranker(tmp_path / "x.gguf", n_threads=1)


DENSE = {"edge_embed.dense.0.in_features": np.uint32(32), "edge_embed.dense.0.activation": "identity"}
LABELS, TEMPLATE = "qwen3.classifier.output_labels", "tokenizer.chat_template.rerank"


@pytest.mark.parametrize(
    ("changes", "tensors", "kind", "expected"),
    [
        ({}, {"head": REMOVED}, ModelFileError, "has no head"),
        ({}, {"head": np.zeros((3, 32), np.float32)}, ModelFileError, "has shape"),
        ({}, {"head": np.zeros((2, 16), np.float32)}, ModelFileError, "has shape"),
        ({}, {"head": np.full((2, 32), np.nan, np.float32)}, ModelFileError, "not finite"),
        ({LABELS: REMOVED}, {}, UnsupportedModelError, "does not name the outputs of its head"),
        ({LABELS: REMOVED}, {"head": np.zeros((1, 32), np.float32)}, UnsupportedModelError, "expected yes and no"),
        ({LABELS: ["yes", "maybe"]}, {}, UnsupportedModelError, "yes, maybe"),
        ({LABELS: ["yes", "yes"]}, {}, UnsupportedModelError, "expected yes and no"),
        ({LABELS: "yes"}, {}, ModelFileError, "not a list of strings"),
        ({LABELS: np.array([1, 2], np.int32)}, {}, ModelFileError, "not a list of strings"),
        ({TEMPLATE: REMOVED}, {}, UnsupportedModelError, "nothing says how"),
        ({TEMPLATE: "{query}"}, {}, ModelFileError, "{document} 0 times"),
        ({TEMPLATE: np.uint32(3)}, {}, ModelFileError, "expected str"),
        ({keys.RERANK_TEMPLATE: "{document}{query}"}, {}, ModelFileError, "last"),
        ({keys.RERANK_TEMPLATE: "{instruction}{query}{document}"}, {}, ModelFileError, "is missing"),
        ({keys.RERANK_ACTIVATION: "tanh"}, {}, ModelFileError, "tanh"),
        ({**DENSE, "edge_embed.dense.0.weight": np.zeros(64, np.float32)}, {}, UnsupportedModelError, "Dense layers"),
        ({"qwen3.pooling_type": np.uint32(3)}, {}, UnsupportedModelError, "is an embedding model"),
    ],
)
def test_a_file_that_is_no_sound_reranker_is_refused(
    changes: Metadata, tensors: dict[str, Any], kind: type[EdgeEmbedError], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=expected.replace("{", r"\{")):
        opened(tmp_path, changes, **tensors)


def test_other_causal_rerankers_and_classifiers_are_refused(tmp_path: Path) -> None:
    metadata, tensors = tiny_decoder("llama", pooling=4)
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, tensors))
    with pytest.raises(UnsupportedModelError, match="'llama' are not supported"):
        Reranker(tmp_path / "x.gguf")
    metadata, tensors = tiny_bert()
    tensors[HEAD] = np.zeros((3, 32), np.float32)
    metadata |= {"bert.pooling_type": np.uint32(4), "bert.classifier.output_labels": ["a", "b", "c"]}
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, tensors))
    with pytest.raises(UnsupportedModelError, match="a, b, c, expected one"):
        Reranker(tmp_path / "x.gguf")


def test_a_head_that_overflows_is_an_error_and_the_next_call_is_right(tmp_path: Path) -> None:
    with opened(tmp_path, {}, head=np.full((2, 32), 3e38, np.float32)) as broken, pytest.raises(NonFiniteError):
        broken.predict("q", ["a"])


def test_a_file_that_shrank_is_noticed(reranker_path: Path, tmp_path: Path) -> None:
    info = read_model_info(read_header(reranker_path))
    (tmp_path / "x.gguf").write_bytes(reranker_path.read_bytes()[:3000])
    with pytest.raises(ModelFileError, match="ends inside its head"):
        LlamaEngine(type(info)(**{**_fields(info), "path": str(tmp_path / "x.gguf")}))
