"""What a GGUF says of its head that scores pairs; a head that is not whole is refused.

Where it is missing llama.cpp gives values of a hidden state, without a word.
"""

from __future__ import annotations

from typing import cast

from edge_embed import keys
from edge_embed.architectures import DECODERS, ENCODERS, POOLING_BY_ID
from edge_embed.errors import ModelFileError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader
from edge_embed.metadata import Metadata
from edge_embed.prompts import INSTRUCTION_SLOT, rerank_problem, split_instruction
from edge_embed.types import Activation, RerankInfo, TokenTypes


def read_rerank_info(
    header: GgufHeader, read: Metadata, arch: str, n_embd: int, *, called: str = "said to be a reranker"
) -> RerankInfo:
    """The head that scores pairs; ``called`` is what the file is, and who says so, for messages.

    Raises:
        ModelFileError: there is no whole head, or what the file says of it is malformed.
        UnsupportedModelError: a head that sorts into classes, or of a family whose rerankers are not run.
    """
    if arch in DECODERS and arch != "qwen3":
        raise UnsupportedModelError(f"{read.path}: rerankers of the architecture {arch!r} are not supported")
    if arch in DECODERS and not read.flag(f"{arch}.attention.causal", True):
        raise UnsupportedModelError(f"{read.path}: a reranker of the architecture {arch!r} that looks both ways")
    head = header.tensors.get("cls.output.weight")
    if head is None:
        raise ModelFileError(
            f"{read.path} is {called} and has no head (the tensor 'cls.output.weight')",
            hint="what it would score with is not a score: convert the model again, with `edge-embed convert`",
        )
    labels = read.texts(f"{arch}.classifier.output_labels")
    if arch == "qwen3" and not labels and head.shape == (n_embd, 2):
        raise UnsupportedModelError(
            f"{read.path} does not name the outputs of its head ({arch}.classifier.output_labels), so it is not known "
            "which of the two is yes",
            hint="convert the model again, with `edge-embed convert --reranker`",
        )
    labels = labels or ["score"]  # llama.cpp's default is one output
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


def _cross_encoder(header: GgufHeader, read: Metadata, arch: str, n_embd: int) -> TokenTypes | None:
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


def _rerank_template(read: Metadata) -> tuple[str, str | None]:
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
