"""A tokenizer.json into ``tokenizer.ggml.*`` keys: WordPiece and byte-level BPE.

Knows the two tokenizers and what llama.cpp's vocabulary loader expects of them. Knows nothing of weights.
Every part of the tokenizer is recognized by its content; one that is not known is refused with what was found,
since a tokenizer that is almost right gives vectors that are silently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gguf import GGUFValueType, TokenType

from edge_embed import keys
from edge_embed.errors import CheckpointError, UnsupportedCheckpointError

from .architectures.family import KeyValue, flag, text, texts, uint
from .checkpoint import Checkpoint, Fields, short
from .tokenizer_json import (
    TOKENIZER_FILE,
    added_tokens,
    check_distinct,
    expect,
    model_of,
    post_processor_ids,
    token_table,
    token_text,
    unsupported,
    vocab_of,
)

PHANTOM_SPACE = "▁"  # llama.cpp marks the pieces that begin a word, where WordPiece marks the others with ##

# Pre-tokenizer expression -> llama.cpp's name for its own implementation of the same (src/llama-vocab.cpp).
_BPE_REGEXES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer's part of the metadata.

    Attributes:
        key_values: ``tokenizer.ggml.*`` and ``edge_embed.*`` entries.
        n_tokens: tokens, padding rows included.
        lowercase: whether the tokenizer lowercases; None where it has no such step.
        eds_token_id: the id that ends every text of a last-pooling model, or None.
        notes: what was decided without the checkpoint saying so, one sentence each.
    """

    key_values: tuple[KeyValue, ...]
    n_tokens: int
    lowercase: bool | None
    eds_token_id: int | None
    notes: tuple[str, ...]


def read_vocabulary(checkpoint: Checkpoint, kind: Literal["wordpiece", "bpe"], n_rows: int) -> Vocabulary:
    """The vocabulary of a checkpoint, padded to the ``n_rows`` rows of its embedding matrix.

    Raises:
        CheckpointError: tokenizer.json is missing or malformed, or has more tokens than the matrix has rows.
        UnsupportedCheckpointError: a part of the tokenizer is not one that is converted.
    """
    tokenizer = checkpoint.json(TOKENIZER_FILE)
    config = checkpoint.json("tokenizer_config.json") if checkpoint.has("tokenizer_config.json") else None
    convert = _wordpiece if kind == "wordpiece" else _bpe
    return convert(tokenizer, config or Fields({}, "tokenizer_config.json"), n_rows)


# ---------------------------------------------------------------- WordPiece


