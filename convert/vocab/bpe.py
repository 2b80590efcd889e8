"""Byte-level BPE: Qwen, RoBERTa, ModernBERT, Llama 3, SmolLM.

Names and defaults from llama.cpp's src/llama-vocab.cpp (its ``gpt2`` tokenizer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType

from edge_embed import keys
from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.pipelines import BYTE_LEVEL, IGNORE_MERGES

from ..checkpoint import Fields, short
from ..container.entries import KeyValue, text, texts, uint
from .tokenizer_json import (
    TOKENIZER_FILE,
    Template,
    added_key_values,
    added_tokens,
    check_distinct,
    model_of,
    steps_of,
    token_table,
    token_text,
    unsupported,
    vocab_of,
)
from .vocabulary import ENDS_TEXTS, Vocabulary, special_ids, special_ids_by_text, template_with_end

# The printable stand-ins of the 256 bytes, as GPT-2 has them.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = frozenset(map(chr, (*_PRINTABLE, *range(0x100, 0x100 + 256 - len(_PRINTABLE)))))


def convert(tokenizer: Fields, config: Fields, n_rows: int) -> Vocabulary:
    """The keys of a byte-level BPE tokenizer.json; see ``read_vocabulary``."""
    model = model_of(tokenizer, "BPE")
    notes: list[str] = []
    vocab, added = vocab_of(model), added_tokens(tokenizer)
    _check_model(model, vocab)
    normalizers, pre_tokenizers = steps_of(tokenizer)
    normalization = _unicode_normalization(tokenizer, normalizers)
    tokens, types = token_table(vocab, added, n_rows, notes)
    check_distinct(tokens)
    by_text = special_ids_by_text(config, vocab, added, len(tokens))
    template, asked = template_with_end(tokenizer, config, by_text, types, notes)
    if config.values.get("add_bos_token") is True and not template.before:
        raise UnsupportedCheckpointError(
            f"{config.file}: add_bos_token is set, and {TOKENIZER_FILE}'s post-processor adds no such token"
        )
    if config.values.get("add_prefix_space") is True:
        raise UnsupportedCheckpointError(
            f"{config.file}: add_prefix_space is set, for which transformers puts a space before every text and "
            "llama.cpp's byte-level BPE does not"
        )
    pre = _pre_tokenizer(tokenizer, pre_tokenizers, template, model.values.get("ignore_merges") is True)
    key_values = [
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", pre),
        texts("tokenizer.ggml.tokens", tokens),
        KeyValue("tokenizer.ggml.token_type", types, GGUFValueType.INT32),
        texts("tokenizer.ggml.merges", read_merges(model, vocab)),
        text(keys.UNICODE_NORMALIZATION, normalization),
        *added_key_values(added, n_rows),
    ]
    eds, assumed = asked, False
    if template.before:  # an encoder, or a decoder with a token in front: what is added is all there is
        key_values += special_ids(config, by_text, template)
    else:
        end_of_turn = by_text.get(token_text(config, "eos_token") or "")
        pad = by_text.get(token_text(config, "pad_token") or "")
        eds, assumed = _eds_token(template, vocab, by_text, pad, end_of_turn, notes)
        key_values += special_ids(
            Fields({key: config.values.get(key) for key in ("bos_token",)}, config.file),
            by_text,
            Template((), (eds,), template.separator),
        )
        # llama.cpp appends its end-of-sequence token where add_eos_token is set, so that token is the EDS one
        # and the end of a chat turn goes by its own name.
        if end_of_turn is not None and end_of_turn != eds:
            key_values.append(uint("tokenizer.ggml.eot_token_id", end_of_turn))
        key_values.append(uint("tokenizer.ggml.padding_token_id", eds if pad is None else pad))
        key_values.append(uint(keys.EDS_TOKEN_ID, eds))
    return Vocabulary(tuple(key_values), len(tokens), None, eds, tuple(notes), assumed)


def _check_model(model: Fields, vocab: Mapping[str, int]) -> None:
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.values.get(key) not in (None, "", False):
            raise unsupported(f"model.{key}", model.values[key])
    missing = _BYTES - vocab.keys()
    if missing and model.values.get("unk_token") is not None:
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: {len(missing)} of the 256 bytes are not in the vocabulary, and model.unk_token "
            f"{short(model.values['unk_token'])} stands for them, which llama.cpp does not do"
        )


def _unicode_normalization(tokenizer: Fields, normalizers: list[dict[str, Any]]) -> str:
    if not normalizers:
        return "none"
    if normalizers in ([{"type": "NFC"}], [{"type": "NFKC"}]):
        return str(normalizers[0]["type"])
    raise unsupported("normalizer", tokenizer.values.get("normalizer"))


def _pre_tokenizer(tokenizer: Fields, found: list[dict[str, Any]], template: Template, ignore_merges: bool) -> str:
    """llama.cpp's name for these pre-tokenizers; of several, the one that its own converter writes for such a model."""
    parts = tuple(part | {"trim_offsets": True} if part["type"] == "ByteLevel" else part for part in found)
    names = [name for name, known in BYTE_LEVEL.items() if known == parts]
    if not names:
        raise unsupported("pre_tokenizer", tokenizer.values.get("pre_tokenizer"))
    if (names[0] in IGNORE_MERGES) is not ignore_merges:
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: model.ignore_merges is {str(ignore_merges).lower()}, which is not what llama.cpp does "
            f"for its pre-tokenizer {names[0]}"
        )
    if names[0] == "gpt-2" and template.before:
        return "roberta-bpe" if template.separator and len(template.separator) == 2 else "modern-bert"
    return names[0]


def _eds_token(
    template: Template,
    vocab: Mapping[str, int],
    by_text: Mapping[str, int],
    pad: int | None,
    end_of_turn: int | None,
    notes: list[str],
) -> tuple[int, bool]:
    """The token that ends every text: a literal ``[EDS]``, what the post-processor appends, or the pad token; and
    whether it is the last, which no file says.

    Never the end of a chat turn in the last case: a model that embeds by ``<|im_end|>`` says so in its
    post-processor.
    """
    literal = by_text.get("[EDS]", vocab.get("[EDS]"))
    if literal is not None:
        return literal, False
    if template.after:
        return template.after[0], False
    for candidate, name in ((pad, "the pad token"), (by_text.get("<|endoftext|>"), "<|endoftext|>")):
        if candidate is not None and candidate != end_of_turn:
            notes.append(f"the post-processor appends nothing: {name} ({candidate}) {ENDS_TEXTS}")
            return candidate, True
    raise UnsupportedCheckpointError(
        f"{TOKENIZER_FILE}: nothing says which token ends a text: no [EDS], no post-processor that appends one, "
        "no pad token"
    )


def read_merges(model: Fields, vocab: Mapping[str, int]) -> list[str]:
    """The merges as ``left right``, each checked against the vocabulary."""
    merges = model.values.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{TOKENIZER_FILE}: model.merges is not a list")
    lines = []
    for entry in merges:
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p and " " not in p for p in pair)
        ):
            raise CheckpointError(f"{TOKENIZER_FILE}: merge {short(entry)} is not a pair of tokens")
        if not {*pair, "".join(pair)} <= vocab.keys():
            raise CheckpointError(f"{TOKENIZER_FILE}: merge {short(entry)} has a token that is not in the vocabulary")
        lines.append(" ".join(pair))
    return lines
