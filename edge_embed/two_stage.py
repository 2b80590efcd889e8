"""The first of two stages: from any number of texts the few that lie nearest to a query, for a reranker to order.

Texts are read and embedded a step at a time and only the best so far are kept, so memory does not grow with the
corpus. Where it has been embedded before, its vectors are read from a file in blocks, without loading all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_embed import postprocess
from edge_embed.embedder import Embedder
from edge_embed.errors import InputFileError, InvalidOptionError, NonFiniteError, TextTooLongError
from edge_embed.progress import Progress
from edge_embed.tokenizer import check_text
from edge_embed.types import AnyArray, EmbedResult, Float32Array, Truncate

_STEP_TEXTS, _STEP_CHARACTERS = 128, 1 << 16  # of the corpus, embedded at once
_BLOCK_ROWS = 4096  # of a file of vectors, compared at once
_HINT = "write it with `edge-embed embed --document -f TEXTS -o VECTORS.npy`, by the same model"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that lies near the query.

    Attributes:
        index: where it stands in the corpus.
        cosine: of its vector with the query's.
        document: the text.
    """

    index: int
    cosine: float
    document: str


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        candidates: the nearest first, of equally near ones the earlier.
        n_texts: texts in the corpus.
        n_truncated: how many of them were embedded without their end or beginning.
    """

    candidates: tuple[Candidate, ...]
    n_texts: int
    n_truncated: int


def search(
    embedder: Embedder,
    query: str,
    texts: Iterable[str],
    n: int,
    *,
    vectors: AnyArray | None = None,
    instruction: str | None = None,
    truncate: Truncate = "right",
    progress: Progress | None = None,
) -> Search:
    """The ``n`` texts whose vectors have the largest cosine with the query's.

    Args:
        embedder: embeds the query as one, and the texts as documents.
        query: what is looked for.
        texts: the corpus; read once.
        n: how many are wanted, at least 1.
        vectors: ``[n_texts, d]`` from ``open_vectors``, where the corpus was embedded before.
        instruction: what is looked for, for a model that takes instructions; the query's own prompt by default.
        truncate: as for ``Embedder.embed``.
        progress: is told of texts that are done.

    Raises:
        InvalidTextError, TextTooLongError, NonFiniteError: a text, by its place in the corpus.
        InvalidOptionError: ``n``, or vectors that are not finite, of another width than the model's, or not as many as
            there are texts.
        EngineError: a leaf of it.
    """
    if type(n) is not int or n < 1:
        raise InvalidOptionError(f"the number of candidates is {n!r}", hint="give an integer of at least 1")
    width = None if vectors is None else _width(vectors, embedder)
    asked = embedder.embed(
        [query],
        instruction=instruction,
        role=None if instruction is not None else "query",
        truncate_dim=width,
        truncate=truncate,
    ).vectors
    if vectors is not None:
        return _picked(texts, _nearest_rows(vectors, asked, n), len(vectors))
    best: list[Candidate] = []
    done = n_truncated = 0
    for step in _steps(texts):
        result = _embedded(embedder, step, truncate, done)
        cosines = postprocess.similarity(asked, result.vectors)[0]
        new = [Candidate(done + int(i), float(cosines[i]), step[i]) for i in _order(cosines)[:n]]
        best = sorted([*best, *new], key=lambda found: (-found.cosine, found.index))[:n]
        done += len(step)
        n_truncated += result.usage.n_truncated
        if progress is not None:
            progress.advance(len(step))
    return Search(tuple(best), done, n_truncated)


def open_vectors(path: Path) -> AnyArray:
    """The vectors of a corpus, mapped: float16 or float32 ``[n, d]``.

    Raises:
        InputFileError: it cannot be read, or is not a .npy file of such a matrix.
    """
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InputFileError(f"{path} is no .npy file of vectors: {error}", hint=_HINT) from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.name not in ("float16", "float32"):
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "an archive"
        raise InputFileError(f"{path} is {what}, expected float16 or float32 [n, d]", hint=_HINT)
    vectors: AnyArray = found
    return vectors


def check_count(n_vectors: int, n_texts: int) -> None:
    """Refuse vectors that are not as many as the texts.

    Raises:
        InvalidOptionError: they are not.
    """
    if n_vectors != n_texts:
        raise InvalidOptionError(f"there are {n_texts} texts and {n_vectors} vectors of them", hint=_HINT)


def _width(vectors: AnyArray, embedder: Embedder) -> int:
    width = int(vectors.shape[1])
    if not 1 <= width <= embedder.info.n_embd:
        raise InvalidOptionError(
            f"the vectors have {width} values, and those of {embedder.info.name} {embedder.info.n_embd}", hint=_HINT
        )
    return width


def _steps(texts: Iterable[str]) -> Iterator[list[str]]:
    step: list[str] = []
    characters = 0
    for index, text in enumerate(texts):
        step.append(check_text(text, index))
        characters += len(text)
        if len(step) >= _STEP_TEXTS or characters >= _STEP_CHARACTERS:
            yield step
            step, characters = [], 0
    if step:
        yield step


def _embedded(embedder: Embedder, step: list[str], truncate: Truncate, done: int) -> EmbedResult:
    """The result of one step; errors name places in the whole corpus."""
    try:
        return embedder.embed(step, role="document", truncate=truncate)
    except TextTooLongError as error:
        raise TextTooLongError(error.index + done, error.n_tokens, error.limit) from None
    except NonFiniteError as error:
        raise NonFiniteError([index + done for index in error.indices]) from None


def _order(cosines: Float32Array) -> AnyArray:
    """Indices, the largest cosine first, of equal ones the first."""
    found: AnyArray = np.argsort(-cosines, kind="stable")
    return found


def _nearest_rows(vectors: AnyArray, asked: AnyArray, n: int) -> dict[int, float]:
    """The rows with the largest cosines, the largest first."""
    indices, cosines = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    for first in range(0, len(vectors), _BLOCK_ROWS):
        found = postprocess.similarity(asked, vectors[first : first + _BLOCK_ROWS])[0]
        if not np.isfinite(found).all():
            row = first + int(np.flatnonzero(~np.isfinite(found))[0])
            raise InvalidOptionError(f"vector {row} of the corpus is not finite", hint=_HINT)
        indices = np.concatenate([indices, np.arange(first, first + len(found))])
        cosines = np.concatenate([cosines, found])
        best = _order(cosines)[:n]
        indices, cosines = indices[best], cosines[best]
    return dict(zip(indices.tolist(), cosines.tolist(), strict=True))


def _picked(texts: Iterable[str], nearest: dict[int, float], n_vectors: int) -> Search:
    """The texts of those rows."""
    kept: dict[int, str] = {}
    n_texts = 0
    for index, text in enumerate(texts):
        n_texts += 1
        if index in nearest:
            kept[index] = text
    check_count(n_vectors, n_texts)
    return Search(tuple(Candidate(i, cosine, kept[i]) for i, cosine in nearest.items()), n_texts, 0)
