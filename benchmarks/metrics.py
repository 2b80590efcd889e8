"""What vectors are worth: Spearman on STS-B, nDCG on retrieval sets, and the original's vectors to compare with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks.datasets import beir
from edge_embed import Embedder
from edge_embed.types import EmbedResult, Float32Array


def original_vectors(checkpoint: Path, texts: list[str], record: Path | None) -> Float32Array:
    """float32 ``[n, d]`` of a mean-pooled checkpoint by transformers; kept in ``record``, and taken from there."""
    if record is not None and record.exists():
        return np.asarray(np.load(record), dtype=np.float32)
    from tests.oracle import encoder

    vectors = encoder(checkpoint, texts, pooling="mean", max_tokens=256)
    if record is not None:
        np.save(record, vectors)
    return vectors


def sts_spearman(vectors: Float32Array, scores: list[float]) -> float:
    """Rank correlation of the cosines of row i and row i + n/2 with ``scores``, ties averaged."""
    half = len(vectors) // 2
    cosines = (vectors[:half] * vectors[half:]).sum(axis=1)
    return float(np.corrcoef(_ranks(cosines), _ranks(np.array(scores)))[0, 1])


def retrieval(embedder: Embedder, folder: Path, *, show_progress_bar: bool = False) -> tuple[float, int, EmbedResult]:
    """Mean nDCG@10 of ranking a BEIR set's documents by cosine, the number of queries, and the documents' result."""
    documents, queries, qrels = beir(folder)
    found = embedder.embed(list(documents.values()), role="document", show_progress_bar=show_progress_bar)
    asked = embedder.encode_query(list(queries.values()))
    ranked = np.argsort(-(asked @ found.vectors.T), axis=1, kind="stable")[:, :10]
    ids = list(documents)
    scores = [ndcg([ids[i] for i in row], qrels[query]) for query, row in zip(queries, ranked, strict=True)]
    return float(np.mean(scores)), len(queries), found


def ndcg(found: list[str], relevant: dict[str, int]) -> float:
    """Gain of the relevance, discounted by log2(rank + 1), over the best possible."""
    gain = sum(relevant.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(found))
    best = sum(score / math.log2(rank + 2) for rank, score in enumerate(sorted(relevant.values(), reverse=True)[:10]))
    return gain / best if best else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
