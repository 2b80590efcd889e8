"""The encoders' forward passes, one short function each: from token ids to the last layer's hidden states.

Written from transformers' models of the same names and its defaults for fields that config.json leaves out. They know
a checkpoint's names and nothing of the GGUF's, of the data sheets in ``architectures/`` or of llama.cpp, so that an
error there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_embed.errors import UnsupportedCheckpointError
from edge_embed.types import Float32Array

from ..checkpoint import Fields
from .ops import Parameters, Tokens, attention, gelu, gelu_tanh, heads, rotate, silu

ACTIVATIONS: dict[str, Callable[[Float32Array], Float32Array]] = {
    "gelu": gelu,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": silu,
    "swiglu": silu,
    "swish": silu,
    "tanh": np.tanh,
}


def activation(c: Fields, key: str, default: str) -> Callable[[Float32Array], Float32Array]:
    """The function that a field names."""
    name = c.string(key, default=default)
    if name not in ACTIVATIONS:
        raise UnsupportedCheckpointError(f"{c.file}: {key} is {name!r}, which the reference does not compute")
    return ACTIVATIONS[name]


def count(c: Fields, *names: str, default: int | None = None) -> int:
    """A positive integer under the first of its names that is there."""
    name = next((name for name in names if c.has(name)), names[0])
    return c.integer(name, low=1, default=default)


def epsilon(c: Fields, default: float, *names: str) -> float:
    """A norm's epsilon under the first of its names that is there."""
    name = next((name for name in names if c.has(name)), names[0])
    return c.number(name, low=0.0, high=1.0, default=default)


