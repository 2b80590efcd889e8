"""What was found out about models on this machine, in the cache folder: small JSON files, replaced in one step.

The cache only saves time, so a file that is absent, damaged or of another version is an empty one, and a folder that
cannot be written means that things are found out again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from edge_embed.engine.devices import cpu_name_and_flags
from edge_embed.paths import cache_dir
from edge_embed.types import ModelInfo

T = TypeVar("T")
_ENTRIES = 200


@dataclass(frozen=True, slots=True)
class Findings(Generic[T]):
    """A file of outcomes under keys.

    Attributes:
        name: the file's.
        read: an outcome of its JSON; ValueError, TypeError, KeyError or AttributeError where it is none.
        write: its JSON.
    """

    name: str
    read: Callable[[Any], T]
    write: Callable[[T], Any]

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        return cache_dir() / self.name

    def all(self) -> dict[str, T]:
        """Every outcome; none where the file is not ours."""
        try:
            return {key: self.read(value) for key, value in json.loads(self.path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}

    def get(self, key: str) -> T | None:
        """One outcome, or None."""
        return self.all().get(key)

    def put(self, key: str, outcome: T) -> bool:
        """Keep an outcome, the newest of the newest few hundred; False where the folder cannot be written."""
        return self._replace({**self._others(key), key: outcome})

    def drop(self, key: str) -> bool:
        """Forget an outcome; whether there was one."""
        return self.get(key) is not None and self._replace(self._others(key))

    def _others(self, key: str) -> dict[str, T]:
        return {other: outcome for other, outcome in self.all().items() if other != key}

    def _replace(self, outcomes: dict[str, T]) -> bool:
        newest = {key: self.write(outcome) for key, outcome in list(outcomes.items())[-_ENTRIES:]}
        with contextlib.suppress(OSError):  # a read-only home only means that each start finds out again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.name)
            try:
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    json.dump(newest, file)
                Path(name).replace(self.path)
            except BaseException:  # an interrupt, too
                Path(name).unlink(missing_ok=True)
                raise
            return True
        return False


def key_of(info: ModelInfo, library: Path, *more: Any) -> str:
    """Digest of everything that an outcome depends on: libraries, CPU, file and how it is pooled.

    Args:
        info: the model.
        library: path of libllama; its neighbours hold the kernels.
        more: what else, as JSON.
    """
    facts: list[Any] = [*cpu_name_and_flags(), info.pooling, sys.version, *more]
    facts += files_of(library)
    facts.append(_identity(Path(info.path)))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def files_of(library: Path) -> list[list[Any]]:
    """Name, size and time of libllama and of the libraries beside it that hold the kernels."""
    return [_identity(file) for file in [*sorted(library.parent.glob("*ggml*")), library]]


def _identity(file: Path) -> list[Any]:
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
