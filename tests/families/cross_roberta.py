"""A RoBERTa cross-encoder, as stsb-roberta-base: first token, dense, tanh, one score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families import Arrays, roberta
from tests.families._encoders import in_temporary_folder, recorded_scores

NAME = "cross_roberta"


def build(folder: Path, **options: Any) -> Path:
    """The checkpoint, without modules.json, as cross-encoders are published."""
    return roberta.build(folder, head=True, **options)


def record() -> Arrays:
    """Logits and ids of the original."""
    return in_temporary_folder(build, recorded_scores)
