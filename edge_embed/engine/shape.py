"""How large a context is: what the engine makes, and what the planner computes the memory of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge_embed.architectures import DECODERS
from edge_embed.engine.prefixes import KEPT_TOKENS, RESIDENTS
from edge_embed.errors import InvalidOptionError
from edge_embed.gguf_header import GgufHeader
from edge_embed.types import KV_TYPES, KvType, ModelInfo, is_one_of

Q8_0_BLOCK: Final = 32
ROW: Final = 256  # llama.cpp rounds a context up to this many cells
# Tokens of a batch: measured for MiniLM, where 256 to 512 are alike and fewer or more are slower, and a context takes
# memory for each; a causal model of billions of weights wants its weights read less often.
BATCH_ENCODER: Final = 256
BATCH_CAUSAL: Final = 512
# Most texts of a batch. llama.cpp sizes its output buffer as this times the vocabulary, even if it is never used:
# 64 rows of a 151,936-token vocabulary are 39 MB. Its own ceiling is 256, sequences that hold beginnings included.
SEQ_MAX: Final = 64
SEQ_CEILING: Final = 256 - RESIDENTS
UBATCH_CAUSAL: Final = 512
# Fewest tokens that an encoder computes at a time (pooling.py), and most texts that so few tokens can be.
LEAST_TOKENS: Final = 8
# Families whose Dense layers llama.cpp computes behind its own pooling.
_DENSE_BEHIND_POOLING: Final = ("gemma-embedding",)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much an engine takes on at a time.

    Attributes:
        n_batch: tokens of a batch.
        n_ubatch: tokens that a decoder's graph is computed for at a time.
        n_seq_max: texts of a batch.
        share: whether there is room for beginnings of texts (``prefixes.py``).
    """

    n_batch: int
    n_ubatch: int
    n_seq_max: int
    share: bool


def sizes(info: ModelInfo, *, low_memory: bool = False) -> Sizes:
    """What an engine takes on where the caller does not say.

    With little memory: one row of cells, the smallest context that llama.cpp makes; outputs of 8 texts (5 MB for a
    vocabulary of 151,936 tokens, instead of 39); and half a row at a time, so that the weights, which may have to be
    read from the disk for each, are not read more often than twice a batch.
    """
    if low_memory:
        return Sizes(ROW, ROW // 2, 8, share=False)
    return Sizes(BATCH_CAUSAL if info.causal else BATCH_ENCODER, UBATCH_CAUSAL, SEQ_MAX, share=True)


@dataclass(frozen=True, slots=True)
class ContextShape:
    """What a context's memory depends on.

    Attributes:
        n_ctx: cells of its memory, and most tokens of a call.
        n_ubatch: tokens that the graph is computed for at a time.
        n_seq_max: sequences, those that hold beginnings included.
        n_outputs_max: tokens whose result is asked for; 0 leaves it to the library (all of a call).
        every_token: whether every token is an output.
        pooled: whether llama.cpp pools.
        kv_type: type of the keys and values in memory.
        n_kept: of the cells, those that hold beginnings and are no text's own.
    """

    n_ctx: int
    n_ubatch: int
    n_seq_max: int
    n_outputs_max: int
    every_token: bool
    pooled: bool
    kv_type: KvType = "f16"
    n_kept: int = 0


def shares_prefixes(info: ModelInfo, *, hidden: bool) -> bool:
    """Whether beginnings are computed once: where tokens look back alone, and the last one is the text's."""
    return hidden and info.causal and info.pooling in ("last", "rank")


def context_shape(
    info: ModelInfo,
    *,
    n_tokens: int,
    n_seq_max: int,
    n_ubatch: int = UBATCH_CAUSAL,
    hidden: bool,
    tokens: bool = False,
    kv_type: KvType = "f16",
    share: bool = True,
) -> ContextShape:
    """The context for calls of ``n_tokens`` tokens.

    Args:
        info: the model.
        n_tokens: most tokens of a call.
        n_seq_max: most texts of a call.
        n_ubatch: of a decoder; whole calls are computed at a time where tokens look ahead, or llama.cpp pools.
        hidden: whether the last hidden states are taken from the graph (see ``llama.py``).
        tokens: whether every token's vector is asked for.
        kv_type: type of the keys and values in memory.
        share: whether beginnings of texts stay in memory, where the model allows it.
    """
    shares = share and shares_prefixes(info, hidden=hidden) and not tokens
    n_kept = KEPT_TOKENS if shares else 0
    n_ctx = max(-(-n_tokens // ROW) * ROW, n_seq_max) + n_kept
    n_seq_max += RESIDENTS if shares else 0
    if not hidden:
        # llama.cpp plans memory for equally many tokens of each sequence, and where a ubatch is no multiple of these
        # its graph of mean pooling ends the process. Powers of two up to 256 divide ROW.
        n_seq_max = 1 << (max(n_seq_max, LEAST_TOKENS) - 1).bit_length()
    every_token = tokens or not hidden or info.pooling in ("mean", "cls")
    return ContextShape(
        n_ctx=n_ctx,
        n_ubatch=min(n_ctx, n_ubatch) if hidden and info.causal else n_ctx,
        n_seq_max=n_seq_max,
        n_outputs_max=0 if every_token else n_seq_max,  # llama.cpp wants as many as there are sequences
        every_token=every_token,
        pooled=not hidden and not tokens and not takes_rows(info),
        kv_type=kv_type,
        n_kept=n_kept,
    )


def has_memory(info: ModelInfo) -> bool:
    """Whether the model keeps keys and values of tokens that it has seen."""
    return info.architecture in DECODERS


def takes_rows(info: ModelInfo) -> bool:
    """Whether every token's last hidden state is taken from the library and pooled here, in ``pooling.py``."""
    return not has_memory(info) and info.rerank is None and info.architecture not in _DENSE_BEHIND_POOLING


def check_kv_type(header: GgufHeader, info: ModelInfo, kv_type: object) -> None:
    """That keys and values of the model can be kept in that type.

    Raises:
        InvalidOptionError: not a type of ours, a model that keeps none, or heads that its blocks do not fill.
    """
    if not is_one_of(kv_type, KV_TYPES):
        raise InvalidOptionError(f"kv_type is {kv_type!r}", hint=f"one of {', '.join(KV_TYPES)}")
    if not has_memory(info):
        raise InvalidOptionError("this model keeps no keys and values of what it has read", hint="leave kv_type out")
    arch = info.architecture
    per_head = info.n_hidden // int(header.metadata[f"{arch}.attention.head_count"])
    for name in ("key", "value"):
        size = int(header.metadata.get(f"{arch}.attention.{name}_length", per_head))
        if kv_type == "q8_0" and size % Q8_0_BLOCK:
            raise InvalidOptionError(
                f"q8_0 keeps {Q8_0_BLOCK} values together, and this model has heads of {size} values",
                hint="leave kv_type out",
            )
