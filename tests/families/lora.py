"""Tiny base models with random PEFT adapters, and what PEFT's own ``merge_and_unload`` makes of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import _normal, build_tiny_bert, build_tiny_qwen3, write_safetensors
from tests.families import llama
from tests.golden_texts import TEXTS

NAME = "lora"
TEXTS_USED = TEXTS[:12]
RANK, ALPHA = 8, 16

_ATTENTION = {"q_proj": (128, 64), "k_proj": (64, 64), "v_proj": (64, 64), "o_proj": (64, 128)}
_MLP = {"gate_proj": (192, 64), "up_proj": (192, 64), "down_proj": (64, 192)}
_QWEN3 = {
    **{f"layers.{i}.self_attn.{name}": shape for i in range(2) for name, shape in _ATTENTION.items()},
    **{f"layers.{i}.mlp.{name}": shape for i in range(2) for name, shape in _MLP.items()},
}
_LLAMA = {
    **{f"layers.{i}.self_attn.q_proj": (192, 128) for i in range(2)},
    **{f"layers.{i}.self_attn.k_proj": (96, 128) for i in range(2)},
    **{f"layers.{i}.mlp.down_proj": (128, 256) for i in range(2)},
}
_BERT = {
    **{f"encoder.layer.{i}.attention.self.{name}": (64, 64) for i in range(2) for name in ("query", "key", "value")},
    **{f"encoder.layer.{i}.attention.output.dense": (64, 64) for i in range(2)},
    **{f"encoder.layer.{i}.intermediate.dense": (256, 64) for i in range(2)},
    **{f"encoder.layer.{i}.output.dense": (64, 256) for i in range(2)},
}


@dataclass(frozen=True)
class Case:
    """An adapter.

    Attributes:
        family: ``qwen3``, ``llama`` or ``bert``.
        modules: names and shapes of the weights that it changes, as the base model's class calls them.
        fields: of adapter_config.json, beside the usual ones.
        ranks: of the modules that have another rank than ``RANK``.
        embeddings: those of the modules that are embeddings.
        dtype: what the adapter is stored as.
    """

    family: str
    modules: Mapping[str, tuple[int, int]]
    fields: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()
    dtype: str = "f32"


CASES = {
    "qwen3": Case("qwen3", _QWEN3),
    "qwen3_patterns": Case(
        "qwen3",
        _QWEN3,
        {
            "lora_alpha": 4,
            "use_rslora": True,
            "rank_pattern": {"layers.0.self_attn.q_proj": 4, "down_proj": 2},
            "alpha_pattern": {"v_proj": 3, r"layers\.1\.mlp\.(gate|up)_proj": 9},
        },
        {"layers.0.self_attn.q_proj": 4, "layers.0.mlp.down_proj": 2, "layers.1.mlp.down_proj": 2},
        dtype="f16",
    ),
    "llama": Case("llama", _LLAMA),  # rows of queries and keys, and with them those of B, are reordered for llama.cpp
    "bert": Case("bert", _BERT, dtype="bf16"),
    "bert_embedding": Case(
        "bert",
        {"embeddings.word_embeddings": (670, 64), "encoder.layer.0.attention.self.value": (64, 64)},
        embeddings=("embeddings.word_embeddings",),
    ),
}


def build(folder: Path, case: str = "qwen3", *, base_prefix: str = "", prefix: str = "") -> Path:
    """``base`` and ``adapter`` in the folder.

    ``base_prefix`` is put before the names of the base's tensors, ``prefix`` before those of the adapter's modules, as
    a model with a head has them.
    """
    described = CASES[case]
    if described.family == "qwen3":
        build_tiny_qwen3(folder / "base", real_tokenizer=False, dtype="f32", prefix=base_prefix)
    elif described.family == "llama":
        llama.build(folder / "base", prefix=base_prefix)
    else:
        build_tiny_bert(folder / "base", prefix=base_prefix)
    adapter = folder / "adapter"
    adapter.mkdir()
    tensors = {}
    for module, (n_out, n_in) in described.modules.items():
        rank = described.ranks.get(module, RANK)
        embedding = module in described.embeddings
        halves = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        shapes = ((rank, n_out), (n_in, rank)) if embedding else ((rank, n_in), (n_out, rank))
        for half, shape, std in zip(halves, shapes, (0.1, 0.15), strict=True):
            name = f"base_model.model.{prefix}{module}.{half}"
            tensors[name] = _normal(7, f"{module}.{half}", shape, std)
    write_safetensors(adapter / "adapter_model.safetensors", tensors, described.dtype)
    config = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "example/base", "bias": "none",
        "corda_config": None, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": ALPHA, "lora_bias": False, "lora_dropout": 0.05,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
        "qalora_group_size": 16, "r": RANK, "rank_pattern": {}, "revision": None,
        "target_modules": sorted({module.rpartition(".")[2] for module in described.modules}),
        "target_parameters": None, "task_type": "FEATURE_EXTRACTION", "trainable_token_indices": None,
        "use_dora": False, "use_qalora": False, "use_rslora": False,
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config | dict(described.fields)), encoding="utf-8")
    return folder


def record() -> dict[str, np.ndarray]:
    """Unit vectors of the base and of the merged model of every case, float32."""
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), name)
            found[f"{case.family}_base"] = _vectors(Path(folder) / "base", None, case.family)
            found[name] = _vectors(Path(folder) / "base", Path(folder) / "adapter", case.family)
    return found


def _vectors(base: Path, adapter: Path | None, family: str) -> np.ndarray:
    import torch
    from peft import PeftModel
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    rows = []
    with torch.inference_mode():
        for text in TEXTS_USED:
            ids = tokenizer.encode(text).ids[: 128 if family == "bert" else None]
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            pooled = hidden.mean(0) if family == "bert" else hidden[-1]
            rows.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    return np.stack(rows)
