"""Which texts a verification compares, and their ids by the original tokenizer beside the runtime's.

Knows the original's tokenizer, and what the reference network costs. Runs neither network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_embed.errors import InvalidOptionError

from ..architectures.family import PlannedTensor
from ..checkpoint import short
from ..plan import Plan
from .original_tokenizer import Ids, OriginalTokenizer


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is compared.

    Attributes:
        flops: what the reference may compute; None for all texts.
        tensor_parts: chunks of each tensor, a million values each; None for all.
        needs_memory: whether the model is run even where it does not fit into the memory that is free.
    """

    flops: float | None
    tensor_parts: int | None
    needs_memory: bool = True


# Of a conversion, which itself needs little memory: a machine may make a file that it cannot run.
QUICK = Scope(0.25e12, 2, needs_memory=False)  # seconds; half a minute for 4 billion weights
THOROUGH = Scope(2e12, None)
LEAST_TOKENS = 160  # below that a figure says little, however large the model is


@dataclass(frozen=True, slots=True)
class Text:
    """What is embedded or scored: a prompt and a text, or a query and a document; and its ids by the original."""

    first: str
    second: str
    ids: Ids

    @property
    def whole(self) -> str:
        """Both, for messages."""
        return self.first + (" | " if self.ids.is_pair else "") + self.second


def chosen_texts(
    tokenizer: OriginalTokenizer, plan: Plan, scope: Scope, texts: Sequence[str], notes: list[str]
) -> list[Text]:
    """Texts with one of the distinct prompts each in turn, or pairs; the shortest ones where the reference is slow."""
    if not texts:
        raise InvalidOptionError("there are no texts to verify with")
    if tokenizer.pairs:
        couples = [(query, texts[(i + 1) % len(texts)]) for i, query in enumerate(texts)]
        found = [Text(*couple, tokenizer.encode_pair(*couple)) for couple in couples]
        found = [text for text in found if len(text.ids.ids) <= plan.settings.max_tokens]
    else:
        prompts = list(dict.fromkeys(["", *plan.settings.prompts.values()]))
        framed = [(prompts[i % len(prompts)], text) for i, text in enumerate(texts)]
        found = [Text(prompt, text, tokenizer.encode(prompt + text)) for prompt, text in framed]
    if scope.flops is None:
        return found
    values = sum(tensor.ref.n_rows * tensor.ref.n_cols for tensor in multiplied(plan))
    left = max(LEAST_TOKENS, int(scope.flops / (2 * max(1, values))))
    kept: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: len(found[i].ids.ids)):
        left -= len(found[i].ids.ids)
        if left < 0 and len(kept) > 1:
            notes.append(f"{len(kept)} of {len(found)} texts, the shortest: the reference of a large model is slow")
            break
        kept.append(i)
    return [found[i] for i in sorted(kept)]


def multiplied(plan: Plan) -> list[PlannedTensor]:
    """The matrices that each token is multiplied with: not the tables that rows are looked up in."""
    tables = ("token_embd.weight", "position_embd.weight", "token_types.weight")
    return [tensor for tensor in plan.tensors if len(tensor.ref.shape) > 1 and tensor.name not in tables]


def ids_problems(tokenizer: OriginalTokenizer, texts: Sequence[Text], ids: Sequence[Sequence[int]]) -> list[str]:
    """A sentence where the runtime's ids are not the original's, about the shortest text that shows it."""
    different = [i for i, text in enumerate(texts) if text.ids.ids != list(ids[i])]
    if not different:
        return []
    i = min(different, key=lambda i: len(ids[i]))
    a, b = texts[i].ids.ids, list(ids[i])
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return [
        f"ids: {len(different)} of {len(texts)} texts get other token ids than the original tokenizer's. "
        f"{short(texts[i].whole)}: {len(a)} expected, {len(b)} found; number {at + 1} should be "
        f"{tokenizer.shown(a, at)} and is {tokenizer.shown(b, at)}"
    ]
