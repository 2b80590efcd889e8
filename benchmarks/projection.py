"""What a learned projection keeps, by how it is fit: ``python -m benchmarks.projection --data DIR [--record FILE]``.

* STS-B: fit on the distinct sentences of the development part; Spearman on the test part.
* SciFact: fit on half of the documents. On the other half, of each query's ten nearest documents the share that stays,
  of each document's ten nearest, and the mean change of the cosines of two documents. nDCG@10 is on all documents.
* Then how many texts it takes, and what a projection does that was fit on texts of another kind.

``--record`` keeps the vectors in a file, and takes them from there where the file exists: computing them takes minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.datasets import beir, stsb
from benchmarks.metrics import ndcg, sts_spearman
from edge_embed import Embedder
from edge_embed.catalogue import resolve

SIZES = (32, 64, 128, 256, 384)
COUNTS = (400, 700, 1200, 1920)
NEAREST = 10

Vectors = npt.NDArray[np.float64]
Cut = Callable[[Vectors, int], Vectors]
"""Vectors as the model gives them and a size -> unit vectors of that size."""


@dataclass(frozen=True)
class Variant:
    """One way to fit.

    Attributes:
        unit: whether vectors are made unit length first.
        covariance: whether the axes are those of the covariance, or of the second moments, which contain the mean.
        remove: how much of the mean is taken off before turning.
        whiten: each value is divided by its axis's standard deviation to this power.
    """

    unit: bool = True
    covariance: bool = True
    remove: float = 0.0
    whiten: float = 0.0


VARIANTS = {
    "PCA, mean kept (the default)": Variant(),
    "PCA, half of the mean off": Variant(remove=0.5),
    "PCA, mean off (`--center`)": Variant(remove=1.0),
    "second moments": Variant(covariance=False),
    "mean kept, whitened by 1/4": Variant(whiten=0.25),
    "mean kept, whitened by 1/2": Variant(whiten=0.5),
    "mean off, whitened by 1/4": Variant(remove=1.0, whiten=0.25),
    "mean off, whitened": Variant(remove=1.0, whiten=1.0),
    "raw vectors, mean kept": Variant(unit=False),
    "raw vectors, mean off": Variant(unit=False, remove=1.0),
}


def fitted(vectors: Vectors, variant: Variant) -> Cut:
    """The projection of some vectors."""
    rows = unit(vectors) if variant.unit else vectors
    mean = rows.mean(axis=0)
    moved = rows - mean if variant.covariance else rows
    values, axes = np.linalg.eigh(moved.T @ moved / len(rows))
    axes = axes[:, ::-1] / np.maximum(values[::-1], 1e-9) ** (variant.whiten / 2)

    def cut(given: Vectors, size: int) -> Vectors:
        given = unit(given) if variant.unit else given
        return unit(((given - variant.remove * mean) @ axes)[:, :size])

    return cut


def plain(given: Vectors, size: int) -> Vectors:
    """The first values."""
    return unit(given[:, :size])


def unit(rows: Vectors) -> Vectors:
    """Rows of unit length."""
    result: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


@dataclass(frozen=True)
class Scores:
    """The numbers of one way to cut, for each of ``SIZES``."""

    spearman: list[float]
    queries: list[float]
    documents: list[float]
    ndcg: list[float]
    drift: list[float]

    def row(self, name: str) -> str:
        """A line of the table."""
        cells = [" ".join(f"{x:.3f}" for x in values) for values in vars(self).values()]
        return f"| {name} | {' | '.join(cells)} |"


class Sets:
    """The vectors of both sets, as the model gives them, and what is known of their texts."""

    def __init__(self, data: Path, model: str, record: Path | None) -> None:
        first, second, self.scores = stsb(data)
        development = stsb(data, "en-dev.tsv")
        documents, queries, self.qrels = beir(data / "scifact")
        self.ids, self.query_ids = list(documents), list(queries)
        if record is not None and record.exists():
            found = dict(np.load(record))
        else:
            with Embedder(model) as embedder:
                found = {
                    "test": embedder.encode([*first, *second], normalize=False),
                    "dev": embedder.encode(sorted({*development[0], *development[1]}), normalize=False),
                    "documents": embedder.encode_document(
                        list(documents.values()), normalize=False, show_progress_bar=True
                    ),
                    "queries": embedder.encode_query(list(queries.values()), normalize=False),
                }
            if record is not None:
                np.savez(record, **found)
        self.test, self.dev, self.documents, self.queries = (
            found[name].astype(np.float64) for name in ("test", "dev", "documents", "queries")
        )
        random = np.random.default_rng(0)
        order = random.permutation(len(self.documents))
        random.shuffle(self.dev)
        half = len(order) // 2
        self.fit, self.held = self.documents[order[:half]], self.documents[order[half:]]

    def measure(self, on_sentences: Cut, on_documents: Cut) -> Scores:
        """The numbers of a way to cut, fit for each set."""
        result = Scores([], [], [], [], [])
        held, queries = unit(self.held), unit(self.queries)
        cosines = held @ held.T
        for size in SIZES:
            result.spearman.append(sts_spearman(on_sentences(self.test, size).astype(np.float32), self.scores))
            cut_held, cut_queries = on_documents(self.held, size), on_documents(self.queries, size)
            cut_cosines = cut_held @ cut_held.T
            result.queries.append(overlap(queries @ held.T, cut_queries @ cut_held.T))
            result.documents.append(overlap(without_self(cosines), without_self(cut_cosines)))
            result.drift.append(float(np.abs(cosines - cut_cosines)[np.triu_indices(len(held), 1)].mean()))
            ranked = nearest(cut_queries @ on_documents(self.documents, size).T)
            result.ndcg.append(
                float(
                    np.mean(
                        [
                            ndcg([self.ids[i] for i in row], self.qrels[query])
                            for query, row in zip(self.query_ids, ranked, strict=True)
                        ]
                    )
                )
            )
        return result


def overlap(expected: Vectors, found: Vectors) -> float:
    """Share of each row's ten largest that are among the ten largest of the other."""
    pairs = zip(nearest(expected), nearest(found), strict=True)
    return float(np.mean([len(set(a) & set(b)) / NEAREST for a, b in pairs]))


