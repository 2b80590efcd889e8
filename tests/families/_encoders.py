"""What the encoders' fixtures share: weights by name, tokenizer files, and the original model run on the texts."""

from __future__ import annotations

import functools
import json
import lzma
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests import oracle
from tests.checkpoints import DATA, _normal, _write_json, _write_sentence_transformers, _write_weights
from tests.families import Arrays, packed
from tests.golden_texts import TEXTS

GPT2_SPECIALS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")

# Queries and documents for cross-encoders: equal and unequal lengths, many scripts, an empty side.
PAIRS = [
    *((TEXTS[i], TEXTS[(7 * i + 1) % 42]) for i in range(0, 42, 2)),
    (TEXTS[3], TEXTS[45]),
    (TEXTS[9], TEXTS[46]),
    ("how do cats sleep", TEXTS[0]),
    ("how do cats sleep", TEXTS[2]),
    ("", "a document without a query"),
    ("a query without a document", ""),
]


class Weights:
    """Random tensors by name, each drawn from a generator of its own."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        self.tensors[name] = _normal(self.seed, name, shape, std, mean)

    def linear(self, name: str, n_out: int, n_in: int, *, bias: bool = True, gain: float = 0.9) -> None:
        self.add(f"{name}.weight", n_out, n_in, std=gain / n_in**0.5)
        if bias:
            self.add(f"{name}.bias", n_out, std=0.05)

    def norm(self, name: str, n: int, *, bias: bool = True) -> None:
        self.add(f"{name}.weight", n, std=0.05, mean=1.0)
        if bias:
            self.add(f"{name}.bias", n, std=0.05)


def bert_weights(
    *, rows: int, positions: int, types: int, hidden: int, layers: int, prefix: str = "", types_std: float = 0.03
) -> Weights:
    """Embeddings and layers of BERT, RoBERTa and XLM-RoBERTa, which all name them so."""
    weights = Weights()
    weights.add(f"{prefix}embeddings.word_embeddings.weight", rows, hidden, std=0.1)
    weights.add(f"{prefix}embeddings.position_embeddings.weight", positions, hidden, std=0.05)
    weights.add(f"{prefix}embeddings.token_type_embeddings.weight", types, hidden, std=types_std)
    weights.norm(f"{prefix}embeddings.LayerNorm", hidden)
    for i in range(layers):
        layer = f"{prefix}encoder.layer.{i}"
        for part in ("query", "key", "value"):
            weights.linear(f"{layer}.attention.self.{part}", hidden, hidden)
        weights.linear(f"{layer}.attention.output.dense", hidden, hidden)
        weights.norm(f"{layer}.attention.output.LayerNorm", hidden)
        weights.linear(f"{layer}.intermediate.dense", 4 * hidden, hidden)
        weights.linear(f"{layer}.output.dense", hidden, 4 * hidden)
        weights.norm(f"{layer}.output.LayerNorm", hidden)
    return weights


def bert_config(
    *, rows: int, positions: int, types: int, hidden: int, layers: int, heads: int, head: bool, **fields: Any
) -> dict[str, Any]:
    """config.json of the same; ``head`` is a cross-encoder's, ``fields`` are what each family has beside or instead."""
    return {
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "type_vocab_size": types,
        "vocab_size": rows,
        **({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if head else {}),
        **fields,
    }


def wordpiece_config(max_tokens: int, kind: str = "BertTokenizer") -> dict[str, Any]:
    """tokenizer_config.json of a WordPiece tokenizer."""
    return {
        "tokenizer_class": kind,
        "do_lower_case": True,
        "model_max_length": max_tokens,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    }


def write_checkpoint(
    folder: Path,
    weights: Weights,
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    tokenizer_config: dict[str, Any],
    *,
    dtype: str = "f32",
) -> Path:
    """The transformer's part of a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, weights.tensors, dtype, sharded=False)
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    return folder


def write_sentence_transformers(
    folder: Path, *, hidden: int, pooling: str, normalize: bool = True, prompts: dict[str, str] | None = None
) -> None:
    """modules.json and its companions."""
    _write_sentence_transformers(
        folder, hidden=hidden, pooling=pooling, spelling="booleans", normalize=normalize, prompts=prompts
    )


@functools.lru_cache(maxsize=1)
def _qwen3_merges() -> list[list[str]]:
    model = json.loads(lzma.decompress((DATA / "qwen3-tokenizer.json.xz").read_bytes()))["model"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]


def byte_bpe(
    specials: Sequence[str], others: Sequence[str] = (), *, n_merges: int = 1500
) -> tuple[dict[str, int], list[list[str]], dict[str, int]]:
    """A byte-level vocabulary of 256 bytes and the first merges of Qwen3, and the ids of the tokens behind it.

    Returns:
        Vocabulary, merges, and the ids of ``others`` and then ``specials``, which are no part of the vocabulary.
    """
    merges = _qwen3_merges()[:n_merges]
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens += ["".join(merge) for merge in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return vocab, merges, {token: len(vocab) + i for i, token in enumerate([*others, *specials])}


def recorded(folder: Path, *, pooling: str, max_tokens: int, texts: Sequence[str] = TEXTS) -> Arrays:
    """The original's unit vectors, each text alone, and its tokenizer's ids, cut at ``max_tokens``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]
    return {"vectors": oracle.encoder(folder, texts, pooling=pooling, max_tokens=max_tokens), **packed(ids)}


def recorded_scores(folder: Path, *, pairs: Sequence[tuple[str, str]] = PAIRS) -> Arrays:
    """The original's logits, each pair alone, and its tokenizer's ids and token types."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids, scores = [], []
    with torch.inference_mode():
        for query, document in pairs:
            # A list of pairs, as sentence-transformers gives it: an empty document alone would count as none.
            inputs = tokenizer([[query, document]], return_tensors="pt")
            ids.append(inputs["input_ids"][0].tolist())
            scores.append(float(model(**inputs).logits[0, 0]))
    return {"scores": np.array(scores, dtype=np.float32), **packed(ids)}


def in_temporary_folder(build: Callable[[Path], Path], record: Callable[[Path], Arrays]) -> Arrays:
    """Build a checkpoint, run the original on it, forget it."""
    with tempfile.TemporaryDirectory() as folder:
        return record(build(Path(folder)))
