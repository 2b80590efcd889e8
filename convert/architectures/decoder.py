"""What the data sheets of the decoders share: tensors, sizes, rotation, which way attention looks, what is left out.

Knows config.json's fields in the spellings of transformers 4 and 5, and the names that all of Llama's descendants have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields, short
from ..container.entries import KeyValue, flag, real, uint
from .family import Hyper, Row, must_be

LAYER: Final = "layers.{i}."
TENSORS: Final = (
    Row("embed_tokens.weight", "token_embd.weight", ("rows", "embd")),
    Row("norm.weight", "output_norm.weight", ("embd",)),
)
MLP: Final = (
    Row(LAYER + "mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", ("ff", "embd")),
    Row(LAYER + "mlp.up_proj.weight", "blk.{i}.ffn_up.weight", ("ff", "embd")),
    Row(LAYER + "mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("embd", "ff")),
)

# Tensors of a decoder that are left out of an embedding model, as in ``Family.skipped``.
SKIPPED: Final = (
    (
        r"lm_head\.weight",
        "the output matrix over the vocabulary; embeddings come before it, and llama.cpp reads the "
        "token embeddings in its place where it is absent",
    ),
    (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "computed from rope_theta, not a weight"),
)


def attention(*, biases: bool = False, norms: float | None = None, reordered: bool = False) -> tuple[Row, ...]:
    """The lines of a layer's attention, in the order of the file.

    Args:
        biases: whether queries, keys and values have biases.
        norms: what is added to the weights of the norms of queries and keys; None where there are none.
        reordered: whether llama.cpp wants the rows of queries and keys in another order, see ``values.rotary_row``.
    """
    rows: list[Row] = []
    for letter, size, heads in (("q", "q", "n_head"), ("k", "kv", "n_head_kv"), ("v", "kv", None)):
        source, target = f"{LAYER}self_attn.{letter}_proj", f"blk.{{i}}.attn_{letter}"
        rows.append(Row(f"{source}.weight", f"{target}.weight", (size, "embd"), heads=heads if reordered else None))
        if biases:
            rows.append(Row(f"{source}.bias", f"{target}.bias", (size,)))
        if norms is not None and heads is not None:
            source = f"{LAYER}self_attn.{letter}_norm"
            rows.append(Row(f"{source}.weight", f"{target}_norm.weight", ("head",), plus=norms))
    return (*rows, Row(LAYER + "self_attn.o_proj.weight", "blk.{i}.attn_output.weight", ("embd", "q")))


def layer(inner: tuple[Row, ...]) -> tuple[Row, ...]:
    """The lines of a layer that normalizes in front of its attention, ``inner``, and of its feed-forward part."""
    return (
        Row(LAYER + "input_layernorm.weight", "blk.{i}.attn_norm.weight", ("embd",)),
        *inner,
        Row(LAYER + "post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight", ("embd",)),
        *MLP,
    )


def rope_parameters(config: Fields) -> Fields:
    """The object that says how positions are rotated, in either spelling; empty where there is none."""
    for key in ("rope_parameters", "rope_scaling"):  # transformers 5 and 4
        if config.has(key):
            return config.mapping(key)
    return Fields({}, config.file)


def rope_kind(rope: Fields) -> str:
    """``rope_type``: ``default`` where it is not said."""
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if not isinstance(kind, str) or any(isinstance(value, dict) for value in rope.values.values()):
        raise UnsupportedCheckpointError(
            f"{rope.file} is {short(dict(rope.values))}, and only one rotation for all layers is converted"
        )
    return kind


def rope_theta(config: Fields, default: float = 10000.0) -> float:
    """The base of the rotation."""
    rope = rope_parameters(config)
    return (rope if rope.has("rope_theta") else config).number("rope_theta", low=1.0, high=1e12, default=default)


def rope_factors(config: Fields, head_dim: int) -> tuple[float, ...] | None:
    """What each frequency is divided by, for Llama 3's long contexts; None where nothing is scaled.

    Raises:
        UnsupportedCheckpointError: another scaling of positions.
    """
    rope = rope_parameters(config)
    kind = rope_kind(rope)
    if kind == "default":
        return None
    if kind != "llama3":
        raise UnsupportedCheckpointError(
            f"{rope.file} has rope_type {short(kind)}, and only default and llama3 are converted"
        )
    factor = rope.number("factor", low=1.0, high=1e6)
    low = rope.number("low_freq_factor", low=0.0, high=1e6)
    high = rope.number("high_freq_factor", low=0.0, high=1e6)
    trained = rope.integer("original_max_position_embeddings", low=1)
    if not low < high:
        raise rope.error("high_freq_factor", f"more than low_freq_factor {low:g}")
    theta = rope_theta(config)
    factors = []
    for i in range(0, head_dim, 2):
        turns = trained / (2 * math.pi * theta ** (i / head_dim))  # of this pair within the trained context
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - kept) / factor + kept))
    return tuple(factors)


def attends_back_only(config: Fields) -> bool:
    """Whether attention is causal: ``is_causal``, as transformers 5 reads it and gte-Qwen2 writes it.

    Raises:
        UnsupportedCheckpointError: the checkpoint brings code of its own, and config.json does not say.
    """
    if config.has("auto_map") and not config.has("is_causal"):
        raise UnsupportedCheckpointError(
            f"{config.file} has auto_map and no is_causal: the model's own code decides whether attention looks both "
            "ways, and it is not run",
            hint=f'look into that code, then write "is_causal": true or false into {config.file}',
        )
    must_be(
        config, "use_bidirectional_attention", (False,), "transformers reads that for Gemma only; is_causal says it"
    )
    return config.boolean("is_causal", default=True)


def must_attend_fully(config: Fields, arch: str, n_layer: int) -> None:
    """Refuse ``layer_types`` with a window in any layer."""
    every = ["full_attention"] * n_layer
    must_be(config, "layer_types", (every,), f"llama.cpp's {arch} has full attention in all layers")


def own_code_notes(config: Fields) -> tuple[str, ...]:
    """That ``auto_map``'s code was left alone, where there is any."""
    if not config.has("auto_map"):
        return ()
    looks = "back only" if config.boolean("is_causal", default=True) else "both ways"
    return (f"auto_map's code is not run: attention looks {looks}, as is_causal in config.json says",)


