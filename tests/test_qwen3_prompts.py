"""Prompts of Qwen3-Embedding against the real tokenizer's ids: queries as the model's card writes them, documents bare.

The runtime's ids of a query are those of the original tokenizer for ``Instruct: {task}\\nQuery:{query}`` as one string.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Original

from edge_embed import Embedder, keys
from edge_embed.errors import InvalidOptionError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.testing import FakeEngine, fake_embedder
from edge_embed.tokenizer import Tokenizer
from edge_embed.types import ModelInfo
from tests.checkpoints import QWEN3_EDS, qwen3_tokenizer_text
from tests.tiny_gguf import gguf_bytes, tiny_decoder
from tests.tokenizing import metadata_of, runtime_tokenizer, vocabulary_of

CARD_TASK = "Given a web search query, retrieve relevant passages that answer the query"
QUERIES = [
    "What is the capital of China?", "", " leading space", "\nnext line", "Query:", "{query}", "{instruction} {query}",
    "中国的首都是哪里？", "e\u0301te\u0301 naïve", "<|endoftext|> <|im_end|>", "\u200b zero width", "it's 12,345.67",
]  # fmt: skip
TASKS = [
    CARD_TASK, "", "{instruction}", "{query}", "Instruct: x\nQuery:", "two\nlines", "Gegeben e\u0301ine Frage, finde",
    "给定一个问题，检索相关段落", "ends in a space ", "\\1 \\g<0> %s {0} {}",
]  # fmt: skip


@pytest.fixture(scope="module")
def original() -> Original:
    return Original.from_str(qwen3_tokenizer_text())


Model = tuple[Embedder, FakeEngine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


def info_of(folder: Path, **changes: Any) -> ModelInfo:
    """What is resolved for a tiny file that says that it is the 0.6B."""
    metadata, tensors = tiny_decoder(hidden=1024, layers=1)
    path = folder / "model.gguf"
    path.write_bytes(gguf_bytes({**metadata, "general.name": "Qwen3-Embedding-0.6B", **changes}, tensors))
    return read_model_info(read_header(path))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """The prompts of the catalogue before the real tokenizer."""
    return with_real_tokenizer(info_of(folder))


def with_real_tokenizer(info: ModelInfo, **options: Any) -> Model:
    tokenizer = _real_tokenizer()
    engine = FakeEngine(n_batch=1 << 16, n_seq_max=64)
    return Embedder.from_parts(
        dataclasses.replace(info, n_embd=16, mrl_dimensions=()), engine, tokenizer, **options
    ), engine


@functools.lru_cache(maxsize=1)
def _real_tokenizer() -> Tokenizer:
    return runtime_tokenizer(metadata_of(vocabulary_of(json.loads(qwen3_tokenizer_text()))))


def ids_of(model: Model, call: Callable[[Embedder], Any]) -> list[list[int]]:
    """What reached the engine in a call, in the order of its texts, all of which differ."""
    embedder, engine = model
    engine.batches.clear()
    call(embedder)
    rows: dict[int, list[int]] = {}
    for batch in engine.batches:
        ends = np.cumsum(batch.lengths)[:-1]
        rows |= {i: ids.tolist() for i, ids in zip(batch.indices, np.split(batch.token_ids, ends), strict=True)}
    return [rows[i] for i in sorted(rows)]


def test_a_query_is_framed_as_the_card_writes_it(model: Model, original: Original) -> None:
    expected = [original.encode(f"Instruct: {CARD_TASK}\nQuery:{query}").ids for query in QUERIES]
    assert ids_of(model, lambda m: m.encode_query(QUERIES)) == expected
    assert ids_of(model, lambda m: m.encode(QUERIES, prompt_name="query")) == expected
    assert ids_of(model, lambda m: m.encode(QUERIES, role="query")) == expected
    assert ids_of(model, lambda m: m.encode(QUERIES, instruction=CARD_TASK)) == expected
    assert all(ids[-1] == QWEN3_EDS for ids in expected)


def test_a_document_stands_bare(model: Model, original: Original) -> None:
    expected = [original.encode(text).ids for text in QUERIES]
    for call in (Embedder.encode, Embedder.encode_document):
        assert ids_of(model, lambda m, call=call: call(m, QUERIES)) == expected  # type: ignore[misc]


@pytest.mark.parametrize("task", TASKS)
def test_any_instruction_is_put_in_as_it_is(task: str, model: Model, original: Original) -> None:
    expected = [original.encode("Instruct: " + task + "\nQuery:" + query).ids for query in QUERIES]
    assert ids_of(model, lambda m: m.encode_query(QUERIES, instruction=task)) == expected
    assert ids_of(model, lambda m: m.encode(QUERIES, instruction=task)) == expected


@given(st.text(max_size=40) | st.text("{}intructoqey: \n", max_size=30), st.text(max_size=40))
def test_nothing_in_an_instruction_or_a_text_is_ever_filled_in(task: str, query: str) -> None:
    """Over any strings: what reaches the tokenizer is the template's text with the two put in once."""
    seen: list[str] = []

    def content(text: str) -> list[int]:
        seen.append(text)
        return [3]

    info = dataclasses.replace(fake_embedder().info, instruction_template="Instruct: {instruction}\nQuery:")
    embedder = Embedder.from_parts(info, FakeEngine(), Tokenizer(content, (), (2,), 512))
    embedder.encode(query, instruction=task)
    assert seen == ["Instruct: " + task + "\nQuery:" + query]


