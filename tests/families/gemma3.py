"""EmbeddingGemma: norms stored minus 1, a window to both sides in most layers, two Dense modules behind the mean."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tests.checkpoints import _normal
from tests.families import Arrays
from tests.families._decoders import dense_module, sentencepiece_tokenizer, write_folder
from tests.families._decoders import record as record_of

NAME = "gemma3"

WINDOW = 16  # the texts are longer
PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
}


def _weights(hidden: int, ffn: int, layers: int, q: int, kv: int, head_dim: int, rows: int) -> dict[str, Any]:
    tensors: dict[str, npt.NDArray[Any]] = {}

    def linear(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        tensors[f"{name}.weight"] = _normal(2, name, (n_out, n_in), gain / n_in**0.5)

    def norm(name: str, size: int = hidden, mean: float = 0.0) -> None:
        tensors[f"{name}.weight"] = _normal(2, name, (size,), 0.05, mean)

    tensors["embed_tokens.weight"] = _normal(2, "embed", (rows, hidden), hidden**-0.5)
    for i in range(layers):
        layer = f"layers.{i}"
        for part, size in (("q", q), ("k", kv), ("v", kv)):
            linear(f"{layer}.self_attn.{part}_proj", size, hidden)
        linear(f"{layer}.self_attn.o_proj", hidden, q)
        norm(f"{layer}.self_attn.q_norm", head_dim, 0.5)
        norm(f"{layer}.self_attn.k_norm", head_dim, 0.5)
        for name in ("gate", "up"):
            linear(f"{layer}.mlp.{name}_proj", ffn, hidden)
        linear(f"{layer}.mlp.down_proj", hidden, ffn)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            norm(f"{layer}.{name}_layernorm", mean=-0.6 if name.startswith("post") else 0.0)
    norm("norm")
    return tensors


def build(
    folder: Path,
    *,
    window: int = WINDOW,
    bias: bool = False,
    activation: str = "Identity",
    dense: tuple[int, ...] | None = None,
    **changes: Any,
) -> Path:
    """Dense modules of 128 -> 256 -> 128 unless ``dense`` has other widths; ``changes`` are fields of config.json."""
    hidden, ffn, layers, heads, kv_heads, head_dim = 128, 192, 6, 4, 1, 48
    tokenizer = sentencepiece_tokenizer("gemma")
    rows = max(tokenizer["model"]["vocab"].values()) + 10
    widths = (hidden, *((2 * hidden, hidden) if dense is None else dense))
    return write_folder(
        folder,
        config={
            "architectures": ["Gemma3TextModel"],
            "model_type": "gemma3_text",
            "_sliding_window_pattern": 3,
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "final_logit_softcapping": None,
            "head_dim": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "max_position_embeddings": 1024,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "pad_token_id": 0,
            "query_pre_attn_scalar": head_dim,
            "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": window,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_bidirectional_attention": True,
            "vocab_size": rows,
            **changes,
        },
        tensors=_weights(hidden, ffn, layers, heads * head_dim, kv_heads * head_dim, head_dim, rows),
        tokenizer=tokenizer,
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "model_max_length": 1024,
        },
        pooling="mean_tokens",
        dense=[
            dense_module(i, n_in, n_out, bias=bias, activation=activation)
            for i, (n_in, n_out) in enumerate(pairwise(widths))
        ],
        prompts=PROMPTS,
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "as_published": {},
    "bias_and_tanh": {"bias": True, "activation": "Tanh", "dense": (96,)},
    "window_of_7": {"window": 7, "dense": ()},
}


def record() -> Arrays:
    """``<variant>`` has its vectors; the ids are the same for all."""
    found = {name: record_of(partial(build, **options)) for name, options in VARIANTS.items()}
    ids = {key: value for key, value in found["as_published"].items() if key != "vectors"}
    return ids | {name: arrays["vectors"] for name, arrays in found.items()}