def nearest(similarities: Vectors) -> list[list[int]]:
    """Positions of each row's ten largest."""
    found: list[list[int]] = np.argsort(-similarities, axis=1, kind="stable")[:, :NEAREST].tolist()
    return found


def without_self(cosines: Vectors) -> Vectors:
    """Cosines of rows with each other, each row's own made the smallest."""
    return cosines - 4.0 * np.eye(len(cosines))


def main() -> None:
    """Fit, cut, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=str(resolve(None)))
    parser.add_argument("--record", type=Path, help="an .npz for the vectors")
    options = parser.parse_args()
    sets = Sets(options.data, options.model, options.record)
    for name, rows in (("STS-B, dev", sets.dev), ("SciFact, half of the documents", sets.fit)):
        length = np.linalg.norm(unit(rows).mean(axis=0))
        print(f"{name}: {len(rows)} texts, the mean of their unit vectors is {length:.3f} long")
    head = ("STS-B Spearman", "top-10 of queries", "top-10 of documents", "nDCG@10", "change of cosines")
    print(f"\nsizes {' '.join(map(str, SIZES))}\n\n| fit | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    print(sets.measure(plain, plain).row("plain cut"))
    for name, variant in VARIANTS.items():
        print(sets.measure(fitted(sets.dev, variant), fitted(sets.fit, variant)).row(name), flush=True)
    print("\nthe default, fit on other texts, and on fewer:\n")
    print(sets.measure(fitted(sets.fit, Variant()), fitted(sets.dev, Variant())).row("on the other set"))
    for count in COUNTS:
        print(
            sets.measure(fitted(sets.dev[:count], Variant()), fitted(sets.fit[:count], Variant())).row(f"{count} texts")
        )


if __name__ == "__main__":
    main()
