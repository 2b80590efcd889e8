"""ModernBERT encoders: gte-modernbert-base and its like, and the cross-encoders made from them.

Names and shapes from transformers' ``ModernBertModel`` and from llama.cpp's src/models/modern-bert.cpp. Attention is
global in every n-th layer and reaches ``local_attention / 2`` tokens to either side in the others; both the mask and
the two rotary bases are the file's metadata.
"""

from __future__ import annotations

from dataclasses import replace

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields, short
from ..container.entries import real, text, uint
from .encoder import entries, read_sizes
from .family import Family, Hyper, Row, must_be
from .heads import with_score

_POOLING_TYPES = {"mean": 1, "cls": 2}  # llama.h


def _hyper(config: Fields) -> Hyper:
    must_be(config, "hidden_activation", ("gelu", "silu"), "llama.cpp computes a GLU of gelu or silu")
    for key in ("attention_bias", "mlp_bias", "norm_bias"):
        must_be(config, key, (False,), "llama.cpp's modern-bert has no such biases")
    sizes = read_sizes(config)
    n_positions = config.integer("max_position_embeddings", low=1, default=8192)
    epsilon = config.number("norm_eps", low=0.0, high=1.0, default=1e-5)
    window = config.integer("local_attention", low=2, default=128)
    if sizes.n_embd % sizes.n_head or (sizes.n_embd // sizes.n_head) % 2:
        raise config.error(
            "num_attention_heads", f"a divisor of hidden_size {sizes.n_embd} that leaves heads of even size"
        )
    full, sliding = _rope_thetas(config)
    return Hyper(
        n_layer=sizes.n_layer,
        n_embd=sizes.n_embd,
        n_rows=sizes.n_rows,
        max_positions=n_positions,
        sizes={**sizes.symbols, "qkv": 3 * sizes.n_embd, "glu": 2 * sizes.n_ff},
        key_values=(
            *entries("modern-bert", sizes, n_positions=n_positions, epsilon=epsilon),
            uint("modern-bert.attention.sliding_window", window),
            uint("modern-bert.attention.sliding_window_pattern", _pattern(config, sizes.n_layer)),
            text("modern-bert.rope.scaling.type", "none"),
            real("modern-bert.rope.freq_base", full),
            real("modern-bert.rope.freq_base_swa", sliding),
            text("modern-bert.hidden_activation", config.string("hidden_activation", default="gelu")),
        ),
    )


def _rope_thetas(config: Fields) -> tuple[float, float]:
    """The rotary bases of global and of local layers, in the spelling of transformers 5 or 4."""
    must_be(config, "rope_scaling", (), "scaled positions are not converted")
    if config.has("rope_parameters"):
        thetas = []
        both = config.mapping("rope_parameters")
        for key in ("full_attention", "sliding_attention"):
            rope = both.mapping(key)
            if rope.values.get("rope_type", "default") != "default":
                raise UnsupportedCheckpointError(
                    f"{rope.file} is {short(dict(rope.values))}, and only rope_type default is converted"
                )
            thetas.append(rope.number("rope_theta", low=1.0, high=1e12))
        return thetas[0], thetas[1]
    full = config.number("global_rope_theta", low=1.0, high=1e12, default=160000.0)
    if "local_rope_theta" in config.values and not config.has("local_rope_theta"):
        return full, full  # null means: as the global layers
    return full, config.number("local_rope_theta", low=1.0, high=1e12, default=10000.0)


def _pattern(config: Fields, n_layer: int) -> int:
    """The period n of which layers 0, n, 2n, ... see the whole text, which is how llama.cpp is told."""
    if not config.has("layer_types"):
        return config.integer("global_attn_every_n_layers", low=1, high=2**16, default=3)
    found = config.values["layer_types"]
    for period in range(1, n_layer + 1):
        if found == ["sliding_attention" if i % period else "full_attention" for i in range(n_layer)]:
            return period
    raise UnsupportedCheckpointError(
        f"{config.file}: layer_types {short(found)} are not full_attention in every n-th layer from the first"
    )


_LAYER = "layers.{i}."

MODERN_BERT = Family(
    arch="modern-bert",
    model_type="modernbert",
    classes=("ModernBertModel", "ModernBertForMaskedLM"),
    refused={
        "ModernBertForTokenClassification": "it labels tokens and is no embedding model",
        "ModernBertForQuestionAnswering": "it marks spans and is no embedding model",
        "ModernBertForMultipleChoice": "it chooses among several texts and is no embedding model",
    },
    tokenizer="bpe",
    default_pooling=None,
    hyper=_hyper,
    prefixes=("model.",),
    tensors=(
        Row("embeddings.tok_embeddings.weight", "token_embd.weight", ("rows", "embd")),
        Row("embeddings.norm.weight", "token_embd_norm.weight", ("embd",)),
        Row("final_norm.weight", "output_norm.weight", ("embd",)),
    ),
    layer=(
        # The embeddings are normalized already where the first layer begins.
        Row(_LAYER + "attn_norm.weight", "blk.{i}.attn_norm.weight", ("embd",), first_layer=1),
        Row(_LAYER + "attn.Wqkv.weight", "blk.{i}.attn_qkv.weight", ("qkv", "embd")),
        Row(_LAYER + "attn.Wo.weight", "blk.{i}.attn_output.weight", ("embd", "embd")),
        Row(_LAYER + "mlp_norm.weight", "blk.{i}.ffn_norm.weight", ("embd",)),
        Row(_LAYER + "mlp.Wi.weight", "blk.{i}.ffn_up.weight", ("glu", "embd")),
        Row(_LAYER + "mlp.Wo.weight", "blk.{i}.ffn_down.weight", ("embd", "ff")),
    ),
    skipped=(
        (r"head\.(dense|norm)\.weight", "part of the pre-training head; embeddings do not use it"),
        (r"decoder\.(weight|bias)", "part of the pre-training head; embeddings do not use it"),
    ),
)


def _cross_hyper(config: Fields) -> Hyper:
    must_be(config, "classifier_activation", ("gelu",), "llama.cpp computes gelu there")
    must_be(config, "classifier_bias", (False,), "llama.cpp's modern-bert has no bias there")
    must_be(config, "classifier_pooling", tuple(_POOLING_TYPES), "the head takes the mean or the first token")
    pooling = _POOLING_TYPES[config.string("classifier_pooling", default="cls")]
    return with_score(config, _hyper(config), "modern-bert", uint("modern-bert.classifier.pooling_type", pooling))


MODERN_BERT_CROSS = replace(
    MODERN_BERT,
    classes=("ModernBertForSequenceClassification",),
    default_pooling="rank",
    hyper=_cross_hyper,
    tensors=(
        *MODERN_BERT.tensors,
        Row("head.dense.weight", "cls.weight", ("embd", "embd")),
        Row("head.norm.weight", "cls.norm.weight", ("embd",)),
        Row("classifier.weight", "cls.output.weight", ("labels", "embd")),
        Row("classifier.bias", "cls.output.bias", ("labels",)),
    ),
    skipped=(),
)
