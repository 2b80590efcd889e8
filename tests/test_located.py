"""What of a text each token stands for, nothing cut; and what text ids stand for."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Original

from edge_embed import Embedder
from edge_embed.errors import InvalidTextError
from edge_embed.gguf_header import read_header
from edge_embed.rebuild import _SLICE
from edge_embed.testing import fake_embedder
from edge_embed.tokenizer import Token, Tokenizer
from edge_embed.tokens import Vocabulary
from tests import trained
from tests.golden_texts import TEXTS
from tests.tokenizing import both

NAMES = list(trained.ALL)


@functools.cache
def pair_of(name: str) -> tuple[Original, Tokenizer]:
    """The original and ours."""
    return both(trained.ALL[name]())


def own(tokens: Iterable[Token]) -> list[Token]:
    """Those that are no special tokens around the text."""
    return [token for token in tokens if token.text is not None]


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(TEXTS))
def test_the_tokens_are_those_that_the_model_sees_and_their_places_are_bytes_of_the_text(name: str, text: str) -> None:
    _, tokenizer = pair_of(name)
    tokens = list(tokenizer.located(text))
    special = len(tokenizer.prefix) + len(tokenizer.suffix)
    if len(tokens) <= tokenizer.max_tokens and len(tokens) > 0:
        assert tokenizer.encode(text).token_ids.tolist() == [token.token_id for token in tokens]
    assert [token.token_id for token in tokenizer.located(text, special=False)] == [t.token_id for t in own(tokens)]
    assert len(own(tokens)) == len(tokens) - special
    whole = text.encode()
    for token in own(tokens):
        assert token.text is not None
        assert whole[token.start : token.stop].decode() == token.text
    starts = [token.start or 0 for token in own(tokens)]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", NAMES)
def test_places_are_those_that_the_original_tokenizer_reports(name: str) -> None:
    """A space in front may belong to a token or not: some originals leave it out in a later step."""
    original, tokenizer = pair_of(name)
    for text in TEXTS:
        expected = [
            text[a:b].strip()
            for (a, b), special in zip(
                original.encode(text).offsets, original.encode(text).special_tokens_mask, strict=True
            )
            if not special
        ]
        assert expected == [str(token.text).strip() for token in own(tokenizer.located(text))]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_that_is_tokenized_in_slices_has_the_same_places(name: str) -> None:
    _, tokenizer = pair_of(name)
    line = "The cats sat on the mat, and the 猫 sat there too.\n"
    n = _SLICE // len(line) + 2
    once, many = own(tokenizer.located(line)), own(tokenizer.located(line * n))
    assert [token.token_id for token in many] == list(tokenizer.ids(line * n))
    whole = (line * n).encode()
    assert [whole[token.start : token.stop].decode() for token in many] == [token.text for token in many]
    last = str(once[-2].text).strip()
    assert last in whole[many[-2].start : many[-2].stop].decode()
    assert (many[-2].start or 0) > len(whole) - 2 * len(line.encode())


def test_nothing_is_cut_and_a_prompt_counts(bert: Embedder) -> None:
    tokens = list(bert.tokenizer.located("cat " * 500, prompt="the "))
    assert len(tokens) == 503 > bert.info.max_tokens
    assert (tokens[1].text, tokens[1].start, tokens[1].stop) == ("the", 0, 3)
    assert (tokens[2].text, tokens[2].start, tokens[2].stop) == ("cat", 4, 7)
    assert (tokens[0].text, tokens[0].start, tokens[0].stop) == (None, None, None)


def test_places_are_left_out_where_nobody_knows_them() -> None:
    with fake_embedder() as fake:
        assert list(fake.tokenizer.located("a")) == [Token(1, None, None), Token(100, None, None), Token(2, None, None)]
    with pytest.raises(InvalidTextError, match="text 3 holds a lone surrogate"):
        list(fake.tokenizer.located("\ud800", index=3))


# Vocabulary


def vocabulary(path: Path) -> Vocabulary:
    return Vocabulary(read_header(path).metadata)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
@example(text="caf\u0065\u0301 \u732b \U0001f642")
def test_ids_of_bytes_are_the_text_again(text: str, qwen3_path: Path, qwen3: Embedder) -> None:
    """The tiny model's vocabulary has every byte; its tokenizer composes letters (NFC)."""
    ids = list(qwen3.tokenizer.ids(text))
    normalized = text if (form := qwen3.info.unicode_normalization) == "none" else unicodedata.normalize(form, text)
    assert vocabulary(qwen3_path).text(ids, skip_special=False) == normalized


def test_special_tokens_are_left_out_unless_they_are_wanted(qwen3_path: Path, qwen3: Embedder) -> None:
    ids = qwen3.tokenize("the cat").token_ids.tolist()
    found = vocabulary(qwen3_path)
    assert found.text(ids) == "the cat"
    assert found.text(ids, skip_special=False) == "the cat<|endoftext|>"
    assert found.is_special(ids[-1])
    assert len(found) == qwen3.info.n_vocab


def test_pieces_of_words_are_joined(bert_path: Path, bert: Embedder) -> None:
    ids = bert.tokenize("The cats sat, eating.").token_ids.tolist()
    assert vocabulary(bert_path).text(ids) == "the cats sat, eating."
    assert vocabulary(bert_path).piece(ids[0]).special
