"""Gemma 3 text encoders that look both ways: EmbeddingGemma and models tuned from it.

Names and shapes from transformers' ``Gemma3TextModel`` and from llama.cpp's src/models/gemma-embedding.cpp, which
computes the Dense modules behind the pooling as well. The norms' weights are stored minus 1 in the checkpoint. A
window of w tokens reaches w/2 to each side, in both.
"""

from __future__ import annotations

from dataclasses import replace

from gguf import GGUFValueType

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields, short
from ..container.entries import KeyValue, real, uint
from .decoder import LAYER, MLP, TENSORS, attention, hyper_of, rope_kind
from .family import Family, Hyper, Row, must_be

_ARCH = "gemma-embedding"


def _thetas(config: Fields) -> tuple[float, float]:
    """The bases of the rotation in the layers that see everything and in those that see a window."""
    kinds = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
    both = config.mapping("rope_parameters", default={})
    ropes = {kind: both.mapping(kind, default={}) for kind in kinds}
    flat = {key: value for key, value in both.values.items() if key not in kinds}
    for rope in (Fields(flat, both.file), config.mapping("rope_scaling", default={}), *ropes.values()):
        if rope_kind(rope) != "default":
            raise UnsupportedCheckpointError(f"{rope.file} scales positions, which is not converted for Gemma")
    theta = {
        kind: (ropes[kind] if ropes[kind].has("rope_theta") else config).number(
            "rope_theta" if ropes[kind].has("rope_theta") else key, low=1.0, high=1e12, default=default
        )
        for kind, (key, default) in kinds.items()
    }
    return theta["full_attention"], theta["sliding_attention"]


def _layer_types(config: Fields, n_layer: int) -> list[bool]:
    """For each layer whether it sees only a window."""
    kinds = config.values.get("layer_types")
    if kinds is None:
        key = "sliding_window_pattern" if config.has("sliding_window_pattern") else "_sliding_window_pattern"
        every = config.integer(key, low=1, default=6)
        return [(i + 1) % every != 0 for i in range(n_layer)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != n_layer
        or any(k not in ("sliding_attention", "full_attention") for k in kinds)
    ):
        raise config.error("layer_types", f"{n_layer} times sliding_attention or full_attention")
    return [kind == "sliding_attention" for kind in kinds]


def _hyper(config: Fields) -> Hyper:
    if not config.boolean("use_bidirectional_attention", default=False):
        raise UnsupportedCheckpointError(
            f"{config.file}: use_bidirectional_attention is not true; of Gemma 3 only models that look both ways, as "
            "EmbeddingGemma does, have been compared with their originals"
        )
    must_be(config, "hidden_activation", ("gelu_pytorch_tanh",), "llama.cpp computes gelu by tanh")
    must_be(config, "attention_bias", (False,), "llama.cpp's gemma has no attention biases")
    must_be(config, "attn_logit_softcapping", (), "llama.cpp's gemma-embedding does not cap attention")
    full, sliding = _thetas(config)
    hyper = hyper_of(_ARCH, config, head_dim=256, theta=full)
    head_dim, scalar = hyper.sizes["head"], config.values.get("query_pre_attn_scalar", 256)
    if scalar != head_dim:
        raise UnsupportedCheckpointError(
            f"{config.file}: query_pre_attn_scalar is {short(scalar)} and head_dim {head_dim}; "
            "llama.cpp's gemma-embedding takes them for equal"
        )
    more = (
        uint(f"{_ARCH}.attention.sliding_window", config.integer("sliding_window", low=2)),
        KeyValue(f"{_ARCH}.attention.sliding_window_pattern", _layer_types(config, hyper.n_layer), GGUFValueType.BOOL),
        real(f"{_ARCH}.rope.freq_base_swa", sliding),
    )
    return replace(hyper, key_values=(*hyper.key_values, *more))


def _norm(source: str, target: str) -> Row:
    return Row(f"{source}.weight", f"{target}.weight", ("embd",), plus=1.0)


GEMMA3 = Family(
    arch=_ARCH,
    model_type="gemma3_text",
    classes=("Gemma3TextModel",),
    refused={
        "Gemma3ForCausalLM": "of Gemma 3 only text encoders (Gemma3TextModel) are converted",
        "Gemma3ForConditionalGeneration": "it sees images, and of Gemma 3 only text encoders are converted",
        "Gemma3ForSequenceClassification": "a classifier's head is not converted for this family",
        "Gemma3TextForSequenceClassification": "a classifier's head is not converted for this family",
    },
    tokenizer="sentencepiece",
    default_pooling="mean",
    hyper=_hyper,
    prefixes=("model.",),
    tensors=(TENSORS[0], _norm("norm", "output_norm")),
    layer=(
        _norm(LAYER + "input_layernorm", "blk.{i}.attn_norm"),
        *attention(norms=1.0),
        _norm(LAYER + "post_attention_layernorm", "blk.{i}.post_attention_norm"),
        _norm(LAYER + "pre_feedforward_layernorm", "blk.{i}.ffn_norm"),
        *MLP,
        _norm(LAYER + "post_feedforward_layernorm", "blk.{i}.post_ffw_norm"),
    ),
    skipped=((r"lm_head\.weight", "the output matrix over the vocabulary; embeddings come before it"),),
)
