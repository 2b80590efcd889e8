"""Tokenizing: the original tokenizer's ids, special tokens that survive truncation, errors by position."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Original

from edge_embed import Embedder, keys
from edge_embed.errors import InvalidOptionError, InvalidTextError, ModelFileError, TextTooLongError
from edge_embed.testing import fake_embedder
from edge_embed.tokenizer import Tokenizer, check_text, from_library, wordpiece
from edge_embed.types import ModelInfo
from tests.checkpoints import small_bpe_tokenizer, wordpiece_tokenizer, wordpiece_vocabulary
from tests.scripts import run_script
from tests.tiny_gguf import bpe_metadata, gguf_bytes, spm_metadata, tiny_decoder, wordpiece_metadata

INFO = fake_embedder().info
CONTENT = st.lists(st.integers(100, 999), max_size=30)


def counting(prefix: tuple[int, ...] = (1,), suffix: tuple[int, ...] = (2,), limit: int = 16) -> Tokenizer:
    """A tokenizer whose text is a list of its own ids."""
    return Tokenizer(json.loads, prefix, suffix, limit)


# Truncation


@given(CONTENT, st.sampled_from([(), (1,), (1, 3)]), st.sampled_from([(2,), (2, 4)]), st.integers(5, 34))
def test_truncation_takes_from_the_text_only(
    ids: list[int], prefix: tuple[int, ...], suffix: tuple[int, ...], limit: int
) -> None:
    room = limit - len(prefix) - len(suffix)
    tokenizer = counting(prefix, suffix, limit)
    right = tokenizer.encode(json.dumps(ids), truncate="right")
    left = tokenizer.encode(json.dumps(ids), truncate="left")
    kept = min(len(ids), room)
    assert [*prefix, *ids[:kept], *suffix] == right.token_ids.tolist()
    assert [*prefix, *ids[len(ids) - kept :], *suffix] == left.token_ids.tolist()


@given(CONTENT, st.integers(3, 34), st.sampled_from(["right", "left"]))
def test_both_token_counts_are_reported(ids: list[int], limit: int, truncate: Any) -> None:
    encoding = counting(limit=limit).encode(json.dumps(ids), truncate=truncate)
    assert (len(ids) + 2, min(len(ids) + 2, limit)) == (encoding.n_original, encoding.n_tokens)
    assert (len(ids) + 2 > limit) == encoding.truncated


@pytest.mark.parametrize("n", range(12, 18))
def test_error_mode_refuses_exactly_what_does_not_fit(n: int) -> None:
    text = json.dumps([7] * n)
    if n + 2 <= 16:
        assert n + 2 == counting().encode(text, truncate="error").n_tokens
    else:
        with pytest.raises(TextTooLongError) as caught:
            counting().encode(text, truncate="error", index=5)
        assert (5, n + 2, 16) == (caught.value.index, caught.value.n_tokens, caught.value.limit)


@pytest.mark.parametrize("limit", range(3, 17))
def test_a_calls_own_limit_is_kept(limit: int) -> None:
    assert limit == counting().encode(json.dumps([7] * 30), max_tokens=limit).n_tokens


@pytest.mark.parametrize("limit", [2, 0, -1, 17, 5.0, "5", True])
def test_a_limit_that_leaves_no_room_or_exceeds_the_model_is_refused(limit: Any) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        counting().encode("[7]", max_tokens=limit)
    assert "give 3 to 16" == caught.value.hint


@pytest.mark.parametrize("truncate", ["end", "", None, "RIGHT"])
def test_an_unknown_way_to_truncate_is_refused(truncate: Any) -> None:
    with pytest.raises(InvalidOptionError, match="truncate is"):
        counting().encode("[7]", truncate=truncate)


def test_an_empty_text_is_its_special_tokens() -> None:
    assert [1, 2] == counting().encode("[]").token_ids.tolist()


def test_a_text_without_any_token_is_refused_by_position() -> None:
    with pytest.raises(InvalidTextError, match="text 4 has no tokens"):
        counting((), ()).encode("[]", index=4)


def test_ids_are_int32() -> None:
    assert np.int32 == counting().encode("[]").token_ids.dtype


# What is a text


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"], np.float32(1)])
def test_what_is_no_string_is_refused_by_position_and_type(text: Any) -> None:
    with pytest.raises(InvalidTextError, match=f"text 9 is {type(text).__name__}, not a string"):
        check_text(text, 9)


@pytest.mark.parametrize(("text", "at"), [("\ud800", 0), ("abc\udfff", 3), ("🙂 \ude00\ud83d", 2)])
def test_a_lone_surrogate_is_refused_where_it_stands(text: str, at: int) -> None:
    with pytest.raises(InvalidTextError, match=f"text 2 holds a lone surrogate at character {at},") as caught:
        check_text(text, 2)
    assert "clean it" in caught.value.hint


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_other_string_is_a_text(text: str) -> None:
    assert text == check_text(text, 0)


# Normalization


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.sampled_from(["none", "NFC", "NFKC"]))
def test_the_recorded_normalization_comes_before_tokenizing(text: str, form: Any) -> None:
    seen: list[str] = []

    def content(text: str) -> list[int]:
        seen.append(text)
        return [1]

    Tokenizer(content, (), (), 8, form).encode(text)
    assert [text if form == "none" else unicodedata.normalize(form, text)] == seen


def test_composed_and_decomposed_text_give_the_same_ids_with_nfc(qwen3: Embedder) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "déjà vu"), unicodedata.normalize("NFD", "déjà vu")
    assert composed != decomposed
    assert qwen3.tokenize(composed).token_ids.tolist() == qwen3.tokenize(decomposed).token_ids.tolist()


# Files of llama.cpp's own tokenizers


def library_tokenizer(metadata: dict[str, Any], **changes: Any) -> Tokenizer:
    return from_library(dataclasses.replace(INFO, **changes), metadata, json.loads)


def test_the_eds_token_ends_every_text() -> None:
    assert [5, 6, 42] == library_tokenizer({}, eds_token_id=42).encode("[5, 6]").token_ids.tolist()


def test_the_eds_token_ends_a_truncated_text() -> None:
    tokenizer = library_tokenizer({}, eds_token_id=42, max_tokens=4)
    assert [5, 5, 5, 42] == tokenizer.encode("[5, 5, 5, 5, 5]").token_ids.tolist()


@pytest.mark.parametrize(("flag", "expected"), [(True, [1, 5]), (False, [5])])
def test_the_bos_token_begins_a_text_where_the_file_says_so(flag: bool, expected: list[int]) -> None:
    metadata = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": flag}
    assert expected == library_tokenizer(metadata).encode("[5]").token_ids.tolist()


def test_the_eds_token_occurs_once_at_the_end_of_a_real_file(qwen3: Embedder) -> None:
    ids = qwen3.tokenize("the cat").token_ids.tolist()
    assert (1, qwen3.info.eds_token_id) == (ids.count(qwen3.info.eds_token_id), ids[-1])


@cache
def original_bpe() -> Original:
    return Original.from_str(json.dumps(small_bpe_tokenizer()))


def test_library_ids_are_those_of_the_original_tokenizer(qwen3: Embedder) -> None:
    original = original_bpe()
    texts = [
        "the other thing",
        "Is it in?\r\n\n  12345 'll <|im_start|>x<|endoftext|>",
        "e\u0301 中文 🙂 \u200b\x00\t",
        "",
    ]
    expected = [original.encode(text).ids for text in texts]
    assert expected == [qwen3.tokenize(text).token_ids.tolist() for text in texts]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_library_ids_are_those_of_the_original_tokenizer_for_any_text(qwen3: Embedder, text: str) -> None:
    original = original_bpe()
    assert original.encode(text).ids == qwen3.tokenize(text).token_ids.tolist()


LONG_TEXTS = """
import sys
from edge_embed import Embedder
from edge_embed.errors import EdgeEmbedError
try:
    with Embedder(sys.argv[1], n_threads=1) as embedder:
        for unit in ("a", "1", "?", " ", "\\n", "é", "中", "\\u0301", "the ", "'s"):
            embedder.tokenize(unit * int(sys.argv[2]))
    print("tokens")
