"""DistilBERT encoders: msmarco-distilbert-*, multi-qa-distilbert-* and their like.

Names and shapes from transformers' ``DistilBertModel``; llama.cpp runs them as ``bert``. BERT's layers under other
names, without token types.
"""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Fields
from ..container.entries import uint
from .bert import BERT
from .encoder import GELUS, entries, read_sizes
from .family import Hyper, Row, linear, must_be, norm

_EPSILON = 1e-12  # in transformers' code; config.json has none


def _hyper(config: Fields) -> Hyper:
    must_be(config, "activation", GELUS, "llama.cpp computes gelu")
    sizes = read_sizes(config, n_embd="dim", n_head="n_heads", n_layer="n_layers", n_ff="hidden_dim")
    n_positions = config.integer("max_position_embeddings", low=1)
    if sizes.n_embd % sizes.n_head:
        raise config.error("n_heads", f"a divisor of dim {sizes.n_embd}")
    return Hyper(
        n_layer=sizes.n_layer,
        n_embd=sizes.n_embd,
        n_rows=sizes.n_rows,
        max_positions=n_positions,
        sizes={**sizes.symbols, "positions": n_positions},
        key_values=(
            *entries("bert", sizes, n_positions=n_positions, epsilon=_EPSILON),
            uint("tokenizer.ggml.token_type_count", 1),  # llama.cpp wants a number, and takes a missing tensor for none
        ),
    )


_LAYER = "transformer.layer.{i}."

DISTILBERT = replace(
    BERT,
    model_type="distilbert",
    classes=("DistilBertModel", "DistilBertForMaskedLM"),
    refused={
        "DistilBertForSequenceClassification": "its head has a ReLU, where llama.cpp's bert computes tanh",
        "DistilBertForTokenClassification": "it labels tokens and is no embedding model",
        "DistilBertForQuestionAnswering": "it marks spans and is no embedding model",
    },
    hyper=_hyper,
    prefixes=("distilbert.",),
    renames=(),
    tensors=(
        Row("embeddings.word_embeddings.weight", "token_embd.weight", ("rows", "embd")),
        Row("embeddings.position_embeddings.weight", "position_embd.weight", ("positions", "embd")),
        *norm("embeddings.LayerNorm", "token_embd_norm"),
    ),
    layer=(
        *linear(_LAYER + "attention.q_lin", "blk.{i}.attn_q", "embd", "embd"),
        *linear(_LAYER + "attention.k_lin", "blk.{i}.attn_k", "embd", "embd"),
        *linear(_LAYER + "attention.v_lin", "blk.{i}.attn_v", "embd", "embd"),
        *linear(_LAYER + "attention.out_lin", "blk.{i}.attn_output", "embd", "embd"),
        *norm(_LAYER + "sa_layer_norm", "blk.{i}.attn_output_norm"),
        *linear(_LAYER + "ffn.lin1", "blk.{i}.ffn_up", "ff", "embd"),
        *linear(_LAYER + "ffn.lin2", "blk.{i}.ffn_down", "embd", "ff"),
        *norm(_LAYER + "output_layer_norm", "blk.{i}.layer_output_norm"),
    ),
    skipped=((r"vocab_(transform|layer_norm|projector)\..*", "the pre-training head; embeddings do not use it"),),
)
