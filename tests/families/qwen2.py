"""Qwen2: biases on queries, keys and values; causal with last-token pooling, or looking both ways as gte-Qwen2 does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.families import Arrays
from tests.families._decoders import byte_level_tokenizer, llama_weights, write_folder
from tests.families._decoders import record as record_of

NAME = "qwen2"

_ROWS = 288  # some more than there are tokens, as in the originals


def build(
    folder: Path,
    *,
    causal: bool = True,
    pooling: str = "lasttoken",
    own_code: bool = False,
    hidden: int = 128,
    layers: int = 2,
    prefix: str = "",
    dense: tuple[dict[str, Any], ...] = (),
) -> Path:
    """``causal`` false writes ``is_causal``, as gte-Qwen2 does; ``own_code`` its ``auto_map`` as well."""
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM" if prefix else "Qwen2Model"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": 276,
        "eos_token_id": 276,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 1024,
        "max_window_layers": layers,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": _ROWS,
    }
    if not causal:
        config["is_causal"] = False
    if own_code:
        config["auto_map"] = {
            "AutoModel": "modeling_qwen.Qwen2Model",
            "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
            "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
        }
    return write_folder(
        folder,
        config=config,
        tensors=llama_weights(
            hidden=hidden,
            ffn=2 * hidden,
            layers=layers,
            q=hidden,
            kv=hidden // 2,
            rows=_ROWS,
            bias=True,
            prefix=prefix,
        ),
        tokenizer=byte_level_tokenizer(),
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 1024,
        },
        pooling=pooling,
        dense=dense,
        prompts={"query": "Instruct: Given a question, find passages that answer it\nQuery: "},
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "causal_last": {},
    "both_ways_last": {"causal": False},
    "both_ways_mean": {"causal": False, "pooling": "mean_tokens"},
    "causal_mean": {"pooling": "mean_tokens"},
}


def record() -> Arrays:
    """``<variant>`` has its vectors; the ids are the same for all."""
    found = {name: record_of(partial(build, **options)) for name, options in VARIANTS.items()}
    ids = {key: value for key, value in found["causal_last"].items() if key != "vectors"}
    return ids | {name: arrays["vectors"] for name, arrays in found.items()}
