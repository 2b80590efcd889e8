"""DistilBERT, as multi-qa-distilbert-cos-v1: BERT's layers under other names, no token types, mean pooling."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import wordpiece_tokenizer, wordpiece_vocabulary
from tests.families import Arrays
from tests.families._encoders import (
    Weights,
    in_temporary_folder,
    recorded,
    wordpiece_config,
    write_checkpoint,
    write_sentence_transformers,
)

NAME = "distilbert"
MAX_TOKENS = 512


def build(folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, prefix: str = "") -> Path:
    """The checkpoint; ``prefix`` is put before every tensor's name, as in checkpoints of models with a head."""
    vocab = wordpiece_vocabulary()
    weights = Weights()
    weights.add(f"{prefix}embeddings.word_embeddings.weight", len(vocab), hidden, std=0.1)
    weights.add(f"{prefix}embeddings.position_embeddings.weight", MAX_TOKENS, hidden, std=0.03)
    weights.norm(f"{prefix}embeddings.LayerNorm", hidden)
    for i in range(layers):
        layer = f"{prefix}transformer.layer.{i}"
        for part in ("q", "k", "v", "out"):
            weights.linear(f"{layer}.attention.{part}_lin", hidden, hidden)
        weights.norm(f"{layer}.sa_layer_norm", hidden)
        weights.linear(f"{layer}.ffn.lin1", 4 * hidden, hidden)
        weights.linear(f"{layer}.ffn.lin2", hidden, 4 * hidden)
        weights.norm(f"{layer}.output_layer_norm", hidden)
    if prefix:
        weights.linear("vocab_transform", hidden, hidden)
        weights.norm("vocab_layer_norm", hidden)
        weights.add("vocab_projector.bias", len(vocab), std=0.05)
    write_checkpoint(
        folder,
        weights,
        {
            "architectures": ["DistilBertForMaskedLM" if prefix else "DistilBertModel"],
            "model_type": "distilbert",
            "activation": "gelu",
            "dim": hidden,
            "hidden_dim": 4 * hidden,
            "max_position_embeddings": MAX_TOKENS,
            "n_heads": heads,
            "n_layers": layers,
            "pad_token_id": 0,
            "sinusoidal_pos_embds": False,
            "tie_weights_": True,
            "vocab_size": len(vocab),
        },
        wordpiece_tokenizer(vocab),
        wordpiece_config(MAX_TOKENS, "DistilBertTokenizer"),
    )
    write_sentence_transformers(folder, hidden=hidden, pooling="mean")
    return folder


def record() -> Arrays:
    """Vectors and ids of the original."""
    return in_temporary_folder(build, lambda folder: recorded(folder, pooling="mean", max_tokens=MAX_TOKENS))
