"""What a GGUF's metadata means for embeddings: pooling, prompts, limits, the EDS token; and what is wrong with it.

Standard keys come first, ``edge_embed.*`` keys add what the standard has no name for, and the architecture's own
default fills a gap where there is only one sensible answer. What cannot be resolved is an error that names the
option to pass, never a guess. Everything that the engine would crash on is refused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, cast

import numpy as np

from edge_embed import catalogue, keys
from edge_embed.errors import InvalidOptionError, ModelFileError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader
from edge_embed.prompts import INSTRUCTION_SLOT, rerank_problem, split_instruction
from edge_embed.types import (
    Activation,
    Dense,
    DenseActivation,
    Float32Array,
    ModelInfo,
    Pooling,
    RerankInfo,
    TokenTypes,
)

# llama.h, enum llama_pooling_type
POOLING_BY_ID: Final[dict[int, Pooling]] = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}

# A family is listed here once a test compares it with the original model. The value is the pooling where all members
# of the family agree on one. Encoders: attention looks both ways, no KV cache.
ENCODERS: Final[dict[str, Pooling | None]] = {
    "bert": None,  # MiniLM is mean, bge is cls; XLM-RoBERTa, too, goes by this name
    "modern-bert": None,
    "nomic-bert": None,
    "gemma-embedding": "mean",
}
# Decoders: attention looks back, unless the file says otherwise, over a KV cache.
DECODERS: Final[dict[str, Pooling | None]] = {"qwen2": None, "qwen3": "last", "llama": None}

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

_MAX_LAYERS, _MAX_WIDTH, _MAX_CONTEXT = 1024, 1 << 20, 1 << 24


def read_model_info(header: GgufHeader, *, pooling: Pooling | None = None, max_tokens: int | None = None) -> ModelInfo:
    """Resolve what the runtime needs to know.

    Args:
        header: the file's table of contents.
        pooling: overrides what the file says.
        max_tokens: lowers the most tokens of one text (never above what the model can hold).

    Raises:
        ModelFileError: metadata that is missing, of the wrong type, or contradicts the tensors.
        UnsupportedModelError: an architecture or pooling that is not run faithfully, or cannot be resolved.
        InvalidOptionError: ``max_tokens`` or ``pooling`` outside what the model allows.
    """
    read = _Metadata(header)
    arch = read.text("general.architecture")
    if header.metadata.get("general.type") == "adapter":
        raise UnsupportedModelError(
            f"{read.path} is an adapter, not a model of its own", hint="pass it beside its model, with --lora (lora=)"
        )
    if arch not in ENCODERS and arch not in DECODERS:
        raise UnsupportedModelError(
            f"the architecture {arch!r} is not supported",
            hint=f"supported: {', '.join([*ENCODERS, *DECODERS])}",
        )
    n_embd = read.count(f"{arch}.embedding_length", _MAX_WIDTH)
    n_ctx_train = read.count(f"{arch}.context_length", _MAX_CONTEXT)
    n_layer = read.count(f"{arch}.block_count", _MAX_LAYERS)
    n_vocab = _check_tensors(header, read, arch, n_embd, n_ctx_train)
    _check_tokenizer(read)
    repairs: list[str] = []
    resolved, source = _pooling(read, arch, pooling)
    rerank = _rerank(header, read, arch, n_embd) if resolved == "rank" else None
    dense = _dense(read, n_embd)
    if rerank and dense:
        raise UnsupportedModelError(f"{read.path}: a reranker with Dense layers ({keys.DENSE}*) is not supported")
    n_vector = dense[-1].n_out if dense else n_embd
    limit = min(read.count(keys.MAX_TOKENS, _MAX_CONTEXT, default=n_ctx_train), n_ctx_train)
    if limit < 4:
        raise ModelFileError(f"{read.path}: {keys.MAX_TOKENS} or context_length is {limit}: no room for text")
    if max_tokens is not None:
        if type(max_tokens) is not int or not 4 <= max_tokens <= n_ctx_train:
            raise InvalidOptionError(
                f"max_tokens is {max_tokens!r}", hint=f"give 4 to {n_ctx_train}, the model's positions"
            )
        limit = max_tokens
    info = ModelInfo(
        path=str(header.path),
        architecture=arch,
        name=read.text("general.name", header.path.stem),
        n_embd=n_vector,
        n_ctx_train=n_ctx_train,
        n_layer=n_layer,
        n_vocab=n_vocab,
        pooling=resolved,
        pooling_source=source,
        causal=arch in DECODERS and read.flag(f"{arch}.attention.causal", True),
        max_tokens=limit,
        normalize=read.flag(keys.NORMALIZE, True),
        prompts={
            key[len(keys.PROMPT) :]: read.text(key) for key in sorted(header.metadata) if key.startswith(keys.PROMPT)
        },
        default_prompt_name=read.text(keys.DEFAULT_PROMPT_NAME, "") or None,
        instruction_template=_template(read),
        mrl_dimensions=tuple(sorted(d for d in read.integers(keys.MRL_DIMENSIONS) if 1 <= d <= n_vector)),
        eds_token_id=None if rerank and rerank.template else _eds_token(read, n_vocab, resolved, repairs),
        unicode_normalization=_normalization(read, arch, repairs),
        types=dict(Counter(tensor.type_name for tensor in header.tensors.values()).most_common()),
        size_bytes=header.size_bytes,
        license=read.text("general.license", ""),
        repairs=tuple(repairs),
        rerank=rerank,
        dense=dense,
    )
    return info if info.prompts and info.mrl_dimensions else _completed(info, header)


def _completed(info: ModelInfo, header: GgufHeader) -> ModelInfo:
    """With the prompts and sizes of the known model that the file is, where the file itself has none."""
    entry = catalogue.identify(header.path, header.metadata)
    if entry is None:
        return info
    notes = []
    prompts, template, sizes = info.prompts, info.instruction_template, info.mrl_dimensions
    if not prompts and entry.prompts:
        prompts, template = dict(entry.prompts), template or entry.instruction_template
        notes.append(f"the file has no prompts; those of {entry.repository} are used")
    if not sizes and entry.mrl_dimensions:
        sizes = entry.mrl_dimensions
        notes.append(f"the file does not say to which sizes vectors can be cut; those of {entry.repository} are used")
    return replace(
        info,
        prompts=prompts,
        instruction_template=template,
        mrl_dimensions=sizes,
        repairs=(*info.repairs, *notes),
    )


def _pooling(read: _Metadata, arch: str, asked: Pooling | None) -> tuple[Pooling, str]:
    stored = read.integer(f"{arch}.pooling_type", default=-1)
    if stored != -1 and stored not in POOLING_BY_ID:
        raise ModelFileError(f"{read.path}: {arch}.pooling_type is {stored}, not 0 to 4")
    found: Pooling | None = POOLING_BY_ID.get(stored)
    source = "file"
    if found in (None, "none"):
        found, source = {**ENCODERS, **DECODERS}[arch], "architecture"
    if found is None and (entry := catalogue.identify(read.path, read.values)) is not None:
        found, source = cast(Pooling, entry.pooling), "catalogue"
    if asked is not None:
        found, source = asked, "caller"
    if found is None:
        raise UnsupportedModelError(
            f"{read.path} does not say how hidden states are pooled, and models of the architecture {arch!r} differ",
            hint='pass pooling="mean", "cls" or "last" (--pooling), as the model\'s card says',
        )
    if found not in ("mean", "cls", "last") and not (found == "rank" == POOLING_BY_ID.get(stored)):
        raise InvalidOptionError(f"unknown pooling {found!r}", hint="one of mean, cls, last")
    return found, source


def require_embeddings(info: ModelInfo) -> None:
    """Refuse a reranker where vectors are wanted.

    Raises:
        UnsupportedModelError: it is one.
    """
    if info.rerank is not None:
        raise UnsupportedModelError(
            f"{info.path} is a reranker: it scores pairs and has no embeddings",
            hint="score with it (edge_embed.Reranker, `edge-embed rerank`), or choose an embedding model",
        )


def require_scores(info: ModelInfo) -> RerankInfo:
    """The head of a reranker; an embedding model is refused.

    Raises:
        UnsupportedModelError: it is no reranker.
    """
    if info.rerank is None:
        raise UnsupportedModelError(
            f"{info.path} is an embedding model: it has no head that scores pairs",
            hint="embed with it (edge_embed.Embedder, `edge-embed embed`), or choose a reranker; a Qwen3-Reranker "
            "checkpoint becomes one with `edge-embed convert --reranker`",
        )
    return info.rerank


def _rerank(header: GgufHeader, read: _Metadata, arch: str, n_embd: int) -> RerankInfo:
    """The head that scores pairs. Where it is missing llama.cpp gives values of a hidden state, without a word."""
    if arch in DECODERS and arch != "qwen3":
        raise UnsupportedModelError(f"{read.path}: rerankers of the architecture {arch!r} are not supported")
    if arch in DECODERS and not read.flag(f"{arch}.attention.causal", True):
        raise UnsupportedModelError(f"{read.path}: a reranker of the architecture {arch!r} that looks both ways")
    head = header.tensors.get("cls.output.weight")
    if head is None:
        raise ModelFileError(
            f"{read.path} is said to be a reranker and has no head (the tensor 'cls.output.weight')",
            hint="what it would score with is not a score: convert the model again, with `edge-embed convert`",
        )
    labels = read.texts(f"{arch}.classifier.output_labels") or ["score"]  # llama.cpp's default is one output
    if head.shape != (n_embd, len(labels)) and not (len(labels) == 1 and head.shape == (n_embd,)):
        raise ModelFileError(
            f"{read.path}: the tensor 'cls.output.weight' has shape {head.shape} instead of {(n_embd, len(labels))}"
        )
    # llama.cpp puts a softmax behind the head of qwen3: over one output it is always 1.
    fits = sorted(labels) == ["no", "yes"] if arch == "qwen3" else len(labels) == 1
    if not fits:
        expected = "yes and no" if arch == "qwen3" else "one"
        raise UnsupportedModelError(
            f"{read.path}: the outputs of its head are {', '.join(labels[:10])}, expected {expected}",
            hint="it sorts into classes and does not score pairs",
        )
    activation = read.text(keys.RERANK_ACTIVATION, "sigmoid")  # as sentence-transformers has it for one output
    if activation not in ("sigmoid", "identity"):
        raise ModelFileError(f"{read.path}: {keys.RERANK_ACTIVATION} is {activation!r}, not sigmoid or identity")
    template, instruction = _rerank_template(read) if arch in DECODERS else (None, None)
    types = _cross_encoder(header, read, arch, n_embd) if arch in ENCODERS else None
    return RerankInfo(
        tuple(labels), cast(Activation, activation), template, instruction, head.type_name, head.offset, types
    )


def _cross_encoder(header: GgufHeader, read: _Metadata, arch: str, n_embd: int) -> TokenTypes | None:
    """The rest of a cross-encoder's head, which other converters leave out; and its token types, where it has two."""
    expected = {"bert": {"cls.weight": (n_embd, n_embd), "cls.bias": (n_embd,)}}
    expected["modern-bert"] = {"cls.weight": (n_embd, n_embd), "cls.norm.weight": (n_embd,)}
    if arch not in expected:
        raise UnsupportedModelError(f"{read.path}: rerankers of the architecture {arch!r} are not supported")
    for name, shape in expected[arch].items():
        tensor = header.tensors.get(name)
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has shape {tensor.shape} instead of {shape}"
            raise ModelFileError(
                f"{read.path}: the tensor {name!r} {found}",
                hint="without its whole head it would score otherwise: convert the model with `edge-embed convert`",
            )
    # What the head takes: BERT's the first token; ModernBERT's this or the mean, which llama.cpp assumes unless told.
    pooled = read.integer(f"{arch}.classifier.pooling_type", default=2 if arch == "bert" else -1)
    if POOLING_BY_ID.get(pooled) not in (("cls",) if arch == "bert" else ("cls", "mean")):
        raise ModelFileError(
            f"{read.path}: {arch}.classifier.pooling_type is {'missing' if pooled == -1 else pooled}, "
            "so it is not known what the head takes",
            hint="convert the model with `edge-embed convert`",
        )
    types, tokens = header.tensors.get("token_types.weight"), header.tensors.get("token_embd.weight")
    if types is None or tokens is None or len(types.shape) < 2 or types.shape[1] < 2:
        return None
    if types.shape[0] != n_embd or types.type_name != "F32":
        raise ModelFileError(f"{read.path}: the token types are {types.shape} of {types.type_name}, expected F32")
    return TokenTypes(tokens.type_name, tokens.offset, types.offset)


