"""Mistral as e5-mistral has it: a sliding window, SentencePiece tokens, one at each end of a text, an instruction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families import Arrays
from tests.families._decoders import llama_weights, sentencepiece_tokenizer, write_folder
from tests.families._decoders import record as record_of

NAME = "mistral"

PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


def build(folder: Path, *, sliding_window: int | None = 600, max_seq_length: int = 512, **changes: Any) -> Path:
    """``changes`` replace fields of config.json."""
    hidden, layers, heads, kv_heads = 128, 2, 4, 2
    tokenizer = sentencepiece_tokenizer("mistral")
    rows = max(tokenizer["model"]["vocab"].values()) + 1
    return write_folder(
        folder,
        config={
            "architectures": ["MistralModel"],
            "model_type": "mistral",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "max_position_embeddings": 2048,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "pad_token_id": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": sliding_window,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": False,
            "vocab_size": rows,
            **changes,
        },
        tensors=llama_weights(
            hidden=hidden, ffn=2 * hidden, layers=layers, q=hidden, kv=hidden // 2, rows=rows, seed=3
        ),
        tokenizer=tokenizer,
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "</s>",
            "unk_token": "<unk>",
            "model_max_length": 2048,
        },
        pooling="lasttoken",
        prompts={"web_search_query": PROMPT, "query": PROMPT},
        max_seq_length=max_seq_length,
        dtype="f16",
    )


def record() -> Arrays:
    """``vectors`` and ``ids``; ``within_64`` has the vectors of texts cut to a window of 64 tokens."""
    cut = record_of(lambda folder: build(folder, sliding_window=64, max_seq_length=64))
    return record_of(build) | {"within_64": cut["vectors"]}
