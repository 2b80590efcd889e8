"""Typed reads of a GGUF's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np

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