def _rerank_template(read: _Metadata) -> tuple[str, str | None]:
    """The template of a causal reranker and its default instruction, from our keys or from llama.cpp's."""
    key, instruction = keys.RERANK_TEMPLATE, read.text(keys.RERANK_INSTRUCTION, "") or None
    template = read.text(key, "")
    if not template:
        key = "tokenizer.chat_template.rerank"
        template, instruction = split_instruction(read.text(key, ""))
    if not template:
        raise UnsupportedModelError(
            f"{read.path} is a reranker, and nothing says how a query and a document are put to it",
            hint=f"convert it again: {keys.RERANK_TEMPLATE} and {key} are both missing",
        )
    problem = rerank_problem(template)
    if not problem and INSTRUCTION_SLOT in template and instruction is None:
        problem = f"has {INSTRUCTION_SLOT}, and {keys.RERANK_INSTRUCTION} is missing"
    if problem:
        raise ModelFileError(f"{read.path}: {key} {problem}")
    return template, instruction


def _eds_token(read: _Metadata, n_vocab: int, pooling: Pooling, repairs: list[str]) -> int | None:
    """The id that ends every text: design order [EDS], the recorded id, <|endoftext|>, else the file's own flags.

    A mean or a first token needs no such end, so there <|endoftext|> is not assumed where the file does not say so.
    """
    if read.text("tokenizer.ggml.model") == "bert":
        return None  # [SEP], see tokenizer.wordpiece
    tokens = read.tokens
    recorded = read.integer(keys.EDS_TOKEN_ID, default=-1)
    if recorded >= n_vocab:
        raise ModelFileError(f"{read.path}: {keys.EDS_TOKEN_ID} is {recorded}, and there are {n_vocab} tokens")
    flagged = read.integer("tokenizer.ggml.eos_token_id", default=-1)
    is_unigram = read.text("tokenizer.ggml.model") == "t5"  # llama.cpp's default for it
    appended = flagged if read.flag("tokenizer.ggml.add_eos_token", is_unigram) else -1
    if "[EDS]" in tokens:
        eds = tokens.index("[EDS]")
    elif recorded >= 0:
        eds = recorded
    elif (
        pooling not in ("mean", "cls") and read.text("tokenizer.ggml.pre", "") == "qwen2" and "<|endoftext|>" in tokens
    ):
        eds = tokens.index("<|endoftext|>")
    else:
        return appended if 0 <= appended < n_vocab else None
    if appended != eds:
        said = f"appends token {appended}" if appended >= 0 else "appends no token"
        repairs.append(f"the file's flags say that the tokenizer {said}; {tokens[eds]!r} ({eds}) is appended instead")
    return eds


