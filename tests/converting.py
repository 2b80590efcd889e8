"""What the converter's tests share: edited checkpoints, GGUF files read back by gguf-py, or run by stock llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGUFReader, ReaderTensor

from edge_embed.convert import convert
from tests.checkpoints import build_tiny_bert, build_tiny_qwen3

MISSING = object()
"""A value for ``edited`` that removes the field."""


def small_qwen3(folder: Path, **options: Any) -> Path:
    """The tiny Qwen3 with a tokenizer of some 280 tokens, made in milliseconds."""
    return build_tiny_qwen3(folder, real_tokenizer=False, **options)


def converted_models(folder: Path) -> dict[str, tuple[Path, Path]]:
    """model -> (checkpoint, GGUF); BERT in F16, Qwen3 in Q8_0."""
    prompts = {"query": "Represent this: ", "passage": ""}
    sources = {"bert": build_tiny_bert(folder / "bert", prompts=prompts), "qwen3": small_qwen3(folder / "qwen3")}
    ftypes = {"bert": "f16", "qwen3": "q8_0"}
    return {
        model: (source, convert(source, folder / f"{model}.gguf", ftype=ftypes[model]).path)
        for model, source in sources.items()
    }


def edited(path: Path, /, **fields: Any) -> Path:
    """Set or remove fields of a JSON object, which is made where it is missing; ``a__b`` is field b of object a."""
    whole = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name, value in fields.items():
        *outer, last = name.split("__")
        inner = whole
        for key in outer:
            inner = inner[key]
        if value is MISSING:
            del inner[last]
        else:
            inner[last] = value
    path.write_text(json.dumps(whole), "utf-8")
    return path


def metadata(path: Path) -> dict[str, Any]:
    """Every key and its value."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}


def tensors(path: Path) -> dict[str, ReaderTensor]:
    """Every tensor by name, in the file's order."""
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def stock(path: Path, texts: list[str], **options: Any) -> tuple[np.ndarray, list[list[int]]]:
    """Unit vectors and ids from llama-cpp-python's own class, which knows nothing of edge_embed.* keys."""
    llama = llama_cpp.Llama(str(path), embedding=True, verbose=False, n_threads=1, **options)
    try:
        ids = [llama.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
        return np.array(llama.embed(texts, normalize=True)), ids
    finally:
        llama.close()
