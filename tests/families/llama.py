"""Llama: rows of queries and keys reordered for llama.cpp, Llama 3's scaling of long contexts, both directions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.families import Arrays
from tests.families._decoders import byte_level_tokenizer, llama_weights, write_folder
from tests.families._decoders import record as record_of

NAME = "llama"

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def build(
    folder: Path,
    *,
    causal: bool = True,
    pooling: str = "lasttoken",
    rope_scaling: dict[str, Any] | None = None,
    hidden: int = 128,
    head_dim: int = 48,
    layers: int = 2,
    prefix: str = "",
) -> Path:
    """Heads whose sizes do not add up to the width, shared by two queries each."""
    heads, kv_heads, rows = 4, 2, 280
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if prefix else "LlamaModel"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 277,
        "eos_token_id": 276,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 1024,
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": rope_scaling,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": rows,
    }
    if not causal:
        config["is_causal"] = False
    return write_folder(
        folder,
        config=config,
        tensors=llama_weights(
            hidden=hidden,
            ffn=2 * hidden,
            layers=layers,
            q=heads * head_dim,
            kv=kv_heads * head_dim,
            rows=rows,
            prefix=prefix,
            seed=1,
        ),
        tokenizer=byte_level_tokenizer(),
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 1024,
        },
        pooling=pooling,
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "causal_last": {},
    "llama3_last": {"rope_scaling": LLAMA3},
    "both_ways_mean": {"causal": False, "pooling": "mean_tokens"},
}


def record() -> Arrays:
    """``<variant>`` has its vectors; the ids are the same for all."""
    found = {name: record_of(partial(build, **options)) for name, options in VARIANTS.items()}
    ids = {key: value for key, value in found["causal_last"].items() if key != "vectors"}
    return ids | {name: arrays["vectors"] for name, arrays in found.items()}