except EdgeEmbedError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        *((pre, {"tokens"}) for pre in ("qwen2", "llama-bpe", "smollm", "gpt-2")),
        *((pre, {"tokens", "UnsupportedModelError"}) for pre in ("default", "gpt-4o", "tekken", "deepseek-llm")),
    ],
)
def test_a_long_run_of_one_character_does_not_end_the_process(pre: str, expected: set[str], tmp_path: Path) -> None:
    """Where llama.cpp splits words by std::regex, it recurses once for each character and overflows the stack."""
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(*tiny_decoder("llama", bpe_metadata(pre))))
    assert run_script(LONG_TEXTS, tmp_path / "x.gguf", 100_000).strip() in expected


@pytest.mark.parametrize(
    ("byte_tokens", "expected"), [(True, {"tokens"}), (False, {"ModelFileError", "UnsupportedModelError"})]
)
def test_a_vocabulary_that_cannot_spell_a_byte_does_not_end_the_process(
    byte_tokens: bool, expected: set[str], tmp_path: Path
) -> None:
    """llama.cpp looks the missing byte up by an unguarded ``at()``; the probe does not tokenize and cannot see it."""
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(*tiny_decoder("llama", spm_metadata(byte_tokens=byte_tokens))))
    assert run_script(LONG_TEXTS, tmp_path / "x.gguf", 100).strip() in expected


# WordPiece


def info_of(pieces: list[str], **changes: Any) -> ModelInfo:
    return dataclasses.replace(INFO, n_vocab=len(pieces), max_tokens=512, **changes)


def plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata as ``read_header`` returns it: Python's own types."""
    return {key: item.tolist() if hasattr(item, "tolist") else item for key, item in metadata.items()}