def _wordpiece(tokenizer: Fields, config: Fields, n_rows: int) -> Vocabulary:
    model = model_of(tokenizer, "WordPiece")
    prefix = model.string("continuing_subword_prefix", default="##")
    if prefix != "##":
        raise unsupported("model.continuing_subword_prefix", prefix)
    expect(tokenizer, "pre_tokenizer", {"type": "BertPreTokenizer"})
    normalizer = tokenizer.mapping("normalizer")
    if normalizer.values.get("type") != "BertNormalizer":
        raise unsupported("normalizer", normalizer.values)
    notes: list[str] = []
    settings = _normalizer_settings(normalizer, config, notes)

    vocab, added = vocab_of(model), added_tokens(tokenizer)
    ordinary = [token.content for token in added if not token.special]
    if ordinary:
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: added tokens that are not special ({short(ordinary)}) are matched inside words, "
            "which llama.cpp's WordPiece does not do"
        )
    unk = model.string("unk_token")
    if unk not in vocab:
        raise CheckpointError(f"{TOKENIZER_FILE}: the unknown token {short(unk)} is not in the vocabulary")

    tokens, types = token_table(vocab, added, n_rows, notes)
    before, after = post_processor_ids(tokenizer, types)
    if len(before) != 1 or len(after) != 1:
        raise unsupported("post_processor", tokenizer.values.get("post_processor"))
    cls, sep = before[0], after[0]
    for i, kind in enumerate(types):
        if kind == TokenType.NORMAL:
            tokens[i] = tokens[i][2:] if tokens[i].startswith("##") else PHANTOM_SPACE + tokens[i]
    check_distinct(tokens)

    specials = {token.content: token.id for token in added} | {unk: vocab[unk]}
    pad = specials.get(token_text(config, "pad_token") or "[PAD]")
    mask = specials.get(token_text(config, "mask_token") or "[MASK]")
    key_values = [
        text("tokenizer.ggml.model", "bert"),
        # llama.cpp reads no pre-tokenizer for WordPiece; this is the name that its own converter writes.
        text("tokenizer.ggml.pre", "bert-bge"),
        texts("tokenizer.ggml.tokens", tokens),
        KeyValue("tokenizer.ggml.token_type", types, GGUFValueType.INT32),
        uint("tokenizer.ggml.bos_token_id", cls),
        uint("tokenizer.ggml.eos_token_id", sep),
        uint("tokenizer.ggml.unknown_token_id", vocab[unk]),
        uint("tokenizer.ggml.seperator_token_id", sep),  # the standard's spelling
        *([uint("tokenizer.ggml.padding_token_id", pad)] if pad is not None else []),
        uint("tokenizer.ggml.cls_token_id", cls),
        *([uint("tokenizer.ggml.mask_token_id", mask)] if mask is not None else []),
        flag("tokenizer.ggml.add_bos_token", True),
        flag("tokenizer.ggml.add_eos_token", True),
        flag("tokenizer.ggml.add_sep_token", False),
        text(keys.UNICODE_NORMALIZATION, "none"),
        flag(keys.WORDPIECE_LOWERCASE, settings["lowercase"]),
        flag(keys.WORDPIECE_STRIP_ACCENTS, settings["strip_accents"]),
        flag(keys.WORDPIECE_CHINESE_CHARS, settings["handle_chinese_chars"]),
        flag(keys.WORDPIECE_CLEAN_TEXT, settings["clean_text"]),
        uint(keys.WORDPIECE_MAX_WORD_CHARS, model.integer("max_input_chars_per_word", low=1, default=100)),
    ]
    return Vocabulary(tuple(key_values), len(tokens), settings["lowercase"], None, tuple(notes))


def _normalizer_settings(normalizer: Fields, config: Fields, notes: list[str]) -> dict[str, bool]:
    """The four switches of BertNormalizer. ``strip_accents`` null means: as lowercase.

    transformers' BertTokenizer rebuilds the normalizer from tokenizer_config.json where the two differ, so
    that file wins for the classes that do.
    """
    values: dict[str, bool | None] = {
        "lowercase": normalizer.boolean("lowercase", default=True),
        "strip_accents": normalizer.boolean("strip_accents") if normalizer.has("strip_accents") else None,
        "handle_chinese_chars": normalizer.boolean("handle_chinese_chars", default=True),
        "clean_text": normalizer.boolean("clean_text", default=True),
    }
    if config.values.get("tokenizer_class") in ("BertTokenizer", "BertTokenizerFast"):
        for ours, theirs in (
            ("lowercase", "do_lower_case"),
            ("strip_accents", "strip_accents"),
            ("handle_chinese_chars", "tokenize_chinese_chars"),
        ):
            if config.has(theirs) and config.boolean(theirs) != values[ours]:
                values[ours] = config.boolean(theirs)
                notes.append(f"{theirs} of tokenizer_config.json overrides tokenizer.json's normalizer")
    return {k: bool(values["lowercase"] if v is None else v) for k, v in values.items()}


# ---------------------------------------------------------------- byte-level BPE


