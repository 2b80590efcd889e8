"""ModernBERT, as gte-modernbert-base: global and local attention in turns, GeGLU, CLS pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families import Arrays
from tests.families._encoders import (
    GPT2_SPECIALS,
    Weights,
    byte_bpe,
    in_temporary_folder,
    recorded,
    write_checkpoint,
    write_sentence_transformers,
)
from tests.golden_texts import TEXTS

NAME = "modern_bert"
MAX_TOKENS = 1024
SPACES = tuple(" " * n for n in range(2, 9))  # ModernBERT has a token for each run of spaces up to 24


def tokenizer_json() -> dict[str, Any]:
    """The byte-level tokenizer of ModernBERT: NFC, GPT-2's words, ``[CLS]`` and ``[SEP]`` around a text."""
    vocab, merges, added = byte_bpe(GPT2_SPECIALS, ["|||IP_ADDRESS|||", *SPACES])
    template = {"[CLS]": added["[CLS]"], "[SEP]": added["[SEP]"]}
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in template)
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": token == "[MASK]",
                "rstrip": False,
                "normalized": token in SPACES,
                "special": token in GPT2_SPECIALS,
            }
            for token, i in added.items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, sep],
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in template.items()},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def build(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    ffn: int = 96,
    head: bool = False,
    spelling: int = 4,
    config: dict[str, Any] | None = None,
) -> Path:
    """The checkpoint; ``head`` adds a cross-encoder's, ``spelling`` is the version of transformers that wrote it."""
    tokenizer = tokenizer_json()
    ids = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    rows = -(-(max(ids.values()) + 1) // 64) * 64
    prefix = "model." if head else ""
    weights = Weights()
    weights.add(f"{prefix}embeddings.tok_embeddings.weight", rows, hidden, std=0.3)
    weights.norm(f"{prefix}embeddings.norm", hidden, bias=False)
    for i in range(layers):
        layer = f"{prefix}layers.{i}"
        if i > 0:
            weights.norm(f"{layer}.attn_norm", hidden, bias=False)
        weights.linear(f"{layer}.attn.Wqkv", 3 * hidden, hidden, bias=False, gain=1.0)
        weights.linear(f"{layer}.attn.Wo", hidden, hidden, bias=False, gain=0.6)
        weights.norm(f"{layer}.mlp_norm", hidden, bias=False)
        weights.linear(f"{layer}.mlp.Wi", 2 * ffn, hidden, bias=False)
        weights.linear(f"{layer}.mlp.Wo", hidden, ffn, bias=False, gain=0.6)
    weights.norm(f"{prefix}final_norm", hidden, bias=False)
    if head:
        weights.linear("head.dense", hidden, hidden, bias=False)
        weights.norm("head.norm", hidden, bias=False)
        weights.linear("classifier", 1, hidden)
    rope: dict[str, Any] = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    if spelling == 5:
        rope = {
            "layer_types": ["sliding_attention" if i % 3 else "full_attention" for i in range(layers)],
            "rope_parameters": {
                "full_attention": {"rope_theta": 160000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        }
    write_checkpoint(
        folder,
        weights,
        {
            "architectures": ["ModernBertForSequenceClassification" if head else "ModernBertModel"],
            "model_type": "modernbert",
            "attention_bias": False,
            "bos_token_id": ids["[CLS]"],
            "classifier_activation": "gelu",
            "classifier_bias": False,
            "classifier_pooling": "mean",
            "cls_token_id": ids["[CLS]"],
            "eos_token_id": ids["[SEP]"],
            "hidden_activation": "gelu",
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "local_attention": 128,
            "max_position_embeddings": MAX_TOKENS,
            "mlp_bias": False,
            "norm_bias": False,
            "norm_eps": 1e-5,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "pad_token_id": ids["[PAD]"],
            "sep_token_id": ids["[SEP]"],
            "vocab_size": rows,
            **({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if head else {}),
            **rope,
            **(config or {}),
        },
        tokenizer,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": True,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": MAX_TOKENS,
            **{f"{k}_token": f"[{k.upper()}]" for k in ("unk", "sep", "pad", "cls", "mask")},
        },
    )
    if not head:
        write_sentence_transformers(folder, hidden=hidden, pooling="cls", normalize=False)
    return folder


def record() -> Arrays:
    """Vectors and ids of the original; most texts are longer than the local layers' window. Some vectors with SiLU."""
    whole = in_temporary_folder(build, lambda folder: recorded(folder, pooling="cls", max_tokens=MAX_TOKENS))
    some = in_temporary_folder(
        lambda folder: build(folder, config={"hidden_activation": "silu"}),
        lambda folder: recorded(folder, pooling="cls", max_tokens=MAX_TOKENS, texts=TEXTS[::6]),
    )
    return {**whole, "silu": some["vectors"]}