@cache
def both(lowercase: bool) -> tuple[Original, Tokenizer]:
    """The original WordPiece tokenizer, and ours from the metadata of a GGUF."""
    pieces = wordpiece_vocabulary()
    original = Original.from_str(json.dumps(wordpiece_tokenizer(pieces, lowercase=lowercase)))
    metadata = plain(wordpiece_metadata(pieces)) | {
        keys.WORDPIECE_LOWERCASE: lowercase,
        keys.WORDPIECE_STRIP_ACCENTS: lowercase,
    }
    return original, wordpiece(info_of(pieces), metadata)


HARD_TEXTS = [
    "", " ", "Hello WORLD", "Café naïve Ångström ﬁ Straße", "e\u0301a\u0308", "我喜欢编程你好世界", "日本語 한국어",
    "a" * 100, "a" * 101, "word" * 60 + " cat", "[SEP] in [CLS] the [MASK] text[PAD]", "[sep] [unk] [UNK]",
    "tab\tnew\nline\r\x00\x01\x7f\x85\u200b\u200d\ufeff", "\u00a0\u2003\u3000wide",
    "🙂👩‍👩‍👧 emoji",
    "it's don't—“quoted”…", "##ing ##s", "▁the ▁cat", "İstanbul ıI ßẞ", "１２３ ℵ ½ x²", "\u202eabc\u202c",
    "a\u0300\u0301\u0302b",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎", "(1,000.50) $9 #tag @x",
]  # fmt: skip


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_wordpiece_ids_are_those_of_the_original_tokenizer(text: str, lowercase: bool) -> None:
    original, rebuilt = both(lowercase)
    assert original.encode(text).ids == rebuilt.encode(text).token_ids.tolist()


SPICED = st.lists(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["[SEP]", "[CLS]", "[UNK]", "##ing", " ", "the", "Playing", "ñandú", "中文", "a" * 101]),
    max_size=8,
).map("".join)


@given(SPICED, st.booleans())
def test_wordpiece_ids_are_those_of_the_original_tokenizer_for_any_text(text: str, lowercase: bool) -> None:
    original, rebuilt = both(lowercase)
    assert original.encode(text).ids == rebuilt.encode(text, max_tokens=None).token_ids.tolist()


@pytest.mark.parametrize(
    ("pieces", "expected"), [(["the", "##s", "cat"], True), (["the", "The", "##s"], False)], ids=["uncased", "cased"]
)
def test_the_case_of_a_file_that_does_not_record_it_is_read_from_its_vocabulary(
    pieces: list[str], expected: bool
) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    tokenizer = wordpiece(info_of(vocabulary), plain(wordpiece_metadata(vocabulary)))
    assert expected == (tokenizer.encode("THE").token_ids.tolist() == tokenizer.encode("the").token_ids.tolist())


@pytest.mark.parametrize(("limit", "known"), [(3, False), (4, True), (100, True)])
def test_words_above_the_recorded_length_are_unknown(limit: int, known: bool) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    metadata = plain(wordpiece_metadata(vocabulary)) | {keys.WORDPIECE_MAX_WORD_CHARS: limit}
    assert [2, 5 if known else 1, 3] == wordpiece(info_of(vocabulary), metadata).encode("word").token_ids.tolist()


@pytest.mark.parametrize("missing", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_its_special_tokens_is_refused_by_file(missing: str) -> None:
    vocabulary = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a") if piece != missing]
    tokens = {"tokenizer.ggml.tokens": vocabulary, "tokenizer.ggml.token_type": [3] * len(vocabulary)}
    with pytest.raises(ModelFileError, match="fake: the vocabulary has no"):
        wordpiece(info_of(vocabulary), tokens)


def test_a_file_without_token_types_knows_its_special_tokens_by_their_ids() -> None:
    """Files of early converters: the unknown token must be found, or every unknown word ends in an error."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    metadata = plain(wordpiece_metadata(vocabulary))
    del metadata["tokenizer.ggml.token_type"]
    assert [2, 5, 1, 3] == wordpiece(info_of(vocabulary), metadata).encode("cat xyz").token_ids.tolist()


@pytest.mark.parametrize(
    "key",
    [keys.WORDPIECE_LOWERCASE, keys.WORDPIECE_STRIP_ACCENTS, keys.WORDPIECE_CLEAN_TEXT, keys.WORDPIECE_CHINESE_CHARS,
     keys.WORDPIECE_MAX_WORD_CHARS],
)  # fmt: skip
def test_a_setting_of_the_wrong_type_is_refused_by_name(key: str) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    with pytest.raises(ModelFileError, match=key):
        wordpiece(info_of(vocabulary), plain(wordpiece_metadata(vocabulary)) | {key: "yes"})


def test_a_bpe_vocabulary_of_the_tests_is_complete() -> None:
    """256 bytes, so that no text is outside it."""
    assert 256 == sum(len(token) == 1 for token in bpe_metadata()["tokenizer.ggml.tokens"])
