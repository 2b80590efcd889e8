"""CamemBERT, as sentence-camembert: XLM-RoBERTa whose vocabulary begins with tokens that are not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families import Arrays, xlm_roberta
from tests.families._encoders import in_temporary_folder, recorded

NAME = "camembert"
SPECIALS = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")


def build(folder: Path, **options: Any) -> Path:
    """The checkpoint."""
    config = {"architectures": ["CamembertModel"], "model_type": "camembert", "bos_token_id": 5, "eos_token_id": 6}
    return xlm_roberta.build(folder, specials=SPECIALS, pooling="mean", config=config, **options)


def record() -> Arrays:
    """Vectors and ids of the original."""
    return in_temporary_folder(
        build, lambda folder: recorded(folder, pooling="mean", max_tokens=xlm_roberta.MAX_TOKENS)
    )
