"""What the decoders' checkpoints share: random weights, the folder around them, and the original's vectors."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.checkpoints import _append_eds, _normal, _write_json, small_bpe_tokenizer, write_safetensors
from tests.families import Arrays, packed
from tests.golden_texts import TEXTS

PREFIX = "sentence_transformers.models."


def llama_weights(
    *,
    hidden: int,
    ffn: int,
    layers: int,
    q: int,
    kv: int,
    rows: int,
    bias: bool = False,
    prefix: str = "",
    seed: int = 0,
) -> dict[str, npt.NDArray[Any]]:
    """Names and shapes of Llama and those that follow it; ``bias`` as Qwen2 has it, on queries, keys and values."""
    tensors: dict[str, npt.NDArray[Any]] = {}

    def weight(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        tensors[prefix + name] = _normal(seed, name, shape, std, mean)

    def linear(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        weight(f"{name}.weight", n_out, n_in, std=gain / n_in**0.5)

    weight("embed_tokens.weight", rows, hidden, std=0.5)
    for i in range(layers):
        layer = f"layers.{i}"
        for part, size, gain in (("q", q, 1.5), ("k", kv, 1.5), ("v", kv, 1.0)):
            linear(f"{layer}.self_attn.{part}_proj", size, hidden, gain)
            if bias:
                weight(f"{layer}.self_attn.{part}_proj.bias", size, std=0.5)
        linear(f"{layer}.self_attn.o_proj", hidden, q, 0.6)
        for name in ("gate", "up"):
            linear(f"{layer}.mlp.{name}_proj", ffn, hidden)
        linear(f"{layer}.mlp.down_proj", hidden, ffn, 0.6)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weight(f"{layer}.{name}.weight", hidden, std=0.05, mean=1.0)
    weight("norm.weight", hidden, std=0.05, mean=1.0)
    return tensors


def byte_level_tokenizer(special: Iterable[str] = ()) -> dict[str, Any]:
    """A byte-level BPE of Qwen2's kind that ends a text with ``<|endoftext|>``, unless told other specials."""
    tokenizer = small_bpe_tokenizer()
    for token in special:
        _append_eds(tokenizer, token, next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == token))
    return tokenizer


def write_folder(
    folder: Path,
    *,
    config: dict[str, Any],
    tensors: dict[str, npt.NDArray[Any]],
    tokenizer: dict[str, Any],
    tokenizer_config: dict[str, Any],
    pooling: str,
    dense: Iterable[dict[str, Any]] = (),
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    max_seq_length: int = 512,
    dtype: str = "bf16",
) -> Path:
    """A checkpoint as sentence-transformers writes it; ``dense`` has a config, a weight and perhaps a bias for each."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    _write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    hidden = config["hidden_size"]
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden, f"pooling_mode_{pooling}": True, "include_prompt": True},
    )
    for number, module in enumerate(dense, start=2):
        path = f"{number}_Dense"
        kinds.append((path, "Dense"))
        _write_json(folder / path / "config.json", module["config"])
        write_safetensors(folder / path / "model.safetensors", module["tensors"], "f32")
    if normalize:
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    _write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": PREFIX + kind} for i, (path, kind) in enumerate(kinds)],
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts or {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    return folder


def dense_module(number: int, n_in: int, n_out: int, *, bias: bool, activation: str, seed: int = 0) -> dict[str, Any]:
    """Config and weights of a Dense module; ``activation`` is the name of a class of torch.nn."""
    home = "linear" if activation == "Identity" else "activation"
    tensors = {"linear.weight": _normal(seed, f"dense_{number}.weight", (n_out, n_in), 1.0 / n_in**0.5)}
    if bias:
        tensors["linear.bias"] = _normal(seed, f"dense_{number}.bias", (n_out,), 0.2)
    return {
        "config": {
            "in_features": n_in,
            "out_features": n_out,
            "bias": bias,
            "activation_function": f"torch.nn.modules.{home}.{activation}",
        },
        "tensors": tensors,
    }


def record(build: Callable[[Path], Path]) -> Arrays:
    """The original's vectors of TEXTS, each alone, through sentence-transformers in float32; and its token ids."""
    import torch
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as name:
        model = SentenceTransformer(
            str(build(Path(name))), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
        )
        with torch.inference_mode():
            vectors = np.stack([model.encode(text, convert_to_numpy=True) for text in TEXTS])
        ids = [model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"] for text in TEXTS]
    return {"vectors": vectors.astype(np.float32), **packed(ids)}


_PAIRS = (
    """▁ t|▁ a|h e|i n|r e|o n|▁t he|e r|▁ s|a t|e n|o r|▁ w|n d|▁ o|in g|▁a nd|i s|▁ c|o u|▁ ▁|▁▁ ▁▁|▁ d|i e|c h|u n"""
)


def sentencepiece_tokenizer(kind: str) -> dict[str, Any]:
    """A small SentencePiece BPE with byte tokens, as Hugging Face writes Mistral's and Gemma's."""
    special = {"mistral": ["<unk>", "<s>", "</s>"], "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]}[kind]
    merges = [pair.split(" ") for pair in _PAIRS.split("|")]
    characters = sorted({c for text in TEXTS[:30] for c in text if ord(c) < 0x600} - {" "} | {"▁"})
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *("".join(pair) for pair in merges), *characters]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if kind == "mistral":
        normalizer: dict[str, Any] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
        pre_tokenizer, begin, end = None, "<s>", "</s>"
    else:
        normalizer, begin, end = replace, "<bos>", "<eos>"
        pre_tokenizer = {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
    around = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (begin, end)]
    parts = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, content in enumerate(special)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around[0], parts[0], around[1]],
            "pair": [around[0], parts[0], around[1], around[0], parts[1], around[1]],
            "special_tokens": {
                token: {"id": token, "ids": [special.index(token)], "tokens": [token]} for token in (begin, end)
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
