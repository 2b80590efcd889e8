"""GGUF files written by hand: a byte-exact encoder that also writes what no converter would, and two tiny models.

Values are typed by NumPy: ``np.uint32(3)`` is a UINT32, ``np.array([...], np.int32)`` an array of INT32. The models
have random weights with a fixed seed and are below 100 KB, so that a test can damage thousands of copies.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.checkpoints import small_bpe_tokenizer

# Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
VALUE_TYPES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7, "uint64": 10,
    "int64": 11, "float64": 12,
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_TENSOR_TYPES = {"float32": 0, "float16": 1}

Metadata = dict[str, Any]
Tensors = dict[str, np.ndarray]


def string(text: str | bytes) -> bytes:
    """A GGUF string: length and UTF-8."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """A typed value with its type id; ``bytes`` are taken as they are."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return struct.pack("<I", _STRING) + string(item)
    if isinstance(item, list):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(item)) + b"".join(map(string, item))
    array = np.asarray(item)
    kind = VALUE_TYPES[array.dtype.name]
    if array.ndim == 0:
        return struct.pack("<I", kind) + array.tobytes()
    return struct.pack("<IIQ", _ARRAY, kind, len(array)) + array.tobytes()


def tensor_info(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One entry of the tensor directory; ``shape`` in ggml's order."""
    dims = b"".join(struct.pack("<Q", dim) for dim in shape)
    return string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def assemble(
    pairs: list[bytes], infos: list[bytes], data: bytes = b"", *, magic: bytes = b"GGUF", version: int = 3,
    n_kv: int | None = None, n_tensors: int | None = None, alignment: int = 32,
) -> bytes:  # fmt: skip
    """A file from encoded parts, whether or not they make sense."""
    counts = (len(infos) if n_tensors is None else n_tensors, len(pairs) if n_kv is None else n_kv)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(infos)
    return head + b"\0" * (-len(head) % alignment) + data


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bytes:
    """A well-formed file of float32 and float16 tensors, given as ``[rows, columns]``."""
    pairs = [string(key) + value(item) for key, item in metadata.items()]
    infos, data = [], b""
    for name, array in tensors.items():
        infos.append(tensor_info(name, array.shape[::-1], _TENSOR_TYPES[array.dtype.name], len(data)))
        data += array.tobytes() + b"\0" * (-array.nbytes % 32)
    return assemble(pairs, infos, data)


def phantom(piece: str) -> str:
    """A WordPiece token as llama.cpp stores it."""
    if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
        return piece
    return piece[2:] if piece.startswith("##") else "\u2581" + piece


def wordpiece_metadata(pieces: list[str]) -> Metadata:
    """``tokenizer.ggml.*`` of a WordPiece vocabulary."""
    ids = {piece: np.uint32(i) for i, piece in enumerate(pieces)}
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.token_type_count": np.uint32(2),
        "tokenizer.ggml.tokens": [phantom(piece) for piece in pieces],
        "tokenizer.ggml.token_type": np.array([3 if piece in special else 1 for piece in pieces], np.int32),
        "tokenizer.ggml.bos_token_id": ids["[CLS]"],
        "tokenizer.ggml.cls_token_id": ids["[CLS]"],
        "tokenizer.ggml.seperator_token_id": ids["[SEP]"],
        "tokenizer.ggml.unknown_token_id": ids["[UNK]"],
        "tokenizer.ggml.padding_token_id": ids["[PAD]"],
        "tokenizer.ggml.mask_token_id": ids["[MASK]"],
    }


def small_wordpiece() -> list[str]:
    """About a hundred pieces: special tokens, lower-case letters whole and as continuations, some words."""
    words = "the a cat sat on mat good morning world green tea ing ed s".split()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    others = [".", ",", "[", "]", "中", "1", "2"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*special, *letters, *("##" + c for c in letters), *words, *others, "##ing", "##ed"]))


class _Weights:
    """Draws tensors by one generator."""

    def __init__(self, seed: int, dtype: type) -> None:
        self._random, self._dtype, self.tensors = np.random.default_rng(seed), dtype, Tensors()

    def matrix(self, name: str, rows: int, columns: int, std: float | None = None) -> None:
        drawn = self._random.standard_normal((rows, columns)) * (columns**-0.5 if std is None else std)
        self.tensors[name] = drawn.astype(self._dtype)

    def vector(self, name: str, size: int, mean: float = 0.0) -> None:
        self.tensors[name] = (mean + 0.05 * self._random.standard_normal(size)).astype(np.float32)


def tiny_bert(
    pieces: list[str] | None = None,
    *,
    hidden: int = 32,
    layers: int = 2,
    n_ff: int = 48,
    n_ctx: int = 64,
    seed: int = 0,
) -> tuple[Metadata, Tensors]:
    """A WordPiece encoder with mean pooling."""
    pieces = small_wordpiece() if pieces is None else pieces
    metadata: Metadata = {
        "general.architecture": "bert",
        "general.name": "tiny bert",
        "bert.block_count": np.uint32(layers),
        "bert.context_length": np.uint32(n_ctx),
        "bert.embedding_length": np.uint32(hidden),
        "bert.feed_forward_length": np.uint32(n_ff),
        "bert.attention.head_count": np.uint32(2),
        "bert.attention.layer_norm_epsilon": np.float32(1e-12),
        "bert.attention.causal": np.bool_(False),
        "bert.pooling_type": np.uint32(1),
        **wordpiece_metadata(pieces),
    }
    weights = _Weights(seed, np.float32)
    weights.matrix("token_embd.weight", len(pieces), hidden, 0.5)
    weights.matrix("position_embd.weight", n_ctx, hidden, 0.1)
    weights.matrix("token_types.weight", 2, hidden, 0.1)
    _norm(weights, "token_embd_norm", hidden)
    for layer in range(layers):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", hidden, hidden), ("attn_k", hidden, hidden), ("attn_v", hidden, hidden),
            ("attn_output", hidden, hidden), ("ffn_up", n_ff, hidden), ("ffn_down", hidden, n_ff),
        ):  # fmt: skip
            weights.matrix(f"{block}.{name}.weight", rows, columns)
            weights.vector(f"{block}.{name}.bias", rows)
        _norm(weights, f"{block}.attn_output_norm", hidden)
        _norm(weights, f"{block}.layer_output_norm", hidden)
    return metadata, weights.tensors


