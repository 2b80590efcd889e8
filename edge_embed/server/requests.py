"""What every dialect is translated to, and what it gets back. No HTTP here, and nothing of any dialect."""

from __future__ import annotations

from dataclasses import dataclass

from edge_embed.prompts import Role
from edge_embed.registry import Served
from edge_embed.reranker import Pair
from edge_embed.tokenizer import Text, Token
from edge_embed.tokens import Vocabulary
from edge_embed.types import EmbedResult, Precision, RerankResult, Truncate


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Vectors are asked for.

    Attributes:
        texts: texts, or the token ids of texts.
        model: its name, perhaps with ``:query`` or ``:document`` behind it; None for the first one.
        role: which of the model's prompts is meant, where none of the next three says.
        prompt: text put before each.
        prompt_name: one of the model's prompts.
        instruction: what is looked for, for a model that takes instructions.
        dimensions: values kept of each vector; None for the model's size.
        clamp_dimensions: whether more ``dimensions`` than the model has are the same as all of them.
        normalize: whether vectors are made unit length; None for what the model's publisher does.
        precision: what each value becomes.
        truncate: what happens to a text above the limit; None for what the server was told.
        max_tokens: a lower limit of a text than the model's.
        tokens: whether the vector of every token is asked for, instead of one for each text.
        keep_alive: seconds that the model stays in memory afterwards; None leaves that as it is.
    """

    texts: tuple[Text, ...]
    model: str | None = None
    role: Role | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    dimensions: int | None = None
    clamp_dimensions: bool = False
    normalize: bool | None = None
    precision: Precision = "float32"
    truncate: Truncate | None = None
    max_tokens: int | None = None
    tokens: bool = False
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """Scores of pairs are asked for.

    Attributes:
        pairs: (query, document); many share their query, as a rule.
        model: its name; None for the first reranker.
        instruction: what is looked for, for a model that takes instructions.
        truncate: what happens to a pair above the limit; None for what the server was told.
        max_document_tokens: most tokens of a document; it loses its end.
        keep_alive: seconds that the model stays in memory afterwards; None leaves that as it is.
    """

    pairs: tuple[Pair, ...]
    model: str | None = None
    instruction: str | None = None
    truncate: Truncate | None = None
    max_document_tokens: int | None = None
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """The tokens of texts are asked for, all of them.

    Attributes:
        texts: the texts.
        model: its name, perhaps with ``:query`` or ``:document`` behind it; None for the first embedding model, or the
            first reranker where there is none.
        role: which of the model's prompts is meant, where none of the next two says.
        prompt: text put before each; nothing is where nothing says so.
        prompt_name: one of the model's prompts.
        special: whether the special tokens around a text are among its tokens.
    """

    texts: tuple[str, ...]
    model: str | None = None
    role: Role | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    special: bool = True


@dataclass(slots=True)
class Timing:
    """Where the time of a request went, in seconds.

    Attributes:
        load: waiting for the model to be loaded.
        tokenization: texts to ids.
        queue: waiting for the model to be free.
        inference: from the first text computed to the last one.
    """

    load: float = 0.0
    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors, and what they cost.

    Attributes:
        served: the model that answered.
        result: vectors and token counts.
        timing: where the time went.
    """

    served: Served
    result: EmbedResult
    timing: Timing


@dataclass(frozen=True, slots=True)
class Reranked:
    """Scores in the order of the pairs, and what they cost; attributes as those of ``Embedded``."""

    served: Served
    result: RerankResult
    timing: Timing


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Tokens of texts, and what they cost.

    Attributes:
        served: the model that answered.
        tokens: of each text.
        vocabulary: what their ids stand for.
        timing: where the time went.
    """

    served: Served
    tokens: tuple[tuple[Token, ...], ...]
    vocabulary: Vocabulary
    timing: Timing
