"""Qwen3 with ``is_causal`` false: every token sees the whole text, the last one or their mean is the vector."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.converting import edited, small_qwen3
from tests.families import Arrays
from tests.families._decoders import record as record_of

NAME = "qwen3_both_ways"


def build(folder: Path, *, pooling: str = "lasttoken") -> Path:
    """The tiny Qwen3 of the other tests, wider, looking both ways."""
    small_qwen3(folder, hidden=128, max_pos=1024)
    edited(folder / "config.json", is_causal=False)
    edited(folder / "1_Pooling" / "config.json", **{"pooling_mode_lasttoken": False, f"pooling_mode_{pooling}": True})
    edited(folder / "sentence_bert_config.json", max_seq_length=512, do_lower_case=False)
    return folder


VARIANTS: dict[str, dict[str, Any]] = {"last": {}, "mean": {"pooling": "mean_tokens"}}


def record() -> Arrays:
    """``<variant>`` has its vectors; the ids are the same for both."""
    found = {name: record_of(partial(build, **options)) for name, options in VARIANTS.items()}
    ids = {key: value for key, value in found["last"].items() if key != "vectors"}
    return ids | {name: arrays["vectors"] for name, arrays in found.items()}