def _template(read: _Metadata) -> str | None:
    template = read.text(keys.INSTRUCTION_TEMPLATE, "") or None
    if template is not None and INSTRUCTION_SLOT not in template:
        raise ModelFileError(f"{read.path}: {keys.INSTRUCTION_TEMPLATE} has no {INSTRUCTION_SLOT}")
    return template


def _check_tokenizer(read: _Metadata) -> None:
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


def _normalization(read: _Metadata, arch: str, repairs: list[str]) -> str:
    form = read.text(keys.UNICODE_NORMALIZATION, "")
    if form:
        if form not in ("none", "NFC", "NFKC"):
            raise ModelFileError(f"{read.path}: {keys.UNICODE_NORMALIZATION} is {form!r}, not none, NFC or NFKC")
        return form
    pre = read.text("tokenizer.ggml.pre", "")
    if (pre == "qwen2" and arch.startswith("qwen")) or (pre == arch == "modern-bert"):
        whose = "Qwen" if pre == "qwen2" else "ModernBERT"
        repairs.append(f"the file does not record Unicode normalization; NFC is used, as {whose} tokenizers do")
        return "NFC"
    return "none"


def _dense(read: _Metadata, n_embd: int) -> tuple[Dense, ...]:
    """The linear layers that the metadata holds, in order; each takes what the one before it gives."""
    layers: list[Dense] = []
    while read.has(f"{keys.DENSE}{len(layers)}.weight"):
        prefix = f"{keys.DENSE}{len(layers)}."
        n_in = read.count(prefix + "in_features", _MAX_WIDTH)
        weight, bias = read.reals(prefix + "weight"), read.reals(prefix + "bias")
        expected = layers[-1].n_out if layers else n_embd
        if n_in != expected or weight.size % n_in or bias.size not in (0, weight.size // n_in):
            raise ModelFileError(
                f"{read.path}: {prefix}* has {weight.size} weights and {bias.size} biases for {n_in} values, "
                f"and vectors of {expected} come in"
            )
        activation = read.text(prefix + "activation")
        if activation not in ("identity", "tanh"):
            raise UnsupportedModelError(f"{read.path}: {prefix}activation is {activation!r}, not identity or tanh")
        matrix = weight.reshape(weight.size // n_in, n_in)
        layers.append(Dense(matrix, bias if bias.size else None, cast(DenseActivation, activation)))
    return tuple(layers)


def _check_tensors(header: GgufHeader, read: _Metadata, arch: str, n_embd: int, n_ctx_train: int) -> int:
    """Refuse what the engine's C++ would divide by, index with, or assert on. Returns the vocabulary's size."""
    n_head = read.count(f"{arch}.attention.head_count", 1 << 14)
    n_head_kv = read.count(f"{arch}.attention.head_count_kv", 1 << 14, default=n_head)
    if n_head % n_head_kv:
        raise ModelFileError(f"{read.path}: {n_head} attention heads cannot share {n_head_kv} key/value heads")
    if f"{arch}.attention.key_length" not in header.metadata and n_embd % n_head:
        raise ModelFileError(f"{read.path}: width {n_embd} cannot be divided among {n_head} attention heads")
    for name in ("key_length", "value_length"):
        read.count(f"{arch}.attention.{name}", 1 << 14, default=1)
    n_ff = read.count(f"{arch}.feed_forward_length", _MAX_WIDTH)
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
    for layer in range(read.count(f"{arch}.block_count", _MAX_LAYERS)):
        shapes[f"blk.{layer}.ffn_down.weight"] = (n_ff, n_embd)
    for name, shape in shapes.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{read.path}: the tensor {name!r} is missing", hint="convert the model again")
        if tensor.shape != shape:
            raise ModelFileError(f"{read.path}: the tensor {name!r} has shape {tensor.shape} instead of {shape}")
    return n_vocab


def _check_rotation(read: _Metadata, arch: str, n_embd: int, n_head: int) -> None:
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


def _check_gemma(header: GgufHeader, read: _Metadata, n_embd: int) -> None:
    """Windows and Dense layers of EmbeddingGemma. Without the latter's sizes llama.cpp makes empty layers of them."""
    arch = "gemma-embedding"
    read.count(f"{arch}.attention.sliding_window", 1 << 30)
    if read.flag(f"{arch}.attention.causal", False):
        raise ModelFileError(f"{read.path}: {arch}.attention.causal is true, and the architecture looks both ways")
    pattern = header.metadata.get(f"{arch}.attention.sliding_window_pattern", 0)
    n_layer = read.count(f"{arch}.block_count", _MAX_LAYERS)
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


def _check_encoder(read: _Metadata, arch: str, head_size: int) -> None:
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


class _Metadata:
    """Typed reads; a wrong type is an error that names file, key and value."""

    def __init__(self, header: GgufHeader) -> None:
        self.path = header.path
        self.values: Mapping[str, Any] = header.metadata

    def text(self, key: str, default: str | None = None) -> str:
        return cast(str, self._get(key, str, default))

    def flag(self, key: str, default: bool) -> bool:
        return cast(bool, self._get(key, bool, default))

    def integer(self, key: str, default: int | None = None) -> int:
        return cast(int, self._get(key, int, default))

    def integers(self, key: str) -> list[int]:
        values = self.values.get(key, [])
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise ModelFileError(f"{self.path}: {key} is not a list of integers")
        return values

    def texts(self, key: str) -> list[str]:
        values = self.values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ModelFileError(f"{self.path}: {key} is not a list of strings")
        return values

    def has(self, key: str) -> bool:
        return key in self.values

    def reals(self, key: str) -> Float32Array:
        """An array of finite numbers, or an empty one."""
        values = self.values.get(key, [])
        if not isinstance(values, list) or any(type(value) is not float for value in values):
            raise ModelFileError(f"{self.path}: {key} is not a list of numbers")
        result = np.array(values, dtype=np.float32)
        if not np.isfinite(result).all():
            raise ModelFileError(f"{self.path}: {key} has a value that is not finite")
        return result

    def count(self, key: str, limit: int, default: int | None = None) -> int:
        value = self.integer(key, default)
        if not 1 <= value <= limit:
            raise ModelFileError(f"{self.path}: {key} is {value}, expected 1 to {limit}")
        return value

    @cached_property
    def tokens(self) -> list[str]:
        tokens = self.values.get("tokenizer.ggml.tokens", [])
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ModelFileError(f"{self.path}: tokenizer.ggml.tokens is not a list of strings")
        return tokens

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise ModelFileError(
                f"{self.path}: the metadata key {key!r} is missing",
                hint="the file is not a whole model: convert it again",
            )
        if type(value) is not kind:
            raise ModelFileError(f"{self.path}: {key} is {value!r}, expected {kind.__name__}")
        return value
