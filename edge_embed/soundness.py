"""Refuses the files on which llama.cpp would end the process, or silently take one model for another."""

from __future__ import annotations

from collections import Counter
from typing import Final

from edge_embed import keys
from edge_embed.architectures import DECODERS, ENCODERS, MAX_LAYERS, MAX_WIDTH
from edge_embed.errors import ModelFileError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader
from edge_embed.metadata import Metadata

# tokenizer.ggml.model that is rebuilt (rebuild.py), or that the engine's tokenizer runs without dying on some text.
_TOKENIZERS: Final = ("bert", "gpt2", "llama", "t5")
# tokenizer.ggml.pre whose words llama.cpp splits by hand-written code. The others go through std::regex, which recurses
# once for each character: a run of some 20,000 overflows the stack and ends the process. Source: unicode.cpp,
# unicode_regex_split_custom; llama-vocab.cpp, llm_tokenizer_bpe.
_SOUND_PRE: Final = frozenset(
    [
        "qwen2",
        "deepseek-r1-qwen",
        "kormo",
        "f2llmv2",
        "megrez",
        "stablelm2",
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "lfm2",
        "jina-v5-nano",
        "gpt-2",
        "phi-2",
        "jina-es",
        "jina-de",
        "jina-v1-en",
        "jina-v2-es",
        "jina-v2-de",
        "jina-v2-code",
        "roberta-bpe",
        "modern-bert",
        "mpt",
        "olmo",
        "smollm",
        "starcoder",
    ]
)


def check_tokenizer(read: Metadata) -> None:
    """Refuse vocabularies on which llama.cpp's tokenizer ends the process for some texts."""
    model, pre = read.text("tokenizer.ggml.model"), read.text("tokenizer.ggml.pre", "default")
    if model not in _TOKENIZERS:
        raise UnsupportedModelError(
            f"{read.path}: the tokenizer {model!r} is not supported", hint=f"supported: {', '.join(_TOKENIZERS)}"
        )
    for key in (keys.PAIR_SEPARATOR, keys.ADDED_LSTRIP, keys.ADDED_RSTRIP, keys.ADDED_SINGLE_WORD,
                keys.ADDED_NORMALIZED):  # fmt: skip
        if any(not 0 <= token < len(read.tokens) for token in read.integers(key)):
            raise ModelFileError(f"{read.path}: {key} has a token that is not in the vocabulary")
    if model == "gpt2" and pre not in _SOUND_PRE:
        raise UnsupportedModelError(
            f"{read.path}: the pre-tokenizer {pre!r} is not supported",
            hint=f"supported: {', '.join(sorted(_SOUND_PRE))}",
        )
    spelled = Counter(token for token in read.tokens if token and "\ufffd" not in token)  # what was not UTF-8
    if len(spelled) < spelled.total():
        twice = next(token for token, count in spelled.items() if count > 1)
        raise ModelFileError(
            f"{read.path}: two tokens of one spelling, {twice!r}, on which the engine ends the process",
            hint="convert it again",
        )
    if model == "llama" and not {f"<0x{byte:02X}>" for byte in range(256)} <= set(read.tokens):
        raise ModelFileError(f"{read.path}: the vocabulary lacks tokens for single bytes", hint="convert it again")


