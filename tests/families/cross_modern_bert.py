"""A ModernBERT cross-encoder, as gte-reranker-modernbert-base: mean, dense, GELU, norm, one score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families import Arrays, modern_bert
from tests.families._encoders import in_temporary_folder, recorded_scores

NAME = "cross_modern_bert"


def build(folder: Path, **options: Any) -> Path:
    """The checkpoint, without modules.json, as cross-encoders are published."""
    return modern_bert.build(folder, head=True, **options)


def record() -> Arrays:
    """Logits and ids of the original, and the logits of a head over the first token."""
    first = in_temporary_folder(lambda folder: build(folder, config={"classifier_pooling": "cls"}), recorded_scores)
    return {**in_temporary_folder(build, recorded_scores), "cls_scores": first["scores"]}
