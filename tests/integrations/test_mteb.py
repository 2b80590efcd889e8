"""The plug for mteb: its tasks on small real texts, held against the library's own figures: `make test-mteb`.

The tasks are mteb's own kinds, over texts that are written here; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder, Reranker
from edge_embed.testing import fake_embedder

pytestmark = pytest.mark.mteb

PAIRS = [
    ("A cat sleeps on the windowsill.", "The kitten is napping by the window.", 4.5),
    ("The central bank raised interest rates.", "Borrowing money has become more expensive.", 3.5),
    ("A man is playing a guitar.", "Someone plays an instrument.", 3.0),
    ("A man is playing a guitar.", "How do I bake sourdough bread?", 0.0),
    ("It rains in Berlin.", "The weather in Berlin is wet.", 4.0),
    ("It rains in Berlin.", "A cat sleeps on the windowsill.", 0.5),
]
CORPUS = {
    "cat": "A cat sleeps on the warm windowsill.",
    "bank": "The central bank raised interest rates.",
    "bread": "Sourdough bread needs flour, water, salt and time.",
    "rain": "It has been raining in Berlin for a week.",
}
QUERIES = {"q1": "Where is the kitten?", "q2": "What do loans cost now?", "q3": "baking a loaf"}
RELEVANT = {"q1": {"cat": 1}, "q2": {"bank": 1}, "q3": {"bread": 1}}


def metadata(name: str, kind: str, category: str, score: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description="a few texts of the tests",
        dataset={"path": "edge-embed/local", "revision": "1"},
        type=kind,
        category=category,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
        prompt={"query": "Find the sentence"} if kind == "Retrieval" else None,
    )


def sts_task() -> Any:
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.sts import AbsTaskSTS

    first, second, scores = zip(*PAIRS, strict=True)

    class LocalSTS(AbsTaskSTS):
        metadata = metadata("LocalSTS", "STS", "t2t", "cosine_spearman")
        min_score, max_score = 0, 5

        def load_data(self, **_: Any) -> None:
            columns = {"sentence1": first, "sentence2": second, "score": scores}
            self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
            self.data_loaded = True

    return LocalSTS()


def retrieval_task() -> Any:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = metadata("LocalRetrieval", "Retrieval", "t2t", "ndcg_at_10")

        def load_data(self, **_: Any) -> None:
            corpus = Dataset.from_list([{"id": i, "text": text, "title": ""} for i, text in CORPUS.items()])
            queries = Dataset.from_list([{"id": i, "text": text} for i, text in QUERIES.items()])
            split = {"corpus": corpus, "queries": queries, "relevant_docs": RELEVANT, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return LocalRetrieval()


def evaluated(model: Any, task: Any) -> dict[str, Any]:
    import mteb

    results = mteb.evaluate(model, task, cache=None, overwrite_strategy="always")
    scores: dict[str, Any] = results.task_results[0].scores["test"][0]
    return scores


@pytest.fixture(scope="module")
def bundled() -> Iterator[Embedder]:
    with Embedder() as embedder:
        yield embedder


def test_it_is_an_encoder_of_mteb(embedder: Embedder, reranker: Reranker) -> None:
    from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol

    from edge_embed.integrations.mteb import EdgeCrossEncoder, EdgeEncoder

    assert isinstance(EdgeEncoder(embedder), EncoderProtocol)
    assert isinstance(EdgeCrossEncoder(reranker), CrossEncoderProtocol)


def test_sts_scores_are_the_librarys(bundled: Embedder) -> None:
    from scipy.stats import spearmanr

    from edge_embed.integrations.mteb import EdgeEncoder

    found = evaluated(EdgeEncoder(bundled), sts_task())
    first, second, scores = zip(*PAIRS, strict=True)
    cosines = np.diag(bundled.similarity(bundled.encode(list(first)), bundled.encode(list(second))))
    assert found["cosine_spearman"] == pytest.approx(float(spearmanr(cosines, scores).statistic), abs=1e-6)
    assert found["cosine_spearman"] > 0.8


def test_retrieval_finds_what_is_meant(bundled: Embedder) -> None:
    from edge_embed.integrations.mteb import EdgeEncoder

    assert evaluated(EdgeEncoder(bundled, truncate_dim=256), retrieval_task())["ndcg_at_10"] == 1.0


class Spy:
    """An Embedder that notes which prompts it was asked for."""

    def __init__(self) -> None:
        self.embedder = fake_embedder()
        self.asked: list[dict[str, Any]] = []
        original = self.embedder.embed

        def embed(texts: Any, **options: Any) -> Any:
            self.asked.append({name: options.get(name) for name in ("instruction", "prompt_name", "role")})
            return original(texts, **options)

        self.embedder.embed = embed  # type: ignore[method-assign]


def test_a_model_with_instructions_gets_the_tasks(embedder: Embedder) -> None:
    from edge_embed.integrations.mteb import EdgeEncoder

    spy = Spy()
    evaluated(EdgeEncoder(spy.embedder), retrieval_task())
    assert {"instruction": "Find the sentence", "prompt_name": None, "role": None} in spy.asked
    assert {"instruction": None, "prompt_name": None, "role": "document"} in spy.asked
    assert len({str(asked) for asked in spy.asked}) == 2


def test_a_model_with_prompts_gets_its_own() -> None:
    from dataclasses import replace

    from edge_embed.integrations.mteb import EdgeEncoder

    spy = Spy()
    spy.embedder.info = replace(spy.embedder.info, instruction_template=None)
    evaluated(EdgeEncoder(spy.embedder), retrieval_task())
    names = {(asked["prompt_name"], asked["role"]) for asked in spy.asked}
    assert names == {("query", None), ("document", None)}


def test_batches_are_joined_in_order(embedder: Embedder) -> None:
    from edge_embed.integrations import mteb as plug

    texts = [f"text {i}" for i in range(10)]
    options: Any = {"task_metadata": sts_task().metadata, "hf_split": "test", "hf_subset": "default"}
    encoder = plug.EdgeEncoder(embedder)
    found = encoder.encode([{"text": texts[:3]}, {"text": texts[3:]}], **options, batch_size=2)
    assert found.shape == (10, 16)
    again = encoder.encode([{"text": [text]} for text in texts], **options)
    assert np.array_equal(found, again)
    assert encoder.encode([], **options).shape == (0, 16)


def test_a_reranker_scores_pairs_in_order(reranker: Reranker) -> None:
    from edge_embed.integrations.mteb import EdgeCrossEncoder

    options: Any = {"task_metadata": retrieval_task().metadata, "hf_split": "test", "hf_subset": "default"}
    found = EdgeCrossEncoder(reranker).predict(
        [{"text": ["a", "b"]}, {"text": ["c"]}], [{"text": ["xxx"]}, {"text": ["y", "zz"]}], **options
    )
    assert np.array_equal(found, reranker.predict([("a", "xxx"), ("b", "y"), ("c", "zz")]))


def test_results_are_filed_under_the_files_digest(bundled: Embedder) -> None:
    import hashlib
    from pathlib import Path

    from edge_embed.integrations.mteb import EdgeEncoder

    meta = EdgeEncoder(bundled).mteb_model_meta
    assert meta.name == "edge-embed/all-MiniLM-L6-v2-Q8_0"
    assert hashlib.sha256(Path(bundled.info.path).read_bytes()).hexdigest().startswith(meta.revision)
    assert EdgeEncoder(bundled, "mine").mteb_model_meta.revision == "mine"
