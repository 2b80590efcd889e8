"""Typed reads of a GGUF's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np

from edge_embed import keys
from edge_embed.errors import ModelFileError
from edge_embed.gguf_header import GgufHeader
from edge_embed.types import Float32Array


class Metadata:
    """Typed reads; a wrong type is an error that names file, key and value."""

    def __init__(self, header: GgufHeader) -> None:
        self.path = header.path
        self.values: Mapping[str, Any] = header.metadata

    def text(self, key: str, default: str | None = None) -> str:
        return cast(str, self._get(key, str, default))

    def flag(self, key: str, default: bool) -> bool:
        return cast(bool, self._get(key, bool, default))

    def integer(self, key: str, default: int | None = None) -> int:
        return cast(int, self._get(key, int, default))

    def integers(self, key: str) -> list[int]:
        values = self.values.get(key, [])
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise ModelFileError(f"{self.path}: {key} is not a list of integers")
        return values

    def texts(self, key: str) -> list[str]:
        values = self.values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ModelFileError(f"{self.path}: {key} is not a list of strings")
        return values

    def has(self, key: str) -> bool:
        return key in self.values

    def reals(self, key: str) -> Float32Array:
        """An array of finite numbers, or an empty one."""
        values = self.values.get(key, [])
        if not isinstance(values, list) or any(type(value) is not float for value in values):
            raise ModelFileError(f"{self.path}: {key} is not a list of numbers")
        result = np.array(values, dtype=np.float32)
        if not np.isfinite(result).all():
            raise ModelFileError(f"{self.path}: {key} has a value that is not finite")
        return result

    def count(self, key: str, limit: int, default: int | None = None) -> int:
        value = self.integer(key, default)
        if not 1 <= value <= limit:
            raise ModelFileError(f"{self.path}: {key} is {value}, expected 1 to {limit}")
        return value

    @cached_property
    def tokens(self) -> list[str]:
        tokens = self.values.get("tokenizer.ggml.tokens", [])
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ModelFileError(f"{self.path}: tokenizer.ggml.tokens is not a list of strings")
        return tokens

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise ModelFileError(
                f"{self.path}: the metadata key {key!r} is missing",
                hint="the file is not a whole model: convert it again",
            )
        if type(value) is not kind:
            raise ModelFileError(f"{self.path}: {key} is {value!r}, expected {kind.__name__}")
        return value


def bos_token(values: Mapping[str, Any], eds: int | None) -> int | None:
    """The token that begins every text, or None.

    SentencePiece files without the flag or the id mean llama.cpp's defaults. Qwen's tokenizers begin no text with
    anything, so where the flags of somebody else's file put the EDS token there, they are wrong.

    Args:
        values: the file's key-values.
        eds: the token that ends every text, or None.
    """
    is_spm = values.get("tokenizer.ggml.model") == "llama"
    if not values.get("tokenizer.ggml.add_bos_token", is_spm):
        return None
    bos: int | None = values.get("tokenizer.ggml.bos_token_id", 1 if is_spm else None)
    is_qwen = str(values.get("general.architecture")).startswith("qwen")
    return None if bos == eds and is_qwen and keys.EDS_TOKEN_ID not in values else bos