def bert(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """BertModel: learned positions, norms behind each step."""
    return _bert(w, c, tokens, tokens.positions)


def roberta(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """RobertaModel and XLMRobertaModel: BERT whose positions begin behind the padding token's."""
    return _bert(w, c, tokens, tokens.positions + c.integer("pad_token_id", default=1) + 1)


def _bert(w: Parameters, c: Fields, tokens: Tokens, positions: np.ndarray) -> Float32Array:
    eps = epsilon(c, 1e-12, "layer_norm_eps")
    act = activation(c, "hidden_act", "gelu")
    head_dim = count(c, "hidden_size") // count(c, "num_attention_heads")
    x = (
        w.rows("embeddings.word_embeddings.weight", tokens.ids)
        + w.rows("embeddings.position_embeddings.weight", positions)
        + w.rows("embeddings.token_type_embeddings.weight", tokens.types)
    )
    x = w.layer_norm(x, "embeddings.LayerNorm", eps)
    for i in range(count(c, "num_hidden_layers")):
        at = f"encoder.layer.{i}."
        q, k, v = (
            heads(w.linear(x, f"{at}attention.self.{part}", bias=True), head_dim) for part in ("query", "key", "value")
        )
        a = w.linear(attention(q, k, v, tokens, causal=False), f"{at}attention.output.dense", bias=True)
        x = w.layer_norm(x + a, f"{at}attention.output.LayerNorm", eps)
        h = act(w.linear(x, f"{at}intermediate.dense", bias=True))
        x = w.layer_norm(x + w.linear(h, f"{at}output.dense", bias=True), f"{at}output.LayerNorm", eps)
    return x


def distilbert(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """DistilBertModel: BERT under other names, without token types."""
    act = activation(c, "activation", "gelu")
    head_dim = count(c, "dim") // count(c, "n_heads")
    x = w.rows("embeddings.word_embeddings.weight", tokens.ids)
    x = x + w.rows("embeddings.position_embeddings.weight", tokens.positions)
    x = w.layer_norm(x, "embeddings.LayerNorm", 1e-12)
    for i in range(count(c, "n_layers")):
        at = f"transformer.layer.{i}."
        q, k, v = (heads(w.linear(x, f"{at}attention.{part}_lin", bias=True), head_dim) for part in "qkv")
        a = w.linear(attention(q, k, v, tokens, causal=False), f"{at}attention.out_lin", bias=True)
        x = w.layer_norm(x + a, f"{at}sa_layer_norm", 1e-12)
        h = act(w.linear(x, f"{at}ffn.lin1", bias=True))
        x = w.layer_norm(x + w.linear(h, f"{at}ffn.lin2", bias=True), f"{at}output_layer_norm", 1e-12)
    return x


def modernbert(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """ModernBertModel: norms before each step, rotary positions, a gated MLP, most layers see only a window."""
    eps, norm_bias = epsilon(c, 1e-5, "norm_eps"), c.boolean("norm_bias", default=False)
    attn_bias, mlp_bias = c.boolean("attention_bias", default=False), c.boolean("mlp_bias", default=False)
    act = activation(c, "hidden_activation", "gelu")
    head_dim = count(c, "hidden_size") // count(c, "num_attention_heads")
    every, n_layer = count(c, "global_attn_every_n_layers", default=3), count(c, "num_hidden_layers")
    kinds = c.values.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(n_layer)
    ]
    theta = {
        "full_attention": rope_theta(c, "full_attention", "global_rope_theta", 160_000.0),
        "sliding_attention": rope_theta(c, "sliding_attention", "local_rope_theta", 10_000.0),
    }
    window = {"full_attention": None, "sliding_attention": count(c, "local_attention", default=128) // 2}
    x = w.layer_norm(w.rows("embeddings.tok_embeddings.weight", tokens.ids), "embeddings.norm", eps, bias=norm_bias)
    for i, kind in enumerate(kinds):
        at = f"layers.{i}."
        h = w.layer_norm(x, f"{at}attn_norm", eps, bias=norm_bias) if i else x
        q, k, v = (heads(part, head_dim) for part in np.split(w.linear(h, f"{at}attn.Wqkv", bias=attn_bias), 3, axis=1))
        q, k = (rotate(part, tokens.positions, theta[kind]) for part in (q, k))
        a = attention(q, k, v, tokens, causal=False, window=window[kind])
        x = x + w.linear(a, f"{at}attn.Wo", bias=attn_bias)
        h = w.layer_norm(x, f"{at}mlp_norm", eps, bias=norm_bias)
        h, gate = np.split(w.linear(h, f"{at}mlp.Wi", bias=mlp_bias), 2, axis=1)
        x = x + w.linear(act(h) * gate, f"{at}mlp.Wo", bias=mlp_bias)
    return w.layer_norm(x, "final_norm", eps, bias=norm_bias)


def nomic_bert(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """NomicBertModel: BERT with rotary positions, a gated MLP and no biases; in transformers' names or the hub's."""
    eps = epsilon(c, 1e-12, "layer_norm_eps", "layer_norm_epsilon")
    head_dim = count(c, "hidden_size", "n_embd") // count(c, "num_attention_heads", "n_head")
    act = activation(c, "hidden_act" if c.has("hidden_act") else "activation_function", "silu")
    theta = rope_theta(c, None, "rotary_emb_base", 1000.0)
    x = w.rows("embeddings.word_embeddings.weight", tokens.ids)
    x = x + w.rows("embeddings.token_type_embeddings.weight", tokens.types)
    x = w.layer_norm(x, "embeddings.LayerNorm", eps)
    for i in range(count(c, "num_hidden_layers", "n_layer")):
        at = f"layers.{i}."
        if f"{at}attn.Wqkv.weight" in w:
            parts = np.split(w.linear(x, f"{at}attn.Wqkv", bias=False), 3, axis=1)
        else:
            parts = [w.linear(x, f"{at}self_attn.{part}_proj", bias=False) for part in "qkv"]
        q, k, v = (heads(part, head_dim) for part in parts)
        q, k = (rotate(part, tokens.positions, theta) for part in (q, k))
        a = w.linear(attention(q, k, v, tokens, causal=False), f"{at}self_attn.o_proj", bias=False)
        x = w.layer_norm(x + a, f"{at}post_attention_layernorm", eps)
        h = act(w.linear(x, f"{at}mlp.gate_proj", bias=False)) * w.linear(x, f"{at}mlp.up_proj", bias=False)
        x = w.layer_norm(x + w.linear(h, f"{at}mlp.down_proj", bias=False), f"{at}post_mlp_layernorm", eps)
    return x


# The hub's own spelling of NomicBERT -> transformers'.
NOMIC_RENAMES = (
    ("encoder.layers", "layers"),
    ("emb_ln", "embeddings.LayerNorm"),
    ("attn.out_proj", "self_attn.o_proj"),
    ("fc11", "up_proj"),
    ("fc12", "gate_proj"),
    ("fc2", "down_proj"),
    ("norm1", "post_attention_layernorm"),
    ("norm2", "post_mlp_layernorm"),
)


def rope_theta(c: Fields, layer_type: str | None, old_key: str, default: float) -> float:
    """The base of the rotation: of ``rope_parameters`` (of a kind of layer), or under its older name."""
    if c.has("rope_parameters"):
        parameters = c.mapping("rope_parameters")
        if layer_type is not None and parameters.has(layer_type):
            parameters = parameters.mapping(layer_type)
        if parameters.has("rope_theta"):
            return parameters.number("rope_theta", low=1.0, high=1e12)
    return c.number(old_key, low=1.0, high=1e12, default=default)
