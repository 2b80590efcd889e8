"""The texts that ``parity06`` compares on, and the ids that the original's tokenizer makes of them. No model, no torch.

200 texts in the languages of the data sets, from 1 to 4,000 tokens, evenly spaced on a logarithmic scale: short texts
are what most calls hold, and a few long ones show what length does. Each is a stretch of natural text cut to its
length. Many are asked again with an instruction, and at the boundaries of truncation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.datasets import beir, long_documents, tatoeba, tokenizer_stress

INSTRUCTIONS = (
    "Given a web search query, retrieve relevant passages that answer the query",
    "Find the passage in another language that says the same",
)
# As Qwen's model cards have it, written here once more so that the originals owe nothing to what is compared.
EMBED_TEMPLATE = "Instruct: {instruction}\nQuery:"
RERANK_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANK_MIDDLE = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
RERANK_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
N_TEXTS, LONGEST, N_PAIRS = 200, 4000, 60


@dataclass(frozen=True)
class Case:
    """One call for one text. ``group`` names the row of the table that it counts in."""

    text: str
    group: str
    instruction: str | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class PairCase:
    """One call for one pair."""

    query: str
    document: str
    instruction: str
    max_tokens: int | None = None


def texts_of(data: Path, tokenizer: Tokenizer, n: int = N_TEXTS) -> list[str]:
    """Stretches of natural text, 1 to ``LONGEST`` tokens (the closing token not counted), sources in turn."""
    sources = _sources(data)
    chance = random.Random(0)
    targets = np.geomspace(1, LONGEST, n).round().astype(int).tolist()
    return [_stretch(sources[i % len(sources)], target, tokenizer, chance) for i, target in enumerate(targets)]


def cases_of(texts: Sequence[str], tokenizer: Tokenizer) -> list[Case]:
    """Every text bare; the short ones and some of the long ones instructed; some cut around their own length."""
    tokenizer.no_truncation()
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    cases = [Case(text, "bare") for text in texts]
    for i, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        if length <= 256 or i % 8 == 0:
            cases.append(Case(text, "instructed", INSTRUCTIONS[i % 2]))
    for i, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        if length < 4 or not ((i % 5 == 0 and length <= 1000) or i in (len(texts) - 1, len(texts) - 20)):
            continue
        instruction = INSTRUCTIONS[0] if i % 2 and length <= 1000 else None
        whole = len(tokenizer.encode(prompted(text, instruction)).ids)
        own = len(tokenizer.encode(text).ids)
        # Half of the text, and one token less, as many and one token more than there are.
        for limit in (whole - own // 2, whole - 1, whole, whole + 1):
            cases.append(Case(text, "at a boundary", instruction, limit))
    return cases


def pairs_of(data: Path, texts: Sequence[str], n: int = N_PAIRS) -> list[PairCase]:
    """Pairs of SciFact, of sentences and their translations, and of texts that have nothing to do with each other."""
    documents, queries, relevant = beir(data / "scifact")
    sentences = tatoeba(data)
    chance = random.Random(1)
    pairs: list[PairCase] = []
    asked = sorted(queries)
    middle = [text for text in texts if 100 < len(text) < 2000]
    for i in range(n):
        instruction = INSTRUCTIONS[i % 2]
        if i % 3 == 0:
            query = chance.choice(asked)
            document = chance.choice(sorted(relevant[query]) if i % 2 else sorted(documents))
            pairs.append(PairCase(queries[query], documents[document], instruction))
        elif i % 3 == 1:
            row = chance.randrange(len(sentences) // 2)
            pairs.append(PairCase(sentences[2 * row], sentences[2 * row + 1], instruction))
        else:
            limit = 256 if i % 2 else None
            pairs.append(PairCase(chance.choice(sentences), chance.choice(middle), instruction, limit))
    return pairs


def prompted(text: str, instruction: str | None) -> str:
    """The text with its instruction before it."""
    return text if instruction is None else EMBED_TEMPLATE.format(instruction=instruction) + text


def original_ids(case: Case, tokenizer: Tokenizer) -> list[int]:
    """The ids that the original model is given: its tokenizer cuts at the end and keeps the closing token."""
    if case.max_tokens is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(case.max_tokens)
    ids: list[int] = tokenizer.encode(prompted(case.text, case.instruction)).ids
    tokenizer.no_truncation()
    return ids


def original_pair_ids(case: PairCase, tokenizer: Tokenizer) -> list[int]:
    """As the model card makes them: what stands around the texts is tokenized apart and never cut."""
    tokenizer.no_truncation()
    prefix, suffix = (tokenizer.encode(part, add_special_tokens=False).ids for part in (RERANK_PREFIX, RERANK_SUFFIX))
    middle = RERANK_MIDDLE.format(instruction=case.instruction, query=case.query, document=case.document)
    ids: list[int] = tokenizer.encode(middle, add_special_tokens=False).ids
    if case.max_tokens is not None:
        ids = ids[: case.max_tokens - len(prefix) - len(suffix)]
    return [*prefix, *ids, *suffix]


def _sources(data: Path) -> list[list[str]]:
    """Texts by where they come from, in a fixed order."""
    sentences = tatoeba(data)
    by_language = [sentences[first : first + 2000 : 2] for first in range(0, len(sentences), 2000)]
    documents, _, _ = beir(data / "scifact")
    programs, _, _ = beir(data / "mbpp")
    stress = tokenizer_stress(data)
    longer = [text for text in stress if len(text) > 400]  # the declaration of human rights in 380 languages
    short = [text for text in stress if 0 < len(text.strip()) <= 400]
    books = [[text] for text in long_documents(data).values()]
    return [
        *by_language,
        sentences[1::2],
        longer,
        short,
        list(documents.values()),
        list(programs.values()),
        *books[::2],
    ]


def _stretch(source: list[str], n_tokens: int, tokenizer: Tokenizer, chance: random.Random) -> str:
    """``n_tokens`` tokens of a source, from a place in it, going on with its next texts where one is too short."""
    place = chance.randrange(len(source))
    first = source[place]
    if len(first) > 20_000:  # a book: begin at some paragraph
        start = first.find("\n", chance.randrange(len(first) - 30_000 if len(first) > 60_000 else 1))
        first = first[max(start, 0) :].lstrip()[: 12 * n_tokens + 40]
    text = first
    tokenizer.no_truncation()
    while True:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) >= n_tokens:
            return text[: encoding.offsets[n_tokens - 1][1]]
        place = (place + 1) % len(source)
        text += "\n" + source[place][: 12 * n_tokens + 40]
