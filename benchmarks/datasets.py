"""Readers of the evaluation sets, which are not part of this repository.

``--data`` names a folder with ``stsb/en-test.tsv`` (score, sentence1, sentence2, with a header line), ``scifact/``
(BEIR: corpus.jsonl, queries.jsonl, qrels.tsv), ``mbpp/`` (the same), ``tatoeba/`` (two sentences a line, with a header
line), ``tokstress/`` (blns.json and .jsonl files with a ``text`` field) and ``longdocs/`` (docs.jsonl: ``_id`` and
``text``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from tokenizers import Tokenizer


def stsb(data: Path, name: str = "en-test.tsv") -> tuple[list[str], list[str], list[float]]:
    """STS-B, English test by default: first sentences, second sentences, scores from 0 to 5."""
    lines = (data / "stsb" / name).read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    rows = [line.split("\t") for line in lines]
    return [row[1] for row in rows], [row[2] for row in rows], [float(row[0]) for row in rows]


def beir(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """A BEIR set: documents (title and text joined by a space), queries, and query -> document -> relevance."""
    documents = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in _jsonl(folder / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in _jsonl(folder / "queries.jsonl")}
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        qrels[query][document] = int(score)
    return documents, {query: queries[query] for query in qrels}, dict(qrels)


def translations(data: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Tatoeba: by language, sentences and their English translations."""
    found = {}
    for file in sorted((data / "tatoeba").glob("*-eng.tsv")):
        rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()[1:]]
        found[file.name.partition("-")[0]] = [row[0] for row in rows], [row[1] for row in rows]
    return found


def tatoeba(data: Path) -> list[str]:
    """Sentences in five languages and their English translations."""
    return [side for pairs in translations(data).values() for pair in zip(*pairs, strict=True) for side in pair]


def mbpp(data: Path) -> list[str]:
    """Programming tasks and their solutions."""
    documents, queries, _ = beir(data / "mbpp")
    return [*documents.values(), *queries.values()]


def tokenizer_stress(data: Path) -> list[str]:
    """Naughty strings, many languages, old poems."""
    folder = data / "tokstress"
    texts = list(json.loads((folder / "blns.json").read_text(encoding="utf-8")))
    for name in sorted(folder.glob("*.jsonl")):
        texts += [row["text"] for row in _jsonl(name)]
    return texts


def long_documents(data: Path) -> dict[str, str]:
    """Speeches, plays and chapters of thousands of tokens, by their names."""
    return {row["_id"]: row["text"] for row in _jsonl(data / "longdocs" / "docs.jsonl")}


def beginning(tokenizer: Tokenizer, text: str, n_tokens: int) -> str:
    """The beginning of a text, of at most that many tokens, special ones not counted."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return text if len(encoding.ids) <= n_tokens else text[: encoding.offsets[n_tokens - 1][1]]


def stretches(tokenizer: Tokenizer, text: str, n_tokens: int) -> list[str]:
    """A long text cut into pieces of that many tokens (one more or less where a cut goes through a word)."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    starts = range(0, len(offsets) - n_tokens + 1, n_tokens)
    return [text[offsets[start][0] : offsets[start + n_tokens - 1][1]] for start in starts]


def _jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
