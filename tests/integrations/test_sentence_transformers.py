"""Embedder in the place of a SentenceTransformer: what is called alike, and every name that differs (README)."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from edge_embed import Embedder, Reranker

pytestmark = pytest.mark.parity

# What theirs has and ours has no place for: README, "In other libraries".
ABSENT = {
    "batch_size", "chunk_size", "convert_to_numpy", "convert_to_tensor", "device", "inputs", "kwargs",
    "normalize_embeddings", "output_value", "pool",
}  # fmt: skip


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_texts_are_embedded_by_the_same_call(method: str) -> None:
    from sentence_transformers import SentenceTransformer

    ours, theirs = parameters(getattr(Embedder, method)), parameters(getattr(SentenceTransformer, method))
    assert set(theirs) - set(ours) == ABSENT
    assert list(ours)[2:4] == list(theirs)[2:4] == ["prompt_name", "prompt"]
    same = set(ours) & set(theirs) - {"self"}
    assert {name: theirs[name].default for name in same} == {
        **{name: ours[name].default for name in same},
        "show_progress_bar": None,  # ours: False
    }


def test_models_are_made_and_compared_alike() -> None:
    from sentence_transformers import SentenceTransformer

    ours, theirs = parameters(Embedder), parameters(SentenceTransformer)
    assert {"prompts", "default_prompt_name", "truncate_dim"} <= set(ours) & set(theirs)
    assert len(parameters(Embedder.similarity)) == len(parameters(SentenceTransformer.similarity)) == 3


def test_pairs_are_scored_by_the_same_call() -> None:
    from sentence_transformers import CrossEncoder

    for method in ("predict", "rank"):
        ours, theirs = parameters(getattr(Reranker, method)), parameters(getattr(CrossEncoder, method))
        assert {"show_progress_bar"} <= set(ours) & set(theirs)
    assert list(parameters(CrossEncoder.rank))[1:3] == list(parameters(Reranker.rank))[1:3] == ["query", "documents"]
