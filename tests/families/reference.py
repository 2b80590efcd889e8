"""Tiny random checkpoints for ``convert/reference``, one for each forward pass and for the options that change it.

They have no tokenizer: token ids are drawn at random, since only the networks are compared. Some options (a window in
Mistral, Llama 3's rotation) are such that a conversion may refuse them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import _normal, write_safetensors

NAME = "reference"
N_ROWS, HIDDEN, LAYERS, HEADS, FFN = 60, 32, 2, 4, 48
LENGTHS = (1, 5, 26)  # the last one is longer than the windows below

_SIZES = {
    "vocab_size": N_ROWS, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": FFN, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_KV = {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_GEMMA = {
    "head_dim": 16, "num_key_value_heads": 1, "query_pre_attn_scalar": 16, "sliding_window": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip

# case -> (class of transformers, model_type, fields of config.json beside the sizes)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "bert", {"type_vocab_size": 2, "layer_norm_eps": 1e-3}),
    "roberta": ("RobertaModel", "roberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm_roberta": ("XLMRobertaModel", "xlm-roberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "distilbert": (
        "DistilBertModel",
        "distilbert",
        {"dim": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": FFN, "activation": "gelu"},
    ),
    "modernbert": ("ModernBertModel", "modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "modernbert_biases": (
        "ModernBertModel",
        "modernbert",
        {"local_attention": 8, "norm_bias": True, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-3},
    ),
    "nomic_bert": ("NomicBertModel", "nomic_bert", {"type_vocab_size": 2}),
    "qwen3": ("Qwen3Model", "qwen3", {"head_dim": 16, "rope_theta": 1e6, **_KV}),
    "qwen2": ("Qwen2Model", "qwen2", {"rope_theta": 1e6, **_KV}),
    "llama": ("LlamaModel", "llama", _KV),
    "llama_biases": ("LlamaModel", "llama", {"attention_bias": True, "rope_scaling": _LLAMA3, **_KV}),
    "mistral": ("MistralModel", "mistral", {"sliding_window": 8, **_KV}),
    "gemma3": ("Gemma3TextModel", "gemma3_text", {"use_bidirectional_attention": True, **_GEMMA}),
    "gemma3_causal": ("Gemma3TextModel", "gemma3_text", {"sliding_window_pattern": 2, **_GEMMA}),
    "bert_scores": ("BertForSequenceClassification", "bert", {"type_vocab_size": 2}),
    "xlm_roberta_scores": ("XLMRobertaForSequenceClassification", "xlm-roberta", {"type_vocab_size": 1}),
    "modernbert_scores": (
        "ModernBertForSequenceClassification",
        "modernbert",
        {"local_attention": 8, "classifier_pooling": "mean"},
    ),
    "qwen3_scores": ("Qwen3ForSequenceClassification", "qwen3", {"head_dim": 16, **_KV}),
    "qwen3_words": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 16, "tie_word_embeddings": False, **_KV}),
    "qwen3_words_tied": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 16, "tie_word_embeddings": True, **_KV}),
}
WORDS = (7, 11)  # "yes" and "no" of the last two


def texts() -> list[list[int]]:
    """Token ids of a few texts."""
    random = np.random.Generator(np.random.PCG64(5))
    return [random.integers(4, N_ROWS, n).tolist() for n in LENGTHS]


def build(folder: Path, case: str) -> Path:
    """The folder of one case, with config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    class_name, model_type, fields = CASES[case]
    config = _SIZES | fields | {"architectures": [class_name], "model_type": model_type, "num_labels": 1}
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "cls_token_id": 2, "sep_token_id": 3}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    scores = "For" in class_name
    shapes = _bert(config, scores) if model_type in ("bert", "roberta", "xlm-roberta") else (
        _modernbert(config, scores) if model_type == "modernbert" else
        _distilbert() if model_type == "distilbert" else
        _nomic_bert() if model_type == "nomic_bert" else _decoder(config, class_name)
    )  # fmt: skip
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") and model_type != "gemma3_text" else 0.0
            tensors[name] = _normal(3, name, shape, 0.1, around)
        else:
            tensors[name] = _normal(3, name, shape, 0.5 if "embed" in name else 1.5 / shape[1] ** 0.5)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, n_out: int, n_in: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), **({f"{name}.bias": (n_out,)} if bias else {})}


def _norm(name: str, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (HIDDEN,), **({f"{name}.bias": (HIDDEN,)} if bias else {})}


def _bert(config: dict[str, Any], scores: bool) -> Shapes:
    base = ("bert." if config["model_type"] == "bert" else "roberta.") if scores else ""
    shapes: Shapes = {
        f"{base}embeddings.word_embeddings.weight": (N_ROWS, HIDDEN),
        f"{base}embeddings.position_embeddings.weight": (64, HIDDEN),
        f"{base}embeddings.token_type_embeddings.weight": (config["type_vocab_size"], HIDDEN),
        **_norm(f"{base}embeddings.LayerNorm"),
    }
    for i in range(LAYERS):
        at = f"{base}encoder.layer.{i}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(at + part, HIDDEN, HIDDEN)
        shapes |= _norm(f"{at}attention.output.LayerNorm")
        shapes |= _linear(f"{at}intermediate.dense", FFN, HIDDEN) | _linear(f"{at}output.dense", HIDDEN, FFN)
        shapes |= _norm(f"{at}output.LayerNorm")
    if scores and base == "bert.":
        shapes |= _linear("bert.pooler.dense", HIDDEN, HIDDEN) | _linear("classifier", 1, HIDDEN)
    elif scores:
        shapes |= _linear("classifier.dense", HIDDEN, HIDDEN) | _linear("classifier.out_proj", 1, HIDDEN)
    else:
        shapes |= _linear("pooler.dense", HIDDEN, HIDDEN)
    return shapes


