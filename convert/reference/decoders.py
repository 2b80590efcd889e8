"""The decoders' forward passes, one short function each: from token ids to the hidden states behind the last norm.

Written from transformers' models of the same names; see ``encoders``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_embed.errors import UnsupportedCheckpointError
from edge_embed.types import Float32Array

from ..checkpoint import Fields, short
from .encoders import activation, count, epsilon, rope_theta
from .ops import Parameters, Tokens, attention, heads, rotate


def qwen3(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """Qwen3Model: every head's queries and keys are normed before they are rotated."""
    eps, theta = epsilon(c, 1e-6, "rms_norm_eps"), rope_theta(c, None, "rope_theta", 10_000.0)
    head_dim, causal = count(c, "head_dim", default=128), c.boolean("is_causal", default=True)
    x = w.rows("embed_tokens.weight", tokens.ids)
    for i in range(count(c, "num_hidden_layers")):
        at = f"layers.{i}."
        h = w.rms_norm(x, f"{at}input_layernorm", eps)
        q, k, v = (heads(w.linear(h, f"{at}self_attn.{part}_proj", bias=False), head_dim) for part in "qkv")
        q = rotate(w.rms_norm(q, f"{at}self_attn.q_norm", eps), tokens.positions, theta)
        k = rotate(w.rms_norm(k, f"{at}self_attn.k_norm", eps), tokens.positions, theta)
        x = x + w.linear(attention(q, k, v, tokens, causal=causal), f"{at}self_attn.o_proj", bias=False)
        x = x + _gated(w, w.rms_norm(x, f"{at}post_attention_layernorm", eps), at, activation(c, "hidden_act", "silu"))
    return w.rms_norm(x, "norm", eps)


def llama(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """LlamaModel and MistralModel."""
    window = c.integer("sliding_window", low=1) - 1 if c.has("sliding_window") else None
    bias = c.boolean("attention_bias", default=False)
    causal = c.boolean("is_causal", default=True)
    return _llama(w, c, tokens, qkv_bias=bias, o_bias=bias, causal=causal, window=window)


def qwen2(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """Qwen2Model: Llama with biases on queries, keys and values; gte-Qwen2 lets tokens look ahead as well."""
    return _llama(w, c, tokens, qkv_bias=True, o_bias=False, causal=c.boolean("is_causal", default=True), window=None)


def _llama(
    w: Parameters, c: Fields, tokens: Tokens, *, qkv_bias: bool, o_bias: bool, causal: bool, window: int | None
) -> Float32Array:
    eps, theta = epsilon(c, 1e-6, "rms_norm_eps"), rope_theta(c, None, "rope_theta", 10_000.0)
    head_dim = count(c, "head_dim", default=count(c, "hidden_size") // count(c, "num_attention_heads"))
    factors = _frequency_factors(c, head_dim, theta)
    x = w.rows("embed_tokens.weight", tokens.ids)
    for i in range(count(c, "num_hidden_layers")):
        at = f"layers.{i}."
        h = w.rms_norm(x, f"{at}input_layernorm", eps)
        q, k, v = (heads(w.linear(h, f"{at}self_attn.{part}_proj", bias=qkv_bias), head_dim) for part in "qkv")
        q, k = (rotate(part, tokens.positions, theta, factors) for part in (q, k))
        a = attention(q, k, v, tokens, causal=causal, window=window)
        x = x + w.linear(a, f"{at}self_attn.o_proj", bias=o_bias)
        x = x + _gated(w, w.rms_norm(x, f"{at}post_attention_layernorm", eps), at, activation(c, "hidden_act", "silu"))
    return w.rms_norm(x, "norm", eps)


def gemma3(w: Parameters, c: Fields, tokens: Tokens) -> Float32Array:
    """Gemma3TextModel: norms around each step whose weights are stored minus 1, most layers see only a window."""
    eps, head_dim = epsilon(c, 1e-6, "rms_norm_eps"), count(c, "head_dim", default=256)
    act = activation(c, "hidden_activation", "gelu_pytorch_tanh")
    both_ways = c.boolean("use_bidirectional_attention", default=False)
    every, n_layer = (
        count(c, "sliding_window_pattern", "_sliding_window_pattern", default=6),
        count(c, "num_hidden_layers"),
    )
    kinds = c.values.get("layer_types") or [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(n_layer)
    ]
    size = count(c, "sliding_window", default=4096)
    window = {"full_attention": None, "sliding_attention": size // 2 if both_ways else size - 1}
    theta = {
        "full_attention": rope_theta(c, "full_attention", "rope_theta", 1_000_000.0),
        "sliding_attention": rope_theta(c, "sliding_attention", "rope_local_base_freq", 10_000.0),
    }
    scale = c.number("query_pre_attn_scalar", low=1.0, high=1e9, default=256.0) ** -0.5

    def norm(x: Float32Array, name: str) -> Float32Array:
        return w.rms_norm(x, name, eps, offset=1.0)

    x = w.rows("embed_tokens.weight", tokens.ids) * np.float32(count(c, "hidden_size") ** 0.5)
    for i, kind in enumerate(kinds):
        at = f"layers.{i}."
        h = norm(x, f"{at}input_layernorm")
        q, k, v = (heads(w.linear(h, f"{at}self_attn.{part}_proj", bias=False), head_dim) for part in "qkv")
        q = rotate(norm(q, f"{at}self_attn.q_norm"), tokens.positions, theta[kind])
        k = rotate(norm(k, f"{at}self_attn.k_norm"), tokens.positions, theta[kind])
        a = attention(q, k, v, tokens, causal=not both_ways, window=window[kind], scale=scale)
        x = x + norm(w.linear(a, f"{at}self_attn.o_proj", bias=False), f"{at}post_attention_layernorm")
        h = _gated(w, norm(x, f"{at}pre_feedforward_layernorm"), at, act)
        x = x + norm(h, f"{at}post_feedforward_layernorm")
    return norm(x, "norm")


def _gated(w: Parameters, x: Float32Array, at: str, act: Callable[[Float32Array], Float32Array]) -> Float32Array:
    h = act(w.linear(x, f"{at}mlp.gate_proj", bias=False)) * w.linear(x, f"{at}mlp.up_proj", bias=False)
    return w.linear(h, f"{at}mlp.down_proj", bias=False)


def _frequency_factors(c: Fields, head_dim: int, theta: float) -> Float32Array | None:
    """What each frequency of the rotation is divided by: 1, or more for the slow ones of Llama 3's long contexts."""
    key = "rope_parameters" if c.has("rope_parameters") else "rope_scaling"
    scaling = c.mapping(key, default={})
    kind = scaling.values.get("rope_type", scaling.values.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return np.full(head_dim // 2, scaling.number("factor", low=1.0, high=1e6), np.float32)
    if kind != "llama3":
        raise UnsupportedCheckpointError(f"{scaling.file}: rope_type {short(kind)} is not computed by the reference")
    factor = scaling.number("factor", low=1.0, high=1e6)
    low, high = (scaling.number(f"{end}_freq_factor", low=0.0, high=1e6) for end in ("low", "high"))
    trained = count(scaling, "original_max_position_embeddings")
    turns = trained / (2 * np.pi) * (1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim))  # in the trained context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
