"""nDCG@10 of a BEIR set by mteb's own measure, through the plug: ``python -m benchmarks.mteb_retrieval --data DIR``.

Needs the extra ``mteb``. Of the same files ``benchmarks.retrieval`` computes the same by the library alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from benchmarks.datasets import beir
from edge_embed.integrations.mteb import EdgeEncoder


def task_of(folder: Path) -> Any:
    """The set as a task of mteb; nothing is downloaded."""
    documents, queries, relevant = beir(folder)

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local-{folder.name}",
            description="a BEIR set on this machine",
            dataset={"path": f"local/{folder.name}", "revision": "1"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_: Any) -> None:
            corpus = Dataset.from_list([{"id": i, "title": "", "text": text} for i, text in documents.items()])
            asked = Dataset.from_list([{"id": i, "text": text} for i, text in queries.items()])
            split = {"corpus": corpus, "queries": asked, "relevant_docs": relevant, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Local()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the set")
    parser.add_argument("--set", default="scifact", help="name of the set")
    parser.add_argument("--model", help="GGUF file or name; the bundled model by default")
    arguments = parser.parse_args()
    result = mteb.evaluate(
        EdgeEncoder(arguments.model), task_of(arguments.data / arguments.set), cache=None, overwrite_strategy="always"
    )
    scores = result.task_results[0].scores["test"][0]
    print({name: scores[name] for name in ("ndcg_at_10", "map_at_10", "recall_at_100")})


if __name__ == "__main__":
    main()
