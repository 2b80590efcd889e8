"""WordPiece vocabularies: what is recorded of them, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edge_embed import keys
from tests.checkpoints import build_tiny_bert, wordpiece_vocabulary
from tests.converting import edited
from tests.folders import Broken, Unsupported, attempt, refused
from tests.folders.tokenizers import added, keys_of, template, with_added

# ---------------------------------------------------------------- WordPiece


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_a_tokenizer_that_cuts_texts_at_the_front(name: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    """transformers reads tokenizer_config.json first, and where that is silent tokenizer.json."""
    folder = Path(shutil.copytree(pristine[name], tmp_path / name))
    cut = {"max_length": 16, "strategy": "LongestFirst", "stride": 0}
    edited(folder / "tokenizer.json", truncation=cut | {"direction": "Right"})
    attempt(folder).path.unlink()
    edited(folder / "tokenizer.json", truncation=cut | {"direction": "Left"})
    refused(folder, Unsupported, "tokenizer.json: truncation: direction is 'Left': .* would lose its beginning")
    edited(folder / "tokenizer_config.json", truncation_side="right")
    attempt(folder).path.unlink()
    edited(folder / "tokenizer_config.json", truncation_side="left")
    refused(folder, Unsupported, "tokenizer_config.json: truncation_side is 'left'")


def test_pieces_in_llama_cpps_form(bert: Path) -> None:
    """It marks the beginning of a word where WordPiece marks its continuation; special tokens stay as they are."""
    original = wordpiece_vocabulary()
    tokens = keys_of(bert)["tokens"]
    assert tokens[:5] == original[:5]
    assert tokens[original.index("guitar")] == "▁guitar"
    assert tokens[original.index("##ing")] == "ing"
    assert tokens[original.index("[")] == "▁["
    assert len(tokens) == len(original) == len(set(tokens))


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False, None])
def test_normalizer_switches(lowercase: bool, strip_accents: bool | None, tmp_path: Path) -> None:
    """``strip_accents`` null means: as lowercase."""
    folder = build_tiny_bert(tmp_path / "m", lowercase=lowercase)
    edited(folder / "tokenizer.json", normalizer__strip_accents=strip_accents, normalizer__clean_text=False)
    edited(folder / "tokenizer_config.json", strip_accents=strip_accents, tokenizer_class="PreTrainedTokenizerFast")
    found = keys_of(folder)
    assert found[keys.WORDPIECE_LOWERCASE] is lowercase
    assert found[keys.WORDPIECE_STRIP_ACCENTS] is (lowercase if strip_accents is None else strip_accents)
    assert found[keys.WORDPIECE_CHINESE_CHARS] is True
    assert found[keys.WORDPIECE_CLEAN_TEXT] is False


def test_tokenizer_config_overrides_the_normalizer_as_in_transformers(bert: Path) -> None:
    edited(bert / "tokenizer_config.json", do_lower_case=False, tokenize_chinese_chars=False)
    found = keys_of(bert)
    assert found[keys.WORDPIECE_LOWERCASE] is False
    assert found[keys.WORDPIECE_STRIP_ACCENTS] is False
    assert found[keys.WORDPIECE_CHINESE_CHARS] is False
    assert len(attempt(bert).notes) == 2
    edited(bert / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert keys_of(bert)[keys.WORDPIECE_LOWERCASE] is True


def test_longest_word(bert: Path) -> None:
    edited(bert / "tokenizer.json", model__max_input_chars_per_word=7)
    assert keys_of(bert)[keys.WORDPIECE_MAX_WORD_CHARS] == 7


def test_special_tokens_come_from_the_post_processor(bert: Path) -> None:
    """In both of its spellings, whatever the tokens are called."""
    for post in (
        template([("[MASK]", 4)], [("[PAD]", 0)]),
        {"type": "BertProcessing", "cls": ["[MASK]", 4], "sep": ["[PAD]", 0]},
    ):
        edited(bert / "tokenizer.json", post_processor=post)
        found = keys_of(bert)
        assert (found["cls_token_id"], found["bos_token_id"]) == (4, 4)
        assert (found["seperator_token_id"], found["eos_token_id"]) == (0, 0)


def test_tokens_that_are_not_there_have_no_key(bert: Path) -> None:
    edited(bert / "tokenizer_config.json", pad_token="<pad>", mask_token={"content": "<mask>"})
    found = keys_of(bert)
    assert "padding_token_id" not in found
    assert "mask_token_id" not in found
    (bert / "tokenizer_config.json").unlink()
    found = keys_of(bert)
    assert (found["padding_token_id"], found["mask_token_id"]) == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__continuing_subword_prefix": "@@"}, "continuing_subword_prefix"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": []}}, "normalizer"),
        ({"post_processor": None}, "post_processor"),
        ({"post_processor": {"type": "Other"}}, "post_processor"),
        ({"post_processor": {"type": "Sequence", "processors": [7]}}, "post_processor"),
        ({"post_processor": template([], [("[SEP]", 3)])}, "post_processor"),
        ({"post_processor": template([("[CLS]", 2)], [("[SEP]", 3), ("[PAD]", 0)])}, "post_processor"),
        ({"post_processor": template([("[CLS]", 2)], []) | {"single": 7}}, "post_processor"),
        ({"post_processor": template([("[CLS]", 2)], []) | {"single": [{"Other": {}}]}}, "post_processor"),
    ],
)
def test_a_wordpiece_part_that_is_not_recognized(change: dict[str, Any], message: str, bert: Path) -> None:
    edited(bert / "tokenizer.json", **change)
    refused(bert, Unsupported, f"{message}.* is not one that is converted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": None}, "normalizer"),
        ({"normalizer__lowercase": "yes"}, "lowercase"),
        ({"normalizer__strip_accents": 1}, "strip_accents"),
        ({"model__unk_token": "<unk>"}, "unknown token '<unk>'"),
        ({"model__unk_token": 7}, "unk_token"),
        ({"model__max_input_chars_per_word": 0}, "max_input_chars_per_word"),
        ({"post_processor": template([("[CLS]", 10**6)], [("[SEP]", 3)])}, "token 1000000, which is not in"),
        ({"post_processor": {"type": "BertProcessing", "cls": "[CLS]", "sep": ["[SEP]", 3]}}, "post_processor"),
        ({"post_processor": {"type": "BertProcessing", "cls": ["[CLS]", -1], "sep": ["[SEP]", 3]}}, "post_processor"),
    ],
)
def test_a_wordpiece_part_that_cannot_be(change: dict[str, Any], message: str, bert: Path) -> None:
    edited(bert / "tokenizer.json", **change)
    refused(bert, Broken, message)


def test_added_words_of_a_wordpiece(bert: Path) -> None:
    """They are matched inside words, before the model; llama.cpp's WordPiece knows no such thing."""
    refused(
        with_added(bert, added("guitar", wordpiece_vocabulary().index("guitar"), special=False)), Unsupported, "guitar"
    )
