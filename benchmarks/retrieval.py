"""nDCG@10 of dense retrieval on a BEIR set: ``python -m benchmarks.retrieval --data DIR [--model FILE]``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from benchmarks.datasets import beir
from edge_embed import Embedder
from edge_embed.catalogue import resolve


def main() -> None:
    """Embed, rank, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the set")
    parser.add_argument("--set", default="scifact", help="name of the set")
    parser.add_argument("--model", default=str(resolve(None)))
    options = parser.parse_args()
    documents, queries, qrels = beir(options.data / options.set)
    with Embedder(options.model) as embedder:
        result = embedder.embed(list(documents.values()), show_progress_bar=True)
        asked = embedder.encode_query(list(queries.values()))
    ranked = np.argsort(-(asked @ result.vectors.T), axis=1, kind="stable")[:, :10]
    ids = list(documents)
    scores = [_ndcg([ids[i] for i in row], qrels[query]) for query, row in zip(queries, ranked, strict=True)]
    print(f"{options.set}: {len(documents)} documents, {len(queries)} queries, nDCG@10 {np.mean(scores):.4f}")
    print(f"{result.usage.n_truncated} documents were cut to {embedder.info.max_tokens} tokens")


def _ndcg(found: list[str], relevant: dict[str, int]) -> float:
    """Gain of the relevance, discounted by log2(rank + 1), over the best possible."""
    gain = sum(relevant.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(found))
    best = sum(score / math.log2(rank + 2) for rank, score in enumerate(sorted(relevant.values(), reverse=True)[:10]))
    return gain / best if best else 0.0


if __name__ == "__main__":
    main()
