"""LaBSE: a BERT whose first token goes through a Dense module with bias and tanh, which llama.cpp does not compute."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checkpoints import build_tiny_bert, write_safetensors
from tests.families import Arrays
from tests.families._decoders import PREFIX, dense_module
from tests.families._decoders import record as record_of

NAME = "labse"


def build(folder: Path, *, n_out: int = 64) -> Path:
    """``n_out`` values of 64."""
    build_tiny_bert(folder, pooling="cls", dtype="f32")
    module = dense_module(2, 64, n_out, bias=True, activation="Tanh")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps(module["config"]), "utf-8")
    write_safetensors(folder / "2_Dense" / "model.safetensors", module["tensors"], "f32")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps([{"idx": i, "name": str(i), "path": p, "type": PREFIX + k} for i, (p, k) in enumerate(kinds)]),
        "utf-8",
    )
    return folder


def record() -> Arrays:
    """``vectors`` and ``ids``."""
    return record_of(build)