def _norm(weights: _Weights, name: str, hidden: int) -> None:
    weights.vector(f"{name}.weight", hidden, 1.0)
    weights.vector(f"{name}.bias", hidden)


def bpe_metadata(pre: str = "qwen2") -> Metadata:
    """``tokenizer.ggml.*`` of a byte-level BPE vocabulary that ends with three special tokens."""
    tokenizer = small_bpe_tokenizer()
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = [token["content"] for token in tokenizer["added_tokens"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, *special],
        "tokenizer.ggml.token_type": np.array([1] * len(tokens) + [3] * len(special), np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": np.uint32(len(tokens)),
        "tokenizer.ggml.padding_token_id": np.uint32(len(tokens)),
        "tokenizer.ggml.add_bos_token": np.bool_(False),
        "tokenizer.ggml.add_eos_token": np.bool_(True),
    }


def spm_metadata(*, byte_tokens: bool = True) -> Metadata:
    """``tokenizer.ggml.*`` of a SentencePiece vocabulary, with or without its 256 byte tokens."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["<unk>", "<s>", "</s>", "\u2581", *letters, "\u2581the", "ing"]
    kinds = [2, 3, 3] + [1] * (len(tokens) - 3)
    if byte_tokens:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        kinds += [6] * 256
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.scores": np.arange(0, -len(tokens), -1).astype(np.float32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        "tokenizer.ggml.add_bos_token": np.bool_(True),
        "tokenizer.ggml.add_eos_token": np.bool_(True),
    }


def tiny_decoder(
    architecture: str = "qwen3", vocabulary: Metadata | None = None, *, pooling: int = 3, hidden: int = 32,
    layers: int = 2, n_ff: int = 48, n_ctx: int = 1024, seed: int = 1,
) -> tuple[Metadata, Tensors]:  # fmt: skip
    """A causal model (``qwen3`` or ``llama``), with last-token pooling and Qwen's kind of vocabulary."""
    vocabulary = bpe_metadata() if vocabulary is None else vocabulary
    heads, head_dim = 2, 16
    metadata: Metadata = {
        "general.architecture": architecture,
        "general.name": f"tiny {architecture}",
        f"{architecture}.block_count": np.uint32(layers),
        f"{architecture}.context_length": np.uint32(n_ctx),
        f"{architecture}.embedding_length": np.uint32(hidden),
        f"{architecture}.feed_forward_length": np.uint32(n_ff),
        f"{architecture}.attention.head_count": np.uint32(heads),
        f"{architecture}.attention.head_count_kv": np.uint32(1),
        f"{architecture}.attention.key_length": np.uint32(head_dim),
        f"{architecture}.attention.value_length": np.uint32(head_dim),
        f"{architecture}.attention.layer_norm_rms_epsilon": np.float32(1e-6),
        f"{architecture}.rope.freq_base": np.float32(1e6),
        f"{architecture}.rope.dimension_count": np.uint32(head_dim),
        f"{architecture}.vocab_size": np.uint32(len(vocabulary["tokenizer.ggml.tokens"])),
        f"{architecture}.pooling_type": np.uint32(pooling),
        **vocabulary,
    }
    weights = _Weights(seed, np.float16)
    weights.matrix("token_embd.weight", len(vocabulary["tokenizer.ggml.tokens"]), hidden, 0.5)
    weights.vector("output_norm.weight", hidden, 1.0)
    for layer in range(layers):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", heads * head_dim, hidden), ("attn_k", head_dim, hidden), ("attn_v", head_dim, hidden),
            ("attn_output", hidden, heads * head_dim), ("ffn_gate", n_ff, hidden), ("ffn_up", n_ff, hidden),
            ("ffn_down", hidden, n_ff),
        ):  # fmt: skip
            weights.matrix(f"{block}.{name}.weight", rows, columns)
        for name, size in (("attn_norm", hidden), ("ffn_norm", hidden)):
            weights.vector(f"{block}.{name}.weight", size, 1.0)
        if architecture == "qwen3":
            weights.vector(f"{block}.attn_q_norm.weight", head_dim, 1.0)
            weights.vector(f"{block}.attn_k_norm.weight", head_dim, 1.0)
    return metadata, weights.tensors


RERANK_TEMPLATE = (
    "<|im_start|>system\nJudge it.<|im_end|>\n<|im_start|>user\n<Instruct>: Find the answer\n<Query>: {query}\n"
    "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
)


def tiny_reranker(**options: Any) -> tuple[Metadata, Tensors]:
    """The causal model with a head of two rows and a template, under the keys that llama.cpp's converter writes."""
    metadata, tensors = tiny_decoder(pooling=4, **options)
    head = np.random.default_rng(2).standard_normal((2, tensors["token_embd.weight"].shape[1]))
    tensors["cls.output.weight"] = head.astype(np.float32)
    metadata["qwen3.classifier.output_labels"] = ["yes", "no"]
    metadata["tokenizer.chat_template.rerank"] = RERANK_TEMPLATE
    return metadata, tensors
