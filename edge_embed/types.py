"""The values that pass between modules: frozen, with no behaviour beyond what follows from their fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge_embed.cancellation import Cancellation
from edge_embed.model_shape import ModelShape

Pooling = Literal["none", "mean", "cls", "last", "rank"]
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Truncate = Literal["right", "left", "error", "chunk"]
Output = Literal["vectors", "tokens"]
KvType = Literal["f16", "q8_0"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
# What may happen to a pair, or to a text that is encoded once; ``chunk`` makes several encodings of a text.
TRUNCATIONS: tuple[Truncate, ...] = ("right", "left", "error")
TEXT_TRUNCATIONS: tuple[Truncate, ...] = (*TRUNCATIONS, "chunk")
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0")
OUTPUTS: tuple[Output, ...] = ("vectors", "tokens")


def is_one_of(value: object, allowed: tuple[str, ...]) -> bool:
    """Whether a caller's value is one of the names; never an exception, whatever the value is."""
    return isinstance(value, str) and value in allowed


Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as the model will see it.

    Attributes:
        token_ids: int32 ``[n]``, special tokens included, never empty.
        n_original: tokens before truncation (equal to ``len(token_ids)`` where nothing was cut).
        n_first: tokens of the first text of a pair, special ones included; 0 where there is one text.
    """

    token_ids: Int32Array
    n_original: int
    n_first: int = 0

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def truncated(self) -> bool:
        return self.n_original > len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Tokens that neighbouring sequences of a batch have in common, computed once for all of them.

    They stand behind the tokens of the stretches that enclose this one, and before what is each sequence's own.

    Attributes:
        token_ids: int32 ``[n]``, never empty.
        first: the first sequence of the stretch.
        end: one behind its last sequence.
    """

    token_ids: Int32Array
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Some encodings packed without padding, for one call of the engine.

    Attributes:
        token_ids: int32 ``[n]``, what is each sequence's own, one after another.
        lengths: int32 ``[n_seqs]``, own tokens of each sequence, in the same order, none of them 0.
        indices: for each sequence, its position in the list that was packed.
        second: bool ``[n]``, which tokens belong to the second text of a pair; None where there is no pair.
        shared: what sequences begin with in common; a stretch comes behind those that enclose it, and stretches
            either enclose each other or do not touch.
    """

    token_ids: Int32Array
    lengths: Int32Array
    indices: tuple[int, ...]
    second: BoolArray | None = None
    shared: tuple[Shared, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens that the batch holds, shared ones counted once."""
        return len(self.token_ids) + sum(len(stretch.token_ids) for stretch in self.shared)

    @property
    def n_seqs(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> Int32Array:
        """int32 ``[n_seqs]``: tokens of each sequence that are shared, which stand before its own."""
        starts = np.zeros(self.n_seqs, dtype=np.int32)
        for stretch in self.shared:
            starts[stretch.first : stretch.end] += len(stretch.token_ids)
        return starts


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost.

    Attributes:
        n_texts: texts asked for.
        n_computed: texts that the model ran on (identical texts run once).
        n_tokens: tokens of all texts after truncation, as an API would count them.
        n_tokens_computed: tokens of the texts that the model ran on; fewer were computed where texts begin alike.
        n_truncated: texts that lost tokens.
        n_cached: texts whose vectors a cache had; they are not among ``n_computed``.
    """

    n_texts: int
    n_computed: int
    n_tokens: int
    n_tokens_computed: int
    n_truncated: int
    n_cached: int = 0


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """Vectors and what is known about them.

    Attributes:
        vectors: ``[n, d]`` in input order; dtype and width follow the precision
            (``binary`` and ``ubinary`` pack eight dimensions into a byte).
        n_tokens: int32 ``[n]``, tokens used of each text, special tokens included.
        n_original: int32 ``[n]``, tokens of each text before truncation.
        usage: totals.
        n_windows: int32 ``[n]``, windows that each text was cut into; 1 but with ``truncate="chunk"``.
        token_vectors: of each text float32 ``[n_tokens, n]``, the model's last hidden states, neither normalized nor
            cut; None unless they were asked for.
        token_ids: the tokens that these belong to, int32 ``[n_tokens]`` each; None likewise.
    """

    vectors: AnyArray
    n_tokens: Int32Array
    n_original: Int32Array
    usage: Usage
    n_windows: Int32Array
    token_vectors: tuple[Float32Array, ...] | None = None
    token_ids: tuple[Int32Array, ...] | None = None

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """bool ``[n]``: which texts lost tokens."""
        result: npt.NDArray[np.bool_] = self.n_original > self.n_tokens
        return result


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Scores of pairs and what is known about them.

    Attributes:
        scores: float32 ``[n]`` in input order: the activation of the logits, a probability for most models.
        logits: float32 ``[n]``: what the scores were made of; of causal rerankers the log-odds of *yes*.
        n_tokens: int32 ``[n]``, tokens used of each pair, special tokens and template included.
        n_original: int32 ``[n]``, tokens of each pair before truncation.
        usage: totals; its texts are pairs.
    """

    scores: Float32Array
    logits: Float32Array
    n_tokens: Int32Array
    n_original: Int32Array
    usage: Usage

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """bool ``[n]``: which pairs lost tokens."""
        result: npt.NDArray[np.bool_] = self.n_original > self.n_tokens
        return result


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document in its place.

    Attributes:
        index: where it stood in the call.
        score: how it scored.
        document: its text, all of it.
        truncated: whether the model saw only a part, because the pair was too long.
    """

    index: int
    score: float
    document: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter file beside a model.

    Attributes:
        path: a GGUF that ``edge-embed convert ADAPTER --base DIR`` wrote.
        scale: how much of it is added; 1 is the adapter as trained.
    """

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one call of the engine may carry; checked in Python before every C call.

    Attributes:
        n_batch: preferred tokens per call; a longer single text grows the context, up to ``n_ctx_max``.
        n_seq_max: most sequences per call.
        n_ctx_max: most tokens of one text.
        n_vocab: token ids are 0..n_vocab-1.
        shares_prefixes: whether batches may have ``shared`` tokens.
        lanes: batches that are computed at the same time, each for a call from a thread of its own; others wait.
    """

    n_batch: int
    n_seq_max: int
    n_ctx_max: int
    n_vocab: int
    shares_prefixes: bool = False
    lanes: int = 1


class Engine(Protocol):
    """What the spine needs of an engine; ``edge_embed.testing.FakeEngine`` is the smallest one."""

    @property
    def limits(self) -> EngineLimits: ...

    @property
    def n_embd(self) -> int: ...

    @property
    def closed(self) -> bool: ...

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """Raw pooled vectors, float32 ``[n_seqs, n_embd]``, not normalized, in the batch's order.

        A row that stays non-finite after the batch's members were run alone is returned as NaN. ``stop`` ends the
        computation early, with CallCancelledError or DeadlineExceededError.
        Raises ``EngineError`` leaves; ``InvalidOptionError`` where the batch breaks a limit.
        """
        ...

    def decode_tokens(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """The last hidden state of every token, float32 ``[n_tokens, n_embd]``, in the batch's order."""
        ...

    def forget(self) -> None:
        """Be as it was when it was made: what comes next does not depend on what came before, to the last bit."""
        ...

    def close(self) -> None: ...


Activation = Literal["sigmoid", "identity"]
DenseActivation = Literal["identity", "tanh"]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A linear layer behind the pooling, as sentence-transformers' module of that name.

    Attributes:
        weight: float32 ``[n_out, n_in]``.
        bias: float32 ``[n_out]``, or None.
        activation: what each value goes through at the end.
        unit_input: whether a vector is made unit length before it comes in.
    """

    weight: Float32Array
    bias: Float32Array | None
    activation: DenseActivation
    unit_input: bool = False

    @property
    def n_in(self) -> int:
        return int(self.weight.shape[1])

    @property
    def n_out(self) -> int:
        return int(self.weight.shape[0])


@dataclass(frozen=True, slots=True)
class TokenTypes:
    """Where in a GGUF the embeddings of tokens and of their two types lie.

    Attributes:
        token_type_name: the type that the token embeddings are stored as.
        token_offset: where in the file they begin.
        types_offset: where the float32 embeddings of the types begin.
    """

    token_type_name: str
    token_offset: int
    types_offset: int


@dataclass(frozen=True, slots=True)
class RerankInfo:
    """What a GGUF says of its head that scores pairs.

    Attributes:
        labels: names of the head's outputs: ``yes`` and ``no`` in either order, or one.
        activation: what makes a score of the logit (of the log-odds of yes, where there are two).
        template: text with ``{query}``, ``{document}`` and perhaps ``{instruction}``; None where the tokenizer joins
            the two texts with its separators.
        instruction: fills ``{instruction}`` where a call gives none, or None.
        head_type: the type that the head's rows are stored as.
        head_offset: where in the file they begin.
        token_types: the embeddings that tell a pair's texts apart (BERT); None where the model has none.
    """

    labels: tuple[str, ...]
    activation: Activation
    template: str | None
    instruction: str | None
    head_type: str
    head_offset: int
    token_types: TokenTypes | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a GGUF says of itself, with what had to be resolved from elsewhere.

    Attributes:
        path: the file.
        architecture: ``general.architecture``.
        name: ``general.name`` or the file's stem.
        n_embd: size of the vectors.
        n_ctx_train: positions that the model was trained with.
        n_layer: number of layers.
        n_vocab: size of the vocabulary.
        pooling: how hidden states become one vector.
        pooling_source: where the pooling came from: ``file``, ``architecture``, ``catalogue`` or ``caller``.
        causal: whether attention looks back only.
        max_tokens: most tokens of one text, special tokens included.
        normalize: whether vectors are made unit length by default.
        prompts: prompt name -> text put before the input.
        default_prompt_name: the prompt used when none is asked for, or None.
        instruction_template: text with ``{instruction}``, put before a query, or None.
        mrl_dimensions: sizes that the model was trained to be cut to; empty where unknown.
        eds_token_id: the id that ends every text of a last-pooling model, or None.
        unicode_normalization: ``none``, ``NFC`` or ``NFKC``, applied before tokenizing.
        types: tensor type -> number of tensors.
        size_bytes: size of the file.
        license: ``general.license`` or an empty string.
        repairs: one sentence for each flag that was missing or wrong and what was used instead.
        rerank: how pairs are scored; None for an embedding model.
        dense: linear layers behind the pooling that the engine does not compute.
        shape: what its memory is computed from; None where that is not known.
    """

    path: str
    architecture: str
    name: str
    n_embd: int
    n_ctx_train: int
    n_layer: int
    n_vocab: int
    pooling: Pooling
    pooling_source: str
    causal: bool
    max_tokens: int
    normalize: bool
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    instruction_template: str | None = None
    mrl_dimensions: tuple[int, ...] = ()
    eds_token_id: int | None = None
    unicode_normalization: str = "none"
    types: dict[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    license: str = ""
    repairs: tuple[str, ...] = ()
    rerank: RerankInfo | None = None
    dense: tuple[Dense, ...] = ()
    shape: ModelShape | None = None

    @property
    def n_hidden(self) -> int:
        """Size of the engine's own vectors, before the layers of ``dense``."""
        return self.dense[0].n_in if self.dense else self.n_embd