def test_prompts_of_the_caller_and_of_the_file_come_before_those_of_the_catalogue(
    folder: Path, original: Original
) -> None:
    own = info_of(folder, **{keys.PROMPT + "query": "q: "})
    assert own.prompts == {"query": "q: "}
    assert own.instruction_template == "Instruct: {instruction}\nQuery:"  # which the file does not have
    found = with_real_tokenizer(own)
    assert ids_of(found, lambda m: m.encode_query("x")) == [original.encode("q: x").ids]
    assert ids_of(found, lambda m: m.encode("x", instruction="t")) == [original.encode("Instruct: t\nQuery:x").ids]
    callers = with_real_tokenizer(own, prompts={"query": "mine: {query}", "other": "o"}, default_prompt_name="other")
    assert ids_of(callers, lambda m: m.encode_query("x")) == [original.encode("mine: {query}x").ids]
    assert ids_of(callers, lambda m: m.encode("x")) == [original.encode("ox").ids]
    assert ids_of(callers, lambda m: m.encode("x", prompt="")) == [original.encode("x").ids]


def test_what_was_taken_from_the_catalogue_is_said(folder: Path) -> None:
    """Once each; a file with everything of its own is left alone."""
    assert "the file has no prompts; those of Qwen/Qwen3-Embedding-0.6B are used" in info_of(folder).repairs
    assert not any("template" in repair for repair in info_of(folder).repairs)
    own = info_of(folder, **{keys.PROMPT + "query": "q: "})
    assert "the file has no template for instructions; that of Qwen/Qwen3-Embedding-0.6B is used" in own.repairs
    whole = {keys.PROMPT + "query": "q: ", keys.INSTRUCTION_TEMPLATE: "{instruction}: "}
    assert not any("prompts" in r or "template" in r for r in info_of(folder, **whole).repairs)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_query_is_cut_behind_its_instruction(side: Any, model: Model, original: Original) -> None:
    query = "a quick brown fox jumps over the lazy dog " * 40
    prompt = original.encode(f"Instruct: {CARD_TASK}\nQuery:", add_special_tokens=False).ids
    whole = original.encode(f"Instruct: {CARD_TASK}\nQuery:{query}").ids
    (ids,) = ids_of(model, lambda m: m.encode_query(query, truncate=side, max_tokens=64))
    if side == "right":
        assert ids == [*whole[:63], QWEN3_EDS]
    else:
        assert whole[len(prompt) - 1] != prompt[-1]  # ":a" is one token, and the colon has to stay without the letter
        assert ids == [*prompt, *whole[-1 - (63 - len(prompt)) : -1], QWEN3_EDS]


def test_a_role_that_is_none_is_refused(model: Model) -> None:
    with pytest.raises(InvalidOptionError, match="role is 'queries'") as caught:
        model[0].encode("x", role="queries")  # type: ignore[arg-type]
    assert caught.value.hint == "one of query, document"


def test_an_instruction_that_no_encoding_carries_is_refused(model: Model) -> None:
    with pytest.raises(InvalidOptionError, match="the prompt holds a lone surrogate"):
        model[0].encode("x", instruction="\ud800")
