"""RoBERTa, as all-distilroberta-v1: byte-level BPE, positions from 2, mean pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families import Arrays
from tests.families._encoders import (
    bert_config,
    bert_weights,
    byte_bpe,
    in_temporary_folder,
    recorded,
    write_checkpoint,
    write_sentence_transformers,
)

NAME = "roberta"
POSITIONS = 514
MAX_TOKENS = POSITIONS - 2
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def tokenizer_json() -> dict[str, Any]:
    """RoBERTa's: GPT-2's words, its special tokens first, ``<s>`` and ``</s>`` around a text."""
    bytes_and_merges, merges, _ = byte_bpe(())
    vocab = {token: i for i, token in enumerate([*SPECIALS[:4], *bytes_and_merges, SPECIALS[4]])}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab[token],
                "content": token,
                "single_word": False,
                "lstrip": token == "<mask>",
                "rstrip": False,
                "normalized": token != "<mask>",
                "special": True,
            }
            for token in SPECIALS
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", 2],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def build(folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, head: bool = False) -> Path:
    """The checkpoint; ``head`` adds a cross-encoder's."""
    tokenizer = tokenizer_json()
    rows = len(tokenizer["model"]["vocab"])
    sizes = {"rows": rows, "positions": POSITIONS, "types": 1, "hidden": hidden, "layers": layers}
    weights = bert_weights(**sizes, prefix="roberta." if head else "")
    if head:
        weights.linear("classifier.dense", hidden, hidden)
        weights.linear("classifier.out_proj", 1, hidden, gain=3.0)
    write_checkpoint(
        folder,
        weights,
        bert_config(
            **sizes,
            heads=heads,
            head=head,
            architectures=["RobertaForSequenceClassification" if head else "RobertaModel"],
            model_type="roberta",
            bos_token_id=0,
            eos_token_id=2,
        ),
        tokenizer,
        {
            "tokenizer_class": "RobertaTokenizer",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": True,
            "errors": "replace",
            "model_max_length": MAX_TOKENS,
            "trim_offsets": True,
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False},
        },
    )
    if not head:
        write_sentence_transformers(folder, hidden=hidden, pooling="mean")
    return folder


def record() -> Arrays:
    """Vectors and ids of the original."""
    return in_temporary_folder(build, lambda folder: recorded(folder, pooling="mean", max_tokens=MAX_TOKENS))
