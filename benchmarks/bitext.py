"""How many translations `edge-embed bitext` finds: ``python -m benchmarks.bitext --data DIR [--model FILE] [--query]``.

Sentences of Tatoeba in each language, and their English translations in another order. Of the pairs at or above each
score: how many are right (precision), and how many of all translations they are (recall). Beside them how often the
nearest English sentence by cosine alone is the right one, which is what MTEB's Tatoeba calls accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.datasets import translations
from edge_embed import Embedder
from edge_embed.catalogue import resolve
from edge_embed.corpus.bitext import aligned
from edge_embed.corpus.neighbours import unit

SCORES = (1.0, 1.05, 1.1, 1.2)


def main() -> None:
    """Print a table, a row for each language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=str(resolve(None)))
    parser.add_argument("--query", action="store_true", help="with the model's prompt for queries, as E5 wants it")
    arguments = parser.parse_args()
    role = "query" if arguments.query else None
    print("| language | nearest by cosine | " + " | ".join(f"score {score}: right, found" for score in SCORES) + " |")
    with Embedder(arguments.model) as embedder:
        for language, (texts, english) in translations(arguments.data).items():
            order = np.random.default_rng(0).permutation(len(english))
            sources = unit(embedder.embed(texts, role=role).vectors)
            targets = unit(embedder.embed([english[i] for i in order], role=role).vectors)
            nearest = (sources @ targets.T).argmax(axis=1)
            cells = [f"{np.mean([english[order[j]] == english[i] for i, j in enumerate(nearest)]):.3f}"]
            pairs = aligned(sources, targets)
            for score in SCORES:
                chosen = [pair for pair in pairs if pair.score >= score]
                right = sum(english[order[pair.target]] == english[pair.source] for pair in chosen)
                cells.append(f"{right / max(len(chosen), 1):.3f}, {right / len(texts):.3f}")
            print(f"| {language} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
