"""Answer a question from a database: by meaning, by words, or by both, and let a reranker look again at the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from edge_embed.embedder import Embedder
from edge_embed.errors import DatabaseMismatchError, InvalidOptionError
from edge_embed.reranker import Reranker
from edge_embed.search.database import Database, quoted
from edge_embed.search.ranking import bounded, fused
from edge_embed.search.types import KINDS, MODES, Hit, Kind, Mode
from edge_embed.tokenizer import check_text
from edge_embed.types import Float32Array, is_one_of

CANDIDATES: Final = 100  # of each order, and for a reranker
PER_FILE: Final = 3
MAX_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked.

    Attributes:
        text: the question.
        limit: hits wanted, 1 to 1,000.
        mode: ``dense`` compares vectors, ``text`` words (BM25), ``hybrid`` both, by reciprocal rank fusion.
        short: whether short vectors find the candidates that full ones then order, where the database has short ones.
        per_file: most hits from one file; None for any number.
        below: only files below this absolute path.
        kinds: only files of these kinds; any where empty.
        candidates: how many of each order are looked at; 100, or ten times the limit, by default.
    """

    text: str
    limit: int = 10
    mode: Mode = "hybrid"
    short: bool = True
    per_file: int | None = PER_FILE
    below: str | None = None
    kinds: tuple[Kind, ...] = ()
    candidates: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidOptionError or InvalidTextError where a value is outside what is possible."""
        check_text(self.text, 0)
        if not self.text.strip():
            raise InvalidOptionError("the question is empty", hint="say what is looked for")
        if type(self.limit) is not int or not 1 <= self.limit <= MAX_LIMIT:
            raise InvalidOptionError(f"limit is {self.limit!r}", hint=f"give 1 to {MAX_LIMIT}")
        if not is_one_of(self.mode, MODES):
            raise InvalidOptionError(f"mode is {self.mode!r}", hint=f"one of {', '.join(MODES)}")
        if self.per_file is not None and (type(self.per_file) is not int or self.per_file < 1):
            raise InvalidOptionError(f"per_file is {self.per_file!r}", hint="give at least 1, or None")
        if wrong := [kind for kind in self.kinds if not is_one_of(kind, KINDS)]:
            raise InvalidOptionError(f"kind is {wrong[0]!r}", hint=f"one of {', '.join(KINDS)}")
        if self.candidates is not None and (type(self.candidates) is not int or self.candidates < self.limit):
            raise InvalidOptionError(f"candidates is {self.candidates!r}", hint="give at least as many as the limit")

    @property
    def n_candidates(self) -> int:
        """How many of each order are looked at."""
        return self.candidates or max(CANDIDATES, 10 * self.limit)

    @property
    def needs_vector(self) -> bool:
        """Whether the question has to be embedded."""
        return self.mode != "text"

    @property
    def where(self) -> str | None:
        """What chunks have to meet, as the database takes it."""
        conditions = []
        if self.below is not None:
            folder = self.below.rstrip("/\\")
            inside = " OR ".join(f"starts_with(path, {quoted(folder + separator)})" for separator in ("/", "\\"))
            conditions.append(f"(path = {quoted(folder)} OR {inside})")
        if self.kinds:
            conditions.append(f"kind IN ({', '.join(map(quoted, self.kinds))})")
        return " AND ".join(conditions) or None


def embed_query(embedder: Embedder, database: Database, text: str) -> Float32Array:
    """The vector of a question, float32 ``[dimensions]``, unit length, as the database's record has it.

    Raises:
        The errors of ``Embedder.embed``.
    """
    record = database.record
    result = embedder.embed([text], prompt=record.query_prompt, truncate_dim=record.dimensions, normalize=True)
    vector: Float32Array = np.asarray(result.vectors[0], dtype=np.float32)
    return vector


def search(
    database: Database, query: Query, vector: Float32Array | None, reranker: Reranker | None = None
) -> list[Hit]:
    """The best hits, the best first.

    Args:
        database: where.
        query: what is asked.
        vector: float32 ``[dimensions]`` of ``embed_query``; None only where the query needs none.
        reranker: orders the candidates again, by their texts.

    Raises:
        InvalidOptionError: a vector is missing.
        DatabaseMismatchError: a vector of another size.
        DatabaseFileError: the database cannot be read.
    """
    ranked = candidates(database, query, vector)
    if reranker is not None and ranked:
        result = reranker.score([(query.text, document) for document in documents(ranked)])
        ranked = reordered(ranked, result.scores.tolist())
    return ranked[: query.limit]


def candidates(database: Database, query: Query, vector: Float32Array | None) -> list[Hit]:
    """All that was looked at, at most so many from one file as the query wants: what a reranker is given.

    Arguments and errors as for ``search``.
    """
    orders: list[list[Any]] = []
    hits: dict[Any, Hit] = {}
    if query.needs_vector:
        if vector is None:
            raise InvalidOptionError(f"mode {query.mode!r} needs the question's vector")
        if vector.shape != (database.record.dimensions,):
            raise DatabaseMismatchError(
                f"the question's vector has the shape {list(vector.shape)}, and {database.path} holds vectors of "
                f"{database.record.dimensions} values",
                hint="embed it with the model and the size that the database was made with",
            )
        orders.append(_dense(database, query, vector, hits))
    if query.mode != "dense":
        orders.append(_matching(database, query, vector, hits))
    if len(orders) == 1:
        ranked = [hits[key] for key in orders[0]]
    else:
        ranked = [replace(hits[key], score=score) for key, score in fused(*orders)]
    return bounded(ranked, lambda hit: hit.path, query.per_file)[: query.n_candidates]


def documents(hits: Sequence[Hit]) -> list[str]:
    """What a reranker reads of hits: their texts under their headings."""
    return [f"{hit.heading}\n{hit.text}" if hit.heading else hit.text for hit in hits]


def reordered(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Hits by a reranker's scores, the best first; of equal ones the earlier."""
    scored = [replace(hit, score=score) for hit, score in zip(hits, scores, strict=True)]
    return sorted(scored, key=lambda hit: -hit.score)