def _distilbert() -> Shapes:
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (N_ROWS, HIDDEN),
        "embeddings.position_embeddings.weight": (64, HIDDEN),
        **_norm("embeddings.LayerNorm"),
    }
    for i in range(LAYERS):
        at = f"transformer.layer.{i}."
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= _linear(f"{at}attention.{part}", HIDDEN, HIDDEN)
        shapes |= _linear(f"{at}ffn.lin1", FFN, HIDDEN) | _linear(f"{at}ffn.lin2", HIDDEN, FFN)
        shapes |= _norm(f"{at}sa_layer_norm") | _norm(f"{at}output_layer_norm")
    return shapes


def _modernbert(config: dict[str, Any], scores: bool) -> Shapes:
    norm_bias, attn, mlp = (config.get(key, False) for key in ("norm_bias", "attention_bias", "mlp_bias"))
    base = "model." if scores else ""
    shapes: Shapes = {f"{base}embeddings.tok_embeddings.weight": (N_ROWS, HIDDEN)}
    shapes |= _norm(f"{base}embeddings.norm", norm_bias) | _norm(f"{base}final_norm", norm_bias)
    for i in range(LAYERS):
        at = f"{base}layers.{i}."
        shapes |= (_norm(f"{at}attn_norm", norm_bias) if i else {}) | _norm(f"{at}mlp_norm", norm_bias)
        shapes |= _linear(f"{at}attn.Wqkv", 3 * HIDDEN, HIDDEN, attn) | _linear(f"{at}attn.Wo", HIDDEN, HIDDEN, attn)
        shapes |= _linear(f"{at}mlp.Wi", 2 * FFN, HIDDEN, mlp) | _linear(f"{at}mlp.Wo", HIDDEN, FFN, mlp)
    if scores:
        shapes |= _linear("head.dense", HIDDEN, HIDDEN, bias=False) | _norm("head.norm", bias=False)
        shapes |= _linear("classifier", 1, HIDDEN)
    return shapes


def _nomic_bert() -> Shapes:
    """In the names of the hub's checkpoints, which transformers renames."""
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (N_ROWS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **_norm("emb_ln"),
    }
    for i in range(LAYERS):
        at = f"encoder.layers.{i}."
        shapes |= _linear(f"{at}attn.Wqkv", 3 * HIDDEN, HIDDEN, bias=False)
        shapes |= _linear(f"{at}attn.out_proj", HIDDEN, HIDDEN, bias=False)
        shapes |= _linear(f"{at}mlp.fc11", FFN, HIDDEN, bias=False) | _linear(f"{at}mlp.fc12", FFN, HIDDEN, bias=False)
        shapes |= _linear(f"{at}mlp.fc2", HIDDEN, FFN, bias=False)
        shapes |= _norm(f"{at}norm1") | _norm(f"{at}norm2")
    return shapes


def _decoder(config: dict[str, Any], class_name: str) -> Shapes:
    kind, base = config["model_type"], "model." if "For" in class_name else ""
    head_dim, kv_heads = config.get("head_dim", HIDDEN // HEADS), config["num_key_value_heads"]
    all_biases = config.get("attention_bias", False)
    shapes: Shapes = {f"{base}embed_tokens.weight": (N_ROWS, HIDDEN), **_norm(f"{base}norm", bias=False)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if kind == "gemma3_text" else []
    for i in range(LAYERS):
        at = f"{base}layers.{i}."
        for part, n in (("q", HEADS), ("k", kv_heads), ("v", kv_heads)):
            shapes |= _linear(f"{at}self_attn.{part}_proj", n * head_dim, HIDDEN, all_biases or kind == "qwen2")
        shapes |= _linear(f"{at}self_attn.o_proj", HIDDEN, HEADS * head_dim, all_biases)
        if kind in ("qwen3", "gemma3_text"):
            shapes |= {f"{at}self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}
        for part, n_out, n_in in (("gate", FFN, HIDDEN), ("up", FFN, HIDDEN), ("down", HIDDEN, FFN)):
            shapes |= _linear(f"{at}mlp.{part}_proj", n_out, n_in, bias=False)
        for norm in norms:
            shapes |= _norm(at + norm, bias=False)
    if class_name == "Qwen3ForSequenceClassification":
        shapes |= _linear("score", 1, HIDDEN, bias=False)
    if config.get("tie_word_embeddings") is False:
        shapes |= _linear("lm_head", N_ROWS, HIDDEN, bias=False)
    return shapes


def record() -> dict[str, np.ndarray]:
    """transformers' hidden states of all texts, packed, or their scores; each text alone."""
    import torch
    import transformers

    found = {}
    for case, (class_name, _, _) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), case)
            model, loading = getattr(transformers, class_name).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys")), (case, loading)
        with torch.inference_mode():
            rows = [model.eval()(input_ids=torch.tensor([ids])) for ids in texts()]
        if "words" in case:
            found[case] = torch.stack([row.logits[0, -1, list(WORDS)] for row in rows]).numpy()
        elif "scores" in case:
            found[case] = torch.stack([row.logits[0] for row in rows]).numpy()
        else:
            found[case] = torch.cat([row.last_hidden_state[0] for row in rows]).numpy()
    return found
