"""WordPiece: BERT, MiniLM, bge and their like."""

from __future__ import annotations

from gguf import GGUFValueType, TokenType

from edge_embed import keys
from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.pipelines import PHANTOM_SPACE

from ..checkpoint import Fields, short
from ..container.entries import KeyValue, flag, text, texts, uint
from .tokenizer_json import (
    TOKENIZER_FILE,
    added_tokens,
    check_distinct,
    expect,
    model_of,
    template_of,
    token_table,
    token_text,
    unsupported,
    vocab_of,
)
from .vocabulary import Vocabulary, pair_separator


def convert(tokenizer: Fields, config: Fields, n_rows: int) -> Vocabulary:
    """The keys of a WordPiece tokenizer.json; see ``read_vocabulary``."""
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
    template = template_of(tokenizer, types)
    if len(template.before) != 1 or len(template.after) != 1:
        raise unsupported("post_processor", tokenizer.values.get("post_processor"))
    cls, sep = template.before[0], template.after[0]
    for i, kind in enumerate(types):
        if kind == TokenType.NORMAL:
            # llama.cpp marks the pieces that begin a word, where WordPiece marks the others with ##
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
        *(pair_separator(template.separator) if template.separator != (sep,) else []),
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
