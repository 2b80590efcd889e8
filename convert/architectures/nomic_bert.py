"""NomicBERT encoders: nomic-embed-text-v1 and v1.5.

Names and shapes from transformers' ``NomicBertModel``, from the code in the models' own repositories, which config.json
names in ``auto_map`` and which is not run here, and from llama.cpp's src/models/nomic-bert.cpp. A BERT with rotary
positions, SwiGLU and no biases but those of the norms.

config.json comes in two spellings: that of the models' own code (``n_embd``, ``rotary_emb_base``) and that of
transformers 5 (``hidden_size``, ``rope_parameters``).
"""

from __future__ import annotations

from dataclasses import replace

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields, short
from ..container.entries import real, text, uint
from .bert import BERT
from .encoder import Sizes, entries
from .family import Hyper, Row, must_be, norm

# Settings of the models' own code, and the values with which it computes what llama.cpp's nomic-bert does.
_COMPUTED = {
    "activation_function": ("swiglu",),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (),
    "causal": (False,),
    "prenorm": (False,),
    "parallel_block": (False,),
    "use_rms_norm": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
# That code takes another value where one of these is missing.
_NEEDED = ("activation_function", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "rotary_emb_fraction")


def _hyper(config: Fields) -> Hyper:
    must_be(config, "moe_every_n_layers", (0,), "mixtures of experts (nomic-embed-text-v2-moe) are not converted")
    must_be(config, "hidden_act", ("silu",), "llama.cpp computes silu")
    for key, allowed in _COMPUTED.items():
        must_be(config, key, allowed, "llama.cpp's nomic-bert does not compute that")
    if config.has("n_embd"):
        for key in _NEEDED:
            if not config.has(key):
                raise UnsupportedCheckpointError(f"{config.file}: {key} is missing, and then it is not as needed here")
    n_embd = _integer(config, "n_embd", "hidden_size", high=2**20)
    n_head = _integer(config, "n_head", "num_attention_heads", high=2**16)
    n_layer = _integer(config, "n_layer", "num_hidden_layers", high=512)
    n_ff = _integer(config, "n_inner", "intermediate_size", high=2**20)
    multiple = config.integer("pad_vocab_size_multiple", low=1, high=2**16, default=1)
    n_rows = -(-config.integer("vocab_size", low=1) // multiple) * multiple
    n_types = config.integer("type_vocab_size", low=1, high=2**16, default=2)
    if n_embd % n_head or (n_embd // n_head) % 2:
        raise UnsupportedCheckpointError(
            f"{config.file}: {n_head} heads do not divide the width {n_embd} into heads of even size"
        )
    must_be(config, "head_dim", (n_embd // n_head,), "llama.cpp divides the width evenly among the heads")
    key = "layer_norm_epsilon" if config.has("n_embd") else "layer_norm_eps"
    epsilon = config.number(key, low=0.0, high=1.0, default=1e-5 if config.has("n_embd") else 1e-12)
    n_positions, notes = _positions(config)
    sizes = Sizes(n_embd, n_head, n_layer, n_ff, n_rows)
    return Hyper(
        n_layer=n_layer,
        n_embd=n_embd,
        n_rows=n_rows,
        max_positions=n_positions,
        sizes={**sizes.symbols, "qkv": 3 * n_embd, "types": n_types},
        key_values=(
            *entries("nomic-bert", sizes, n_positions=n_positions, epsilon=epsilon),
            text("nomic-bert.rope.scaling.type", "none"),
            real("nomic-bert.rope.freq_base", _rope_theta(config)),
            uint("tokenizer.ggml.token_type_count", n_types),
        ),
        notes=notes,
    )


def _integer(config: Fields, own: str, native: str, *, high: int) -> int:
    """A size in either spelling; both may be there where they agree."""
    if config.has(own) and config.has(native) and config.values[own] != config.values[native]:
        raise config.error(own, f"as {native}, {short(config.values[native])}")
    return config.integer(own if config.has(own) else native, low=1, high=high)


def _rope_theta(config: Fields) -> float:
    """The base of the rotary embedding."""
    thetas = []
    if config.has("n_embd"):
        thetas.append(config.number("rotary_emb_base", low=1.0, high=1e12, default=10000.0))
    if config.has("rope_parameters") or not thetas:
        rope = config.mapping("rope_parameters")
        if rope.values.get("rope_type", "default") != "default":
            raise UnsupportedCheckpointError(
                f"{rope.file} is {short(dict(rope.values))}, and only rope_type default is converted"
            )
        thetas.append(rope.number("rope_theta", low=1.0, high=1e12))
    if thetas[0] != thetas[-1]:
        raise config.error("rotary_emb_base", f"as rope_parameters, {thetas[-1]:g}")
    return thetas[0]


def _positions(config: Fields) -> tuple[int, tuple[str, ...]]:
    """The most tokens of a text. Beyond those of the training the models' own code stretches its positions, depending
    on the length of the whole batch (``rotary_scaling_factor``); that is not converted, so the limit is theirs.
    """
    if not config.has("n_embd"):
        return config.integer("max_position_embeddings", low=1), ()
    all_of_them = config.integer("n_positions", low=1)
    trained = config.integer("max_trained_positions", low=1, default=2048)
    if trained >= all_of_them:
        return all_of_them, ()
    return trained, (f"{trained} of {all_of_them} positions are used: those that the model was trained with",)


_LAYER = "encoder.layers.{i}."

NOMIC_BERT = replace(
    BERT,
    arch="nomic-bert",
    model_type="nomic_bert",
    classes=("NomicBertModel",),
    refused={
        "NomicBertForSequenceClassification": "its classifier is not converted",
        "NomicBertForPreTraining": "only NomicBertModel is converted",
    },
    own_code=r"([\w.-]+/[\w.-]+--)?modeling_hf_nomic_bert\.NomicBertModel",
    tokenizer="wordpiece",
    default_pooling=None,
    hyper=_hyper,
    prefixes=("nomic_bert.", "bert."),
    renames=(),
    tensors=(
        Row("embeddings.word_embeddings.weight", "token_embd.weight", ("rows", "embd")),
        Row("embeddings.token_type_embeddings.weight", "token_types.weight", ("types", "embd")),
        *norm("emb_ln", "token_embd_norm"),
    ),
    layer=(
        Row(_LAYER + "attn.Wqkv.weight", "blk.{i}.attn_qkv.weight", ("qkv", "embd")),
        Row(_LAYER + "attn.out_proj.weight", "blk.{i}.attn_output.weight", ("embd", "embd")),
        *norm(_LAYER + "norm1", "blk.{i}.attn_output_norm"),
        Row(_LAYER + "mlp.fc11.weight", "blk.{i}.ffn_up.weight", ("ff", "embd")),
        Row(_LAYER + "mlp.fc12.weight", "blk.{i}.ffn_gate.weight", ("ff", "embd")),
        Row(_LAYER + "mlp.fc2.weight", "blk.{i}.ffn_down.weight", ("embd", "ff")),
        *norm(_LAYER + "norm2", "blk.{i}.layer_output_norm"),
    ),
    skipped=((r"encoder\.layers\.\d+\.attn\.rotary_emb\.inv_freq", "computed from the rotary base, not a weight"),),
)