def hyper_of(
    arch: str,
    config: Fields,
    *,
    head_dim: int | None = None,
    epsilon: float = 1e-6,
    theta: float | None = None,
    max_positions: int | None = None,
    more: tuple[KeyValue, ...] = (),
    notes: tuple[str, ...] = (),
    computed: Mapping[str, tuple[float, ...]] | None = None,
) -> Hyper:
    """The hyper-parameters that every decoder has.

    Args:
        arch: the prefix of the keys.
        config: config.json.
        head_dim: size of a head where config.json does not say; by default the width divided among the heads.
        epsilon: the family's ``rms_norm_eps`` where config.json does not say.
        theta: base of the rotation; read from config.json by default.
        max_positions: fewer positions than config.json has.
        more: further entries of the metadata.
        notes, computed: as in ``Hyper``.
    """
    n_layer = config.integer("num_hidden_layers", low=1, high=512)
    n_embd = config.integer("hidden_size", low=1, high=2**20)
    n_head = config.integer("num_attention_heads", low=1, high=2**16)
    n_head_kv = config.integer("num_key_value_heads", low=1, high=n_head, default=n_head)
    size = config.integer("head_dim", low=2, high=2**12, default=head_dim or max(n_embd // n_head, 2))
    n_ff = config.integer("intermediate_size", low=1, high=2**20)
    n_rows = config.integer("vocab_size", low=1)
    n_positions = config.integer("max_position_embeddings", low=1)
    if max_positions is not None:
        n_positions = min(n_positions, max_positions)
    eps = config.number("rms_norm_eps", low=0.0, high=1.0, default=epsilon)
    if size % 2:
        raise config.error("head_dim", "an even number, since pairs are rotated")
    if n_head % n_head_kv:
        raise config.error("num_key_value_heads", f"a divisor of num_attention_heads {n_head}")
    return Hyper(
        n_layer=n_layer,
        n_embd=n_embd,
        n_rows=n_rows,
        max_positions=n_positions,
        sizes={
            "rows": n_rows,
            "embd": n_embd,
            "ff": n_ff,
            "head": size,
            "q": n_head * size,
            "kv": n_head_kv * size,
            "n_head": n_head,
            "n_head_kv": n_head_kv,
        },
        key_values=(
            uint(f"{arch}.block_count", n_layer),
            uint(f"{arch}.context_length", n_positions),
            uint(f"{arch}.embedding_length", n_embd),
            uint(f"{arch}.feed_forward_length", n_ff),
            uint(f"{arch}.attention.head_count", n_head),
            uint(f"{arch}.attention.head_count_kv", n_head_kv),
            uint(f"{arch}.attention.key_length", size),
            uint(f"{arch}.attention.value_length", size),
            real(f"{arch}.attention.layer_norm_rms_epsilon", eps),
            real(f"{arch}.rope.freq_base", rope_theta(config) if theta is None else theta),
            *more,
        ),
        notes=notes,
        computed=computed or {},
    )


def causal_entry(arch: str, causal: bool) -> tuple[KeyValue, ...]:
    """The entry that makes llama.cpp's decoders look both ways; nothing for those that look back, as they do."""
    return () if causal else (flag(f"{arch}.attention.causal", False),)