def _dense(database: Database, query: Query, vector: Float32Array, hits: dict[Any, Hit]) -> list[Any]:
    """The nearest chunks' keys, by the full vectors' cosines."""
    n = query.n_candidates
    short = database.record.short
    if query.short and short:
        head = vector[:short]
        rows, vectors = database.nearest(
            head / max(float(np.linalg.norm(head)), 1e-12), n, column="short", where=query.where
        )
    else:
        rows, vectors = database.nearest(vector, n, where=query.where)
    cosines = vectors @ vector
    order = np.argsort(-cosines, kind="stable")
    for place in order:
        cosine = float(cosines[place])
        hits[_key(rows[place])] = _hit(rows[place], cosine, cosine)
    return [_key(rows[place]) for place in order]


def _matching(database: Database, query: Query, vector: Float32Array | None, hits: dict[Any, Hit]) -> list[Any]:
    """The keys of the chunks with the best words."""
    rows, vectors = database.matching(query.text, query.n_candidates, where=query.where)
    cosines = None if vector is None else vectors @ vector
    for place, row in enumerate(rows):
        if _key(row) not in hits:
            hits[_key(row)] = _hit(row, float(row["_score"]), None if cosines is None else float(cosines[place]))
    return [_key(row) for row in rows]


def _key(row: dict[str, Any]) -> tuple[str, int]:
    """What a chunk goes by in both orders; row ids may change between two searches, when the table is compacted."""
    return row["path"], row["ordinal"]


def _hit(row: dict[str, Any], score: float, cosine: float | None) -> Hit:
    return Hit(
        path=row["path"],
        kind=row["kind"],
        heading=row["heading"],
        text=row["text"][row["body"] :],
        score=score,
        cosine=cosine,
        line=row["line"],
        page=row["page"],
        ordinal=row["ordinal"],
    )
