"""nDCG@10 of dense retrieval on a BEIR set: ``python -m benchmarks.retrieval --data DIR [--model FILE]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.metrics import retrieval
from edge_embed import Embedder
from edge_embed.catalogue import resolve


def main() -> None:
    """Embed, rank, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the set")
    parser.add_argument("--set", default="scifact", help="name of the set")
    parser.add_argument("--model", default=str(resolve(None)))
    options = parser.parse_args()
    with Embedder(options.model) as embedder:
        score, n_queries, documents = retrieval(embedder, options.data / options.set, show_progress_bar=True)
        limit = embedder.info.max_tokens
    print(f"{options.set}: {documents.usage.n_texts} documents, {n_queries} queries, nDCG@10 {score:.4f}")
    print(f"{documents.usage.n_truncated} documents were cut to {limit} tokens")


if __name__ == "__main__":
    main()
