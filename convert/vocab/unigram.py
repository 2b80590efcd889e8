"""SentencePiece's unigram model as Hugging Face has it: XLM-RoBERTa, bge-m3, multilingual-e5.

Names and defaults from llama.cpp's src/llama-vocab.cpp (its ``t5``, or UGM, tokenizer).
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
from gguf import GGUFValueType, TokenType

from edge_embed import keys
from edge_embed.errors import CheckpointError, UnsupportedCheckpointError

from ..checkpoint import Fields, short
from ..container.entries import KeyValue, flag, text, texts, uint
from .tokenizer_json import (
    TOKENIZER_FILE,
    added_key_values,
    added_tokens,
    check_distinct,
    model_of,
    template_of,
    token_table,
    unsupported,
)
from .vocabulary import Vocabulary, sentencepiece_steps, special_ids

_UNUSED_SCORE = -10000.0  # of a padding row: llama.cpp would find it in a text


def convert(tokenizer: Fields, config: Fields, n_rows: int) -> Vocabulary:
    """The keys of a unigram tokenizer.json; see ``read_vocabulary``."""
    model = model_of(tokenizer, "Unigram")
    if model.values.get("byte_fallback") not in (None, False):
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: model.byte_fallback is set, which llama.cpp's unigram tokenizer does not have"
        )
    notes: list[str] = []
    steps = sentencepiece_steps(tokenizer)
    vocab, scores = _scored(model)
    unknown = model.integer("unk_id", high=len(vocab) - 1)
    added = added_tokens(tokenizer)
    tokens, types = token_table(vocab, added, n_rows, notes)
    check_distinct(tokens)
    types[unknown] = int(TokenType.UNKNOWN)
    template = template_of(tokenizer, types)
    if len(template.before) > 1 or len(template.after) != 1:
        raise unsupported("post_processor", tokenizer.values.get("post_processor"))

    padded = scores + [0.0 if kind != TokenType.UNUSED else _UNUSED_SCORE for kind in types[len(scores) :]]
    by_text = {token: i for i, token in enumerate(tokens) if types[i] != TokenType.UNUSED}
    exact = np.asarray(padded, dtype=np.float32).astype(np.float64).tolist() == padded
    key_values = [
        text("tokenizer.ggml.model", "t5"),
        text("tokenizer.ggml.pre", "default"),
        texts("tokenizer.ggml.tokens", tokens),
        KeyValue("tokenizer.ggml.scores", padded, GGUFValueType.FLOAT32),
        *([] if exact else [KeyValue(keys.UNIGRAM_SCORES, padded, GGUFValueType.FLOAT64)]),
        KeyValue("tokenizer.ggml.token_type", types, GGUFValueType.INT32),
        uint("tokenizer.ggml.unknown_token_id", unknown),
        *special_ids(config, by_text, template),
        # What llama.cpp knows of the steps: a space in front, and runs of spaces as one.
        flag("tokenizer.ggml.add_space_prefix", not steps.pipeline.endswith("never")),
        flag("tokenizer.ggml.remove_extra_whitespaces", not steps.pipeline.startswith(("words", "metaspace"))),
        *_charsmap(steps.charsmap),
        text(keys.TOKENIZER_PIPELINE, steps.pipeline),
        text(keys.UNICODE_NORMALIZATION, steps.normalization),
        *added_key_values(added, n_rows),
    ]
    return Vocabulary(tuple(key_values), len(tokens), None, None, tuple(notes))


def _scored(model: Fields) -> tuple[dict[str, int], list[float]]:
    """Texts with their ids, and scores by id."""
    entries = model.values.get("vocab")
    if not isinstance(entries, list) or not entries:
        raise CheckpointError(f"{TOKENIZER_FILE}: model.vocab is not a list of tokens and scores")
    vocab: dict[str, int] = {}
    scores: list[float] = []
    for i, entry in enumerate(entries):
        match entry:
            case [str(token), int(score) | float(score)] if not isinstance(score, bool) and np.isfinite(score):
                if token in vocab:
                    raise CheckpointError(f"{TOKENIZER_FILE}: {short(token)} has the ids {vocab[token]} and {i}")
                vocab[token] = i
                scores.append(float(score))
            case _:
                raise CheckpointError(f"{TOKENIZER_FILE}: model.vocab: {short(entry)} is not a token and its score")
    return vocab, scores


def _charsmap(encoded: str | None) -> list[KeyValue]:
    if not encoded:
        return []
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise CheckpointError(f"{TOKENIZER_FILE}: normalizer: precompiled_charsmap is not base64: {error}") from None
    return [KeyValue("tokenizer.ggml.precompiled_charsmap", list(raw), GGUFValueType.UINT8)]
