"""XLM-RoBERTa, as bge-m3 and multilingual-e5-base: a unigram vocabulary, positions from 2, CLS pooling."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.checkpoints import _SUFFIXES, _WORDS
from tests.families import Arrays
from tests.families._encoders import (
    bert_config,
    bert_weights,
    in_temporary_folder,
    recorded,
    write_checkpoint,
    write_sentence_transformers,
)
from tests.golden_texts import TEXTS

NAME = "xlm_roberta"
POSITIONS = 514
MAX_TOKENS = POSITIONS - 2
PROMPTS = {"query": "query: ", "passage": "passage: "}
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


def unigram_pieces() -> list[tuple[str, float]]:
    """Pieces and their log probabilities, no two of which are equal: words, endings, characters of the texts."""
    words = [f"\u2581{word}" for word in _WORDS]
    endings = [*_SUFFIXES, *(word for word in _WORDS if len(word) > 3)]
    seen = sorted({c for text in TEXTS for c in unicodedata.normalize("NFKC", text) if c.isprintable() and c != " "})
    characters = [c for c in string.printable if not c.isspace()] + seen[::2]  # the others are unknown
    pieces = list(dict.fromkeys(["\u2581", *words, *endings, *characters]))
    return [(piece, -round(2.0 + 0.9 * len(piece) ** 0.5 + 0.004 * i, 4)) for i, piece in enumerate(pieces)]


def tokenizer_json(specials: Sequence[str] = SPECIALS) -> dict[str, Any]:
    """The tokenizer of XLM-RoBERTa with a small vocabulary, and NFKC where that has a table of its own."""
    vocab = [*((token, 0.0) for token in specials), *unigram_pieces(), ("<mask>", 0.0)]
    ids = {token: specials.index(token) for token in ("<s>", "</s>")}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    bos, eos = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": token == "<mask>",
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in [*enumerate(specials), (len(vocab) - 1, "<mask>")]
        ],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first, eos],
            "pair": [bos, first, eos, eos, second, eos],
            "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()},
        },
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [list(entry) for entry in vocab], "byte_fallback": False},
    }


def tokenizer_config(max_tokens: int) -> dict[str, Any]:
    """tokenizer_config.json of XLM-RoBERTa."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_tokens,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True},
    }


def build(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    head: bool = False,
    pooling: str = "cls",
    specials: Sequence[str] = SPECIALS,
    config: dict[str, Any] | None = None,
) -> Path:
    """The checkpoint; ``head`` adds a cross-encoder's, ``config`` changes fields of config.json."""
    tokenizer = tokenizer_json(specials)
    rows = len(tokenizer["model"]["vocab"])
    sizes = {"rows": rows, "positions": POSITIONS, "types": 1, "hidden": hidden, "layers": layers}
    weights = bert_weights(**sizes, prefix="roberta." if head else "")
    if head:
        weights.linear("classifier.dense", hidden, hidden)
        weights.linear("classifier.out_proj", 1, hidden, gain=3.0)
    else:
        weights.linear("pooler.dense", hidden, hidden)
    write_checkpoint(
        folder,
        weights,
        bert_config(
            **sizes,
            heads=heads,
            head=head,
            architectures=["XLMRobertaForSequenceClassification" if head else "XLMRobertaModel"],
            model_type="xlm-roberta",
            bos_token_id=0,
            eos_token_id=2,
        )
        | (config or {}),
        tokenizer,
        tokenizer_config(MAX_TOKENS),
    )
    if not head:
        write_sentence_transformers(folder, hidden=hidden, pooling=pooling)
    return folder


def record() -> Arrays:
    """Vectors and ids of the original."""
    return in_temporary_folder(build, lambda folder: recorded(folder, pooling="cls", max_tokens=MAX_TOKENS))