def check_tensors(header: GgufHeader, read: Metadata, arch: str, n_embd: int, n_ctx_train: int) -> int:
    """Refuse what the engine's C++ would divide by, index with, or assert on. Returns the vocabulary's size."""
    n_head = read.count(f"{arch}.attention.head_count", 1 << 14)
    n_head_kv = read.count(f"{arch}.attention.head_count_kv", 1 << 14, default=n_head)
    if n_head % n_head_kv:
        raise ModelFileError(f"{read.path}: {n_head} attention heads cannot share {n_head_kv} key/value heads")
    if f"{arch}.attention.key_length" not in header.metadata and n_embd % n_head:
        raise ModelFileError(f"{read.path}: width {n_embd} cannot be divided among {n_head} attention heads")
    for name in ("key_length", "value_length"):
        read.count(f"{arch}.attention.{name}", 1 << 14, default=1)
    n_ff = read.count(f"{arch}.feed_forward_length", MAX_WIDTH)
    n_vocab = len(read.tokens)
    if n_vocab < 4:
        raise ModelFileError(f"{read.path}: a vocabulary of {n_vocab} tokens cannot be right")
    for name in ("token_type", "scores"):
        values = header.metadata.get(f"tokenizer.ggml.{name}", [0] * n_vocab)
        if not isinstance(values, list) or len(values) != n_vocab:
            raise ModelFileError(f"{read.path}: tokenizer.ggml.{name} does not have an entry for each token")
    for name in ("bos", "eos", "unknown", "seperator", "padding", "cls", "mask"):
        token = read.integer(f"tokenizer.ggml.{name}_token_id", default=0)
        if not 0 <= token < n_vocab:
            raise ModelFileError(f"{read.path}: {name}_token_id is {token}, and there are {n_vocab} tokens")
    if arch in DECODERS or arch == "gemma-embedding":
        _check_rotation(read, arch, n_embd, n_head)
    elif arch in ENCODERS:
        _check_encoder(read, arch, n_embd // n_head)
    if arch == "gemma-embedding":
        _check_gemma(header, read, n_embd)
    shapes = {"token_embd.weight": (n_embd, n_vocab)}
    if arch == "bert":
        shapes["position_embd.weight"] = (n_embd, n_ctx_train)
    for layer in range(read.count(f"{arch}.block_count", MAX_LAYERS)):
        shapes[f"blk.{layer}.ffn_down.weight"] = (n_ff, n_embd)
    for name, shape in shapes.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{read.path}: the tensor {name!r} is missing", hint="convert the model again")
        if tensor.shape != shape:
            raise ModelFileError(f"{read.path}: the tensor {name!r} has shape {tensor.shape} instead of {shape}")
    return n_vocab


def _check_rotation(read: Metadata, arch: str, n_embd: int, n_head: int) -> None:
    """Decoders rotate whole heads, and llama.cpp asserts that keys, values and rotation have one size."""
    size = read.count(f"{arch}.attention.key_length", 1 << 14, default=max(n_embd // n_head, 1))
    for name, default in (
        ("attention.value_length", n_embd // n_head),
        ("rope.dimension_count", size),
        *((f"{name}_swa", size) for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")),
    ):
        found = read.count(f"{arch}.{name}", 1 << 14, default=max(default, 1))
        if found != size:
            raise ModelFileError(f"{read.path}: {arch}.{name} is {found}, and heads have {size} values")
    if size % 2:
        raise ModelFileError(f"{read.path}: heads of {size} values cannot be rotated in pairs")
    scaling = read.text(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(f"{read.path}: {arch}.rope.scaling.type is {scaling!r}, which is not known")
    for name in ("expert_count", "expert_used_count", "expert_group_count", "nextn_predict_layers"):
        if read.integer(f"{arch}.{name}", default=0) != 0:
            raise UnsupportedModelError(
                f"{read.path}: {arch}.{name} is not 0; mixtures of experts and further heads are not supported"
            )
    if arch == "qwen2" and size * n_head != n_embd:
        raise ModelFileError(f"{read.path}: {n_head} heads of {size} values are not {n_embd} together")


def _check_gemma(header: GgufHeader, read: Metadata, n_embd: int) -> None:
    """Windows and Dense layers of EmbeddingGemma. Without the latter's sizes llama.cpp makes empty layers of them."""
    arch = "gemma-embedding"
    read.count(f"{arch}.attention.sliding_window", 1 << 30)
    if read.flag(f"{arch}.attention.causal", False):
        raise ModelFileError(f"{read.path}: {arch}.attention.causal is true, and the architecture looks both ways")
    pattern = header.metadata.get(f"{arch}.attention.sliding_window_pattern", 0)
    n_layer = read.count(f"{arch}.block_count", MAX_LAYERS)
    if isinstance(pattern, list) and len(pattern) != n_layer:
        raise ModelFileError(f"{read.path}: {arch}.attention.sliding_window_pattern does not have {n_layer} entries")
    tensors = [header.tensors.get(f"dense_{n}.weight") for n in (2, 3)]
    sizes = [tuple(read.integer(f"{arch}.dense_{n}_feat_{end}", default=0) for end in ("in", "out")) for n in (2, 3)]
    found = [(0, 0) if tensor is None else tensor.shape for tensor in tensors]
    if found != sizes or (any(tensors) and (not all(tensors) or sizes[0][0] != n_embd or sizes[1][1] != n_embd)):
        raise ModelFileError(
            f"{read.path}: the tensors dense_2 and dense_3 have the shapes {found[0]} and {found[1]}, "
            f"and the metadata says {sizes[0]} and {sizes[1]} (0 for none)"
        )


def _check_encoder(read: Metadata, arch: str, head_size: int) -> None:
    """Refuse settings of BERT's relatives that llama.cpp would assert on, or take silently for another model."""
    for name in ("key_length", "value_length"):
        length = read.count(f"{arch}.attention.{name}", 1 << 14, default=head_size)
        if length != head_size:
            raise ModelFileError(f"{read.path}: {arch}.attention.{name} is {length}, expected {head_size}")
    if arch == "bert":
        return
    rotated = read.count(f"{arch}.rope.dimension_count", 1 << 14, default=head_size)
    if rotated != head_size or rotated % 2:
        raise ModelFileError(f"{read.path}: heads of size {head_size} of which {rotated} values would be rotated")
    scaling = read.text(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise UnsupportedModelError(f"{read.path}: {arch}.rope.scaling.type is {scaling!r}, expected none")
    activation = read.text(f"{arch}.hidden_activation", "gelu" if arch == "modern-bert" else "silu")
    if activation not in ("gelu", "silu"):
        raise UnsupportedModelError(f"{read.path}: {arch}.hidden_activation is {activation!r}, expected gelu or silu")
