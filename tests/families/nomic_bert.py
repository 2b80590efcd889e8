"""NomicBERT, as nomic-embed-text-v1.5: WordPiece, rotary positions, SwiGLU, mean pooling, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints import wordpiece_tokenizer, wordpiece_vocabulary
from tests.families import Arrays
from tests.families._encoders import (
    Weights,
    in_temporary_folder,
    recorded,
    wordpiece_config,
    write_checkpoint,
    write_sentence_transformers,
)

NAME = "nomic_bert"
MAX_TOKENS = 512
CODE = "nomic-ai/nomic-bert-2048--"
PROMPTS = {"query": "search_query: ", "document": "search_document: "}


def build(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    ffn: int = 192,
    spelling: str = "both",
    config: dict[str, Any] | None = None,
) -> Path:
    """The checkpoint; ``spelling`` of config.json is the models' ``own`` code's, transformers' (``native``) or both."""
    vocab = wordpiece_vocabulary()
    rows = -(-len(vocab) // 64) * 64
    weights = Weights()
    weights.add("embeddings.word_embeddings.weight", rows, hidden, std=0.1)
    weights.add("embeddings.token_type_embeddings.weight", 2, hidden, std=0.03)
    weights.norm("emb_ln", hidden)
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        weights.linear(f"{layer}.attn.Wqkv", 3 * hidden, hidden, bias=False, gain=1.2)
        weights.linear(f"{layer}.attn.out_proj", hidden, hidden, bias=False)
        weights.norm(f"{layer}.norm1", hidden)
        weights.linear(f"{layer}.mlp.fc11", ffn, hidden, bias=False)
        weights.linear(f"{layer}.mlp.fc12", ffn, hidden, bias=False)
        weights.linear(f"{layer}.mlp.fc2", hidden, ffn, bias=False)
        weights.norm(f"{layer}.norm2", hidden)
    own = {
        "activation_function": "swiglu",
        "auto_map": {
            "AutoConfig": f"{CODE}configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": f"{CODE}modeling_hf_nomic_bert.NomicBertModel",
            "AutoModelForMaskedLM": f"{CODE}modeling_hf_nomic_bert.NomicBertForPreTraining",
        },
        "causal": False,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": MAX_TOKENS,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "n_embd": hidden,
        "n_head": heads,
        "n_inner": ffn,
        "n_layer": layers,
        "n_positions": 4 * MAX_TOKENS,
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "use_rms_norm": False,
    }
    native = {
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    }
    write_checkpoint(
        folder,
        weights,
        {
            "architectures": ["NomicBertModel"],
            "model_type": "nomic_bert",
            "pad_token_id": 0,
            "type_vocab_size": 2,
            "vocab_size": len(vocab) if spelling == "own" else rows,
            **(own if spelling in ("own", "both") else {}),
            **(native if spelling in ("native", "both") else {}),
            **(config or {}),
        },
        wordpiece_tokenizer(vocab),
        wordpiece_config(4 * MAX_TOKENS),
    )
    write_sentence_transformers(folder, hidden=hidden, pooling="mean", normalize=False, prompts=PROMPTS)
    return folder


def record() -> Arrays:
    """Vectors and ids of the original, which transformers knows without the models' own code."""
    return in_temporary_folder(
        lambda folder: build(folder, spelling="native"),
        lambda folder: recorded(folder, pooling="mean", max_tokens=MAX_TOKENS),
    )
