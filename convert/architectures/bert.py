"""BERT encoders: MiniLM, bge-*-en, gte-*, e5-* and their like, as sentence embedding models.

Names and shapes from transformers' ``BertModel`` and from llama.cpp's src/models/bert.cpp.
llama.cpp computes GELU by its tanh approximation where transformers uses erf; the vectors differ by about 1e-5.
"""

from __future__ import annotations

from ..checkpoint import Fields
from .family import Family, Hyper, Row, flag, must_be, real, uint


def _hyper(config: Fields) -> Hyper:
    must_be(config, "position_embedding_type", ("absolute",), "only absolute positions are converted")
    must_be(config, "hidden_act", ("gelu",), "llama.cpp computes gelu")
    must_be(config, "is_decoder", (False,), "a decoder attends differently")
    must_be(config, "add_cross_attention", (False,), "an embedding has nothing to attend across to")
    n_embd = config.integer("hidden_size", low=1, high=2**20)
    n_head = config.integer("num_attention_heads", low=1, high=n_embd)
    n_layer = config.integer("num_hidden_layers", low=1, high=512)
    n_ff = config.integer("intermediate_size", low=1, high=2**20)
    n_rows = config.integer("vocab_size", low=1)
    n_positions = config.integer("max_position_embeddings", low=1)
    n_types = config.integer("type_vocab_size", low=1, high=2**16, default=2)
    epsilon = config.number("layer_norm_eps", low=0.0, high=1.0, default=1e-12)
    if n_embd % n_head:
        raise config.error("num_attention_heads", f"a divisor of hidden_size {n_embd}")
    return Hyper(
        n_layer=n_layer,
        n_embd=n_embd,
        n_rows=n_rows,
        max_positions=n_positions,
        sizes={"rows": n_rows, "embd": n_embd, "ff": n_ff, "positions": n_positions, "types": n_types},
        key_values=(
            uint("bert.block_count", n_layer),
            uint("bert.context_length", n_positions),
            uint("bert.embedding_length", n_embd),
            uint("bert.feed_forward_length", n_ff),
            uint("bert.attention.head_count", n_head),
            real("bert.attention.layer_norm_epsilon", epsilon),
            flag("bert.attention.causal", False),
            uint("tokenizer.ggml.token_type_count", n_types),
        ),
    )


def _with_bias(source: str, target: str, n_out: str, n_in: str) -> tuple[Row, Row]:
    return (
        Row(f"{source}.weight", f"{target}.weight", (n_out, n_in)),
        Row(f"{source}.bias", f"{target}.bias", (n_out,)),
    )


def _norm(source: str, target: str) -> tuple[Row, Row]:
    return Row(f"{source}.weight", f"{target}.weight", ("embd",)), Row(f"{source}.bias", f"{target}.bias", ("embd",))


_LAYER = "encoder.layer.{i}."

BERT = Family(
    arch="bert",
    model_type="bert",
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    refused={
        "BertForSequenceClassification": "a cross-encoder's pooler and classifier are not converted yet",
        "BertForTokenClassification": "it labels tokens and is no embedding model",
        "BertForQuestionAnswering": "it marks spans and is no embedding model",
        "BertLMHeadModel": "a decoder attends differently",
    },
    tokenizer="wordpiece",
    default_pooling=None,
    hyper=_hyper,
    prefixes=("bert.",),
    # Checkpoints converted from TensorFlow spell LayerNorm's parameters so.
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    tensors=(
        Row("embeddings.word_embeddings.weight", "token_embd.weight", ("rows", "embd")),
        Row("embeddings.position_embeddings.weight", "position_embd.weight", ("positions", "embd")),
        Row("embeddings.token_type_embeddings.weight", "token_types.weight", ("types", "embd")),
        *_norm("embeddings.LayerNorm", "token_embd_norm"),
    ),
    layer=(
        *_with_bias(_LAYER + "attention.self.query", "blk.{i}.attn_q", "embd", "embd"),
        *_with_bias(_LAYER + "attention.self.key", "blk.{i}.attn_k", "embd", "embd"),
        *_with_bias(_LAYER + "attention.self.value", "blk.{i}.attn_v", "embd", "embd"),
        *_with_bias(_LAYER + "attention.output.dense", "blk.{i}.attn_output", "embd", "embd"),
        *_norm(_LAYER + "attention.output.LayerNorm", "blk.{i}.attn_output_norm"),
        *_with_bias(_LAYER + "intermediate.dense", "blk.{i}.ffn_up", "ff", "embd"),
        *_with_bias(_LAYER + "output.dense", "blk.{i}.ffn_down", "embd", "ff"),
        *_norm(_LAYER + "output.LayerNorm", "blk.{i}.layer_output_norm"),
    ),
    skipped=(
        (r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., not a weight"),
        (r"embeddings\.token_type_ids", "zeros, not a weight"),
        (r"pooler\.dense\.(weight|bias)", "the next-sentence pooler; embeddings are pooled from the last layer"),
        (r"cls\.(predictions|seq_relationship)\..*", "the pre-training head; embeddings do not use it"),
    ),
)