def _bpe(tokenizer: Fields, config: Fields, n_rows: int) -> Vocabulary:
    model = model_of(tokenizer, "BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
                "ignore_merges"):  # fmt: skip
        if model.values.get(key) not in (None, "", False):
            raise unsupported(f"model.{key}", model.values[key])
    notes: list[str] = []
    normalization = _unicode_normalization(tokenizer)
    pre = _bpe_pre_tokenizer(tokenizer)
    vocab, added = vocab_of(model), added_tokens(tokenizer)
    inexact = [token.content for token in added if not token.exact]
    if inexact:
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: added tokens with lstrip, rstrip or single_word ({short(inexact)}), "
            "which llama.cpp does not know"
        )
    tokens, types = token_table(vocab, added, n_rows, notes)
    check_distinct(tokens)
    by_text = {token.content: token.id for token in added if token.id < len(tokens)}

    end_of_turn = by_text.get(token_text(config, "eos_token") or "")
    pad = by_text.get(token_text(config, "pad_token") or "")
    eds = _eds_token(tokenizer, types, by_text, vocab, pad, end_of_turn, notes)
    if config.values.get("add_bos_token") is True:
        raise UnsupportedCheckpointError(f"{config.file}: add_bos_token is set, and no family here begins so")
    key_values = [
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", pre),
        texts("tokenizer.ggml.tokens", tokens),
        KeyValue("tokenizer.ggml.token_type", types, GGUFValueType.INT32),
        texts("tokenizer.ggml.merges", _merges(model, vocab)),
        # llama.cpp appends its end-of-sequence token where add_eos_token is set, so that token is the EDS one
        # and the end of a chat turn goes by its own name.
        uint("tokenizer.ggml.eos_token_id", eds),
        *([uint("tokenizer.ggml.eot_token_id", end_of_turn)] if end_of_turn is not None and end_of_turn != eds else []),
        uint("tokenizer.ggml.padding_token_id", eds if pad is None else pad),
        flag("tokenizer.ggml.add_bos_token", False),
        flag("tokenizer.ggml.add_eos_token", True),
        uint(keys.EDS_TOKEN_ID, eds),
        text(keys.UNICODE_NORMALIZATION, normalization),
    ]
    return Vocabulary(tuple(key_values), len(tokens), None, eds, tuple(notes))


def _unicode_normalization(tokenizer: Fields) -> str:
    if not tokenizer.has("normalizer"):
        return "none"
    normalizer = tokenizer.mapping("normalizer").values
    if dict(normalizer) in ({"type": "NFC"}, {"type": "NFKC"}):
        return str(normalizer["type"])
    raise unsupported("normalizer", normalizer)


def _bpe_pre_tokenizer(tokenizer: Fields) -> str:
    """llama.cpp's name for a pre-tokenizer that is one Split by a known expression and then ByteLevel."""
    value = tokenizer.mapping("pre_tokenizer").values
    parts = value.get("pretokenizers")
    if value.get("type") == "Sequence" and isinstance(parts, list) and len(parts) == 2:
        split, byte_level = parts
        pattern = split.get("pattern") if isinstance(split, dict) else None
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if (
            isinstance(regex, str)
            and regex in _BPE_REGEXES
            and split == {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
            and isinstance(byte_level, dict)
            and byte_level.get("type") == "ByteLevel"
            and byte_level.get("add_prefix_space") is False
            and byte_level.get("use_regex") is False
        ):
            return _BPE_REGEXES[regex]
    raise unsupported("pre_tokenizer", value)


def _eds_token(
    tokenizer: Fields,
    types: Sequence[int],
    added: Mapping[str, int],
    vocab: Mapping[str, int],
    pad: int | None,
    end_of_turn: int | None,
    notes: list[str],
) -> int:
    """The token that ends every text: a literal ``[EDS]``, what the post-processor appends, or the pad token.

    Never the end of a chat turn in the last case: a model that embeds by ``<|im_end|>`` says so in its
    post-processor.
    """
    literal = added.get("[EDS]", vocab.get("[EDS]"))
    if literal is not None:
        return literal
    before, after = post_processor_ids(tokenizer, types)
    if before or len(after) > 1:
        raise unsupported("post_processor", tokenizer.values.get("post_processor"))
    if after:
        return after[0]
    for candidate, name in ((pad, "the pad token"), (added.get("<|endoftext|>"), "<|endoftext|>")):
        if candidate is not None and candidate != end_of_turn:
            notes.append(f"the post-processor appends nothing: {name} ({candidate}) ends every text")
            return candidate
    raise UnsupportedCheckpointError(
        f"{TOKENIZER_FILE}: nothing says which token ends a text: no [EDS], no post-processor that appends one, "
        "no pad token"
    )


def _merges(model: Fields, vocab: Mapping[str, int]) -> list[str]:
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
