"""A BERT cross-encoder, as ms-marco-MiniLM-L6-v2: token types, pooler with tanh, one score."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import wordpiece_tokenizer, wordpiece_vocabulary
from tests.families import Arrays
from tests.families._encoders import (
    Weights,
    add_bert_layers,
    in_temporary_folder,
    recorded_scores,
    write_checkpoint,
)

NAME = "cross_bert"
MAX_TOKENS = 512


def build(folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4) -> Path:
    """The checkpoint. The two token types differ enough to be seen in the scores."""
    vocab = wordpiece_vocabulary()
    weights = Weights()
    weights.add("bert.embeddings.word_embeddings.weight", len(vocab), hidden, std=0.1)
    weights.add("bert.embeddings.position_embeddings.weight", MAX_TOKENS, hidden, std=0.03)
    weights.add("bert.embeddings.token_type_embeddings.weight", 2, hidden, std=0.1)
    weights.norm("bert.embeddings.LayerNorm", hidden)
    add_bert_layers(weights, "bert.", hidden=hidden, layers=layers)
    weights.linear("bert.pooler.dense", hidden, hidden)
    weights.linear("classifier", 1, hidden, gain=3.0)
    return write_checkpoint(
        folder,
        weights,
        {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_size": hidden,
            "id2label": {"0": "LABEL_0"},
            "intermediate_size": 4 * hidden,
            "label2id": {"LABEL_0": 0},
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": MAX_TOKENS,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"},
            "type_vocab_size": 2,
            "vocab_size": len(vocab),
        },
        wordpiece_tokenizer(vocab),
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "model_max_length": MAX_TOKENS,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
            **{f"{k}_token": f"[{k.upper()}]" for k in ("unk", "sep", "pad", "cls", "mask")},
        },
    )


def record() -> Arrays:
    """Logits and ids of the original."""
    return in_temporary_folder(build, recorded_scores)
