"""BERT encoders: MiniLM, bge-*-en, gte-*, e5-* and their like, as sentence embedding models.

Names and shapes from transformers' ``BertModel`` and from llama.cpp's src/models/bert.cpp.
llama.cpp computes GELU by its tanh approximation where transformers uses erf; the vectors differ by about 1e-5.
"""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Fields
from ..container.entries import uint
from .encoder import GELUS, entries, read_sizes
from .family import Family, Hyper, Row, linear, must_be, norm
from .heads import with_score


def hyper(config: Fields) -> Hyper:
    """A BERT's hyper-parameters."""
    return encoder_hyper(config, first_position=0)


def encoder_hyper(config: Fields, *, first_position: int) -> Hyper:
    """Those of an encoder with BERT's layers.

    Args:
        config: config.json.
        first_position: the row of the position embeddings that a text's first token takes.
    """
    must_be(config, "position_embedding_type", ("absolute",), "only absolute positions are converted")
    must_be(config, "hidden_act", GELUS, "llama.cpp computes gelu")
    must_be(config, "is_decoder", (False,), "a decoder attends differently")
    must_be(config, "add_cross_attention", (False,), "an embedding has nothing to attend across to")
    sizes = read_sizes(config)
    n_positions = config.integer("max_position_embeddings", low=first_position + 1) - first_position
    n_types = config.integer("type_vocab_size", low=1, high=2**16, default=2)
    epsilon = config.number("layer_norm_eps", low=0.0, high=1.0, default=1e-12)
    if sizes.n_embd % sizes.n_head:
        raise config.error("num_attention_heads", f"a divisor of hidden_size {sizes.n_embd}")
    return Hyper(
        n_layer=sizes.n_layer,
        n_embd=sizes.n_embd,
        n_rows=sizes.n_rows,
        max_positions=n_positions,
        sizes={**sizes.symbols, "positions": first_position + n_positions, "unused": first_position, "types": n_types},
        key_values=(
            *entries("bert", sizes, n_positions=n_positions, epsilon=epsilon),
            uint("tokenizer.ggml.token_type_count", n_types),
        ),
    )


def _cross_hyper(config: Fields) -> Hyper:
    found = with_score(config, hyper(config), "bert")
    if found.sizes["types"] < 2:
        return found
    note = "llama.cpp takes token type 0 for both texts of a pair; edge-embed gives the second its own: scores differ"
    return replace(found, notes=(*found.notes, note))


_LAYER = "encoder.layer.{i}."

BERT = Family(
    arch="bert",
    model_type="bert",
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    refused={
        "BertForTokenClassification": "it labels tokens and is no embedding model",
        "BertForQuestionAnswering": "it marks spans and is no embedding model",
        "BertLMHeadModel": "a decoder attends differently",
    },
    tokenizer=("wordpiece", "unigram"),  # multilingual-e5-small is a BERT with XLM-RoBERTa's tokenizer
    default_pooling=None,
    hyper=hyper,
    prefixes=("bert.",),
    # Checkpoints converted from TensorFlow spell LayerNorm's parameters so.
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    tensors=(
        Row("embeddings.word_embeddings.weight", "token_embd.weight", ("rows", "embd")),
        Row("embeddings.position_embeddings.weight", "position_embd.weight", ("positions", "embd"), drop="unused"),
        Row("embeddings.token_type_embeddings.weight", "token_types.weight", ("types", "embd")),
        *norm("embeddings.LayerNorm", "token_embd_norm"),
    ),
    layer=(
        *linear(_LAYER + "attention.self.query", "blk.{i}.attn_q", "embd", "embd"),
        *linear(_LAYER + "attention.self.key", "blk.{i}.attn_k", "embd", "embd"),
        *linear(_LAYER + "attention.self.value", "blk.{i}.attn_v", "embd", "embd"),
        *linear(_LAYER + "attention.output.dense", "blk.{i}.attn_output", "embd", "embd"),
        *norm(_LAYER + "attention.output.LayerNorm", "blk.{i}.attn_output_norm"),
        *linear(_LAYER + "intermediate.dense", "blk.{i}.ffn_up", "ff", "embd"),
        *linear(_LAYER + "output.dense", "blk.{i}.ffn_down", "embd", "ff"),
        *norm(_LAYER + "output.LayerNorm", "blk.{i}.layer_output_norm"),
    ),
    skipped=(
        (r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., not a weight"),
        (r"embeddings\.token_type_ids", "zeros, not a weight"),
        (r"pooler\.dense\.(weight|bias)", "the next-sentence pooler; embeddings are pooled from the last layer"),
        (r"cls\.(predictions|seq_relationship)\..*", "the pre-training head; embeddings do not use it"),
    ),
)

BERT_CROSS = replace(
    BERT,
    classes=("BertForSequenceClassification",),
    refused={},
    default_pooling="rank",
    hyper=_cross_hyper,
    tensors=(
        *BERT.tensors,
        *linear("pooler.dense", "cls", "embd", "embd"),
        *linear("classifier", "cls.output", "labels", "embd"),
    ),
    skipped=(
        (r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., not a weight"),
        (r"embeddings\.token_type_ids", "zeros, not a weight"),
    ),
)
