"""Parts of a tokenizer.json to put into a folder, and what its conversion records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.converting import edited, metadata
from tests.folders import attempt


def keys_of(folder: Path) -> dict[str, Any]:
    """The metadata of the conversion, tokenizer keys without their prefix."""
    return {name.removeprefix("tokenizer.ggml."): value for name, value in metadata(attempt(folder).path).items()}


def added(content: str, token_id: int, **flags: bool) -> dict[str, Any]:
    """An entry of ``added_tokens``."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **plain, **flags}


def with_added(folder: Path, *entries: dict[str, Any]) -> Path:
    """Append entries to ``added_tokens``."""
    path = folder / "tokenizer.json"
    return edited(path, added_tokens=json.loads(path.read_text("utf-8"))["added_tokens"] + list(entries)).parent


def template(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> dict[str, Any]:
    """A TemplateProcessing that puts these tokens around a text."""

    def pieces(tokens: list[tuple[str, int]]) -> list[Any]:
        return [{"SpecialToken": {"id": token, "type_id": 0}} for token, _ in tokens]

    return {
        "type": "TemplateProcessing",
        "single": [*pieces(before), {"Sequence": {"id": "A", "type_id": 0}}, *pieces(after)],
        "pair": [],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in before + after},
    }
