"""What the tests of tokenizers share: a tokenizer.json, taken through the converter's keys to our tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from gguf import GGUFValueType
from tokenizers import Tokenizer as Original

from edge_embed.convert.checkpoint import Fields
from edge_embed.convert.vocab import bpe, sentencepiece, unigram, wordpiece
from edge_embed.convert.vocab.vocabulary import Vocabulary, kind_of
from edge_embed.testing import fake_embedder
from edge_embed.tokenizer import Tokenizer, tokenizer_of

CONVERTERS = {
    "wordpiece": wordpiece.convert,
    "bpe": bpe.convert,
    "unigram": unigram.convert,
    "sentencepiece": sentencepiece.convert,
}
INFO = dataclasses.replace(fake_embedder().info, max_tokens=1 << 24)


def vocabulary_of(tokenizer: dict[str, Any], config: dict[str, Any] | None = None, n_rows: int = 0) -> Vocabulary:
    """The converter's keys for a tokenizer.json; as many rows as it has tokens unless told otherwise."""
    kind = kind_of(Fields(tokenizer, "tokenizer.json"))
    assert kind is not None
    last = max((token["id"] for token in tokenizer["added_tokens"]), default=-1)
    rows = n_rows or max(len(tokenizer["model"]["vocab"]), last + 1)
    return CONVERTERS[kind](Fields(tokenizer, "tokenizer.json"), Fields(config or {}, "tokenizer_config.json"), rows)


def metadata_of(vocabulary: Vocabulary) -> dict[str, Any]:
    """The keys as ``read_header`` gives them back: an array without items is not written, float32 is."""
    found = {}
    for entry in vocabulary.key_values:
        value = entry.value
        if isinstance(value, list):
            if not value:
                continue
            if entry.kind == GGUFValueType.FLOAT32:
                value = np.asarray(value, np.float32).tolist()
        found[entry.key] = value
    return found


def typed(vocabulary: Vocabulary) -> dict[str, Any]:
    """The keys as ``tiny_gguf.gguf_bytes`` takes them: typed by NumPy."""
    dtypes = {
        GGUFValueType.UINT8: np.uint8, GGUFValueType.UINT32: np.uint32, GGUFValueType.INT32: np.int32,
        GGUFValueType.FLOAT32: np.float32, GGUFValueType.FLOAT64: np.float64, GGUFValueType.BOOL: np.bool_,
    }  # fmt: skip
    kinds = {entry.key: entry.kind for entry in vocabulary.key_values}
    return {
        key: value if kinds[key] == GGUFValueType.STRING else np.asarray(value, dtypes[kinds[key]])
        for key, value in metadata_of(vocabulary).items()
    }


def runtime_tokenizer(metadata: dict[str, Any], **changes: Any) -> Tokenizer:
    """The runtime's tokenizer for these keys; llama.cpp's must not be needed."""
    eos = metadata.get("tokenizer.ggml.eos_token_id") if metadata.get("tokenizer.ggml.add_eos_token") else None
    is_bert = metadata["tokenizer.ggml.model"] == "bert"
    info = dataclasses.replace(
        INFO,
        n_vocab=len(metadata["tokenizer.ggml.tokens"]),
        eds_token_id=None if is_bert else eos,
        unicode_normalization=metadata.get("edge_embed.unicode_normalization", "none"),
        **changes,
    )

    def library(text: str) -> Sequence[int]:
        raise AssertionError(f"llama.cpp's tokenizer was asked for {text!r}")

    return tokenizer_of(info, metadata, library)


def both(tokenizer: dict[str, Any], config: dict[str, Any] | None = None) -> tuple[Original, Tokenizer]:
    """The original tokenizer, and ours from the keys of a GGUF."""
    original = Original.from_str(json.dumps(tokenizer))
    return original, runtime_tokenizer(metadata_of(vocabulary_of(tokenizer, config)))
