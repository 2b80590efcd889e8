"""A BERT cross-encoder, as ms-marco-MiniLM-L6-v2: token types, pooler with tanh, one score."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import wordpiece_tokenizer, wordpiece_vocabulary
from tests.families import Arrays
from tests.families._encoders import (
    bert_config,
    bert_weights,
    in_temporary_folder,
    recorded_scores,
    wordpiece_config,
    write_checkpoint,
)

NAME = "cross_bert"
MAX_TOKENS = 512


def build(folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, types: int = 2) -> Path:
    """The checkpoint. The two token types differ enough to be seen in the scores."""
    vocab = wordpiece_vocabulary()
    sizes = {"rows": len(vocab), "positions": MAX_TOKENS, "types": types, "hidden": hidden, "layers": layers}
    weights = bert_weights(**sizes, prefix="bert.", types_std=0.1)
    weights.linear("bert.pooler.dense", hidden, hidden)
    weights.linear("classifier", 1, hidden, gain=3.0)
    return write_checkpoint(
        folder,
        weights,
        bert_config(
            **sizes,
            heads=heads,
            head=True,
            architectures=["BertForSequenceClassification"],
            model_type="bert",
            layer_norm_eps=1e-12,
            pad_token_id=0,
            sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"},
        ),
        wordpiece_tokenizer(vocab),
        wordpiece_config(MAX_TOKENS),
    )


def record() -> Arrays:
    """Logits and ids of the original."""
    return in_temporary_folder(build, recorded_scores)
