"""SentencePiece's BPE as Hugging Face has it: Gemma, Llama 2, Mistral.

Names and defaults from llama.cpp's src/llama-vocab.cpp (its ``llama``, or SPM, tokenizer), which joins the two
neighbours whose text has the highest score, where Hugging Face's joins those of the earliest merge.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf import GGUFValueType, TokenType

from edge_embed import keys
from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields
from ..container.entries import KeyValue, flag, text, texts, uint
from .bpe import read_merges
from .tokenizer_json import (
    TOKENIZER_FILE,
    added_key_values,
    added_tokens,
    check_distinct,
    model_of,
    token_table,
    token_text,
    unsupported,
    vocab_of,
)
from .vocabulary import Vocabulary, sentencepiece_steps, special_ids, special_ids_by_text, template_with_end

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def convert(tokenizer: Fields, config: Fields, n_rows: int) -> Vocabulary:
    """The keys of a BPE tokenizer.json with tokens for single bytes; see ``read_vocabulary``."""
    model = model_of(tokenizer, "BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.values.get(key) not in (None, "", False):
            raise unsupported(f"model.{key}", model.values[key])
    notes: list[str] = []
    steps = sentencepiece_steps(tokenizer)
    if steps.charsmap:
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: normalizer has a precompiled_charsmap, which llama.cpp's SPM tokenizer does not have"
        )
    vocab, added = vocab_of(model), added_tokens(tokenizer)
    missing = [byte for byte in _BYTES if byte not in vocab]
    if missing:
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: the vocabulary lacks tokens for single bytes ({missing[0]} and {len(missing) - 1} "
            "more), and llama.cpp's SPM tokenizer ends the process without them"
        )
    tokens, types = token_table(vocab, added, n_rows, notes)
    check_distinct(tokens)
    by_text = special_ids_by_text(config, vocab, added, len(tokens))
    for byte in _BYTES:
        types[vocab[byte]] = int(TokenType.BYTE)
    unknown = by_text.get(token_text(config, "unk_token") or "", vocab.get(str(model.values.get("unk_token"))))
    template, _ = template_with_end(tokenizer, config, by_text, types, notes)
    eds = template.after[0] if template.after else None
    merges = read_merges(model, vocab)
    key_values = [
        text("tokenizer.ggml.model", "llama"),
        text("tokenizer.ggml.pre", "default"),
        texts("tokenizer.ggml.tokens", tokens),
        KeyValue("tokenizer.ggml.scores", _scores(vocab, merges, types), GGUFValueType.FLOAT32),
        KeyValue("tokenizer.ggml.token_type", types, GGUFValueType.INT32),
        texts("tokenizer.ggml.merges", merges),  # llama.cpp does not read them here; the original's ids need them
        *([uint("tokenizer.ggml.unknown_token_id", unknown)] if unknown is not None else []),
        *special_ids(config, by_text, template),
        flag("tokenizer.ggml.add_space_prefix", steps.pipeline not in _WITHOUT_PREFIX),
        text(keys.TOKENIZER_PIPELINE, steps.pipeline),
        text(keys.UNICODE_NORMALIZATION, steps.normalization),
        *([uint(keys.EDS_TOKEN_ID, eds)] if eds is not None else []),
        *added_key_values(added, n_rows),
    ]
    return Vocabulary(tuple(key_values), len(tokens), None, eds, tuple(notes))


_WITHOUT_PREFIX = frozenset({"replace", "replace-split", "metaspace-never"})


def _scores(vocab: dict[str, int], merges: Sequence[str], types: Sequence[int]) -> list[float]:
    """For each token how early it is merged; what no merge makes comes last, special tokens have 0."""
    scores = [0.0 if kind in (TokenType.CONTROL, TokenType.BYTE) else -float(len(merges)) for kind in types]
    for rank, merge in reversed(list(enumerate(merges))):
        scores[vocab[merge.replace(" ", "", 1)]] = -float(rank)
    return scores
