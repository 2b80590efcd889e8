"""The models that edge-embed knows by name: one TOML file each in ``models/``, and the default that ships with it.

It knows files and names, nothing of what is in a model.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from edge_embed.errors import ModelNotFoundError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MODEL: Final = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One known model.

    Attributes:
        name: the short name.
        repository: where its original weights are published.
        license: SPDX identifier.
        dimensions: size of its vectors.
        max_tokens: most tokens of one text.
        path: the GGUF where it is on this machine, else None.
        size_bytes: size of that GGUF.
    """

    name: str
    repository: str
    license: str
    dimensions: int
    max_tokens: int
    path: Path | None
    size_bytes: int


def entries() -> list[CatalogueEntry]:
    """All known models, by name."""
    folder = resources.files("edge_embed.models")
    found = [
        _entry(item.name.removesuffix(".toml"), tomllib.loads(item.read_text(encoding="utf-8")))
        for item in folder.iterdir()
        if item.name.endswith(".toml")
    ]
    return sorted(found, key=lambda entry: entry.name)


def resolve(model: str | Path | None) -> Path:
    """The file behind a name or a path; the bundled default for None.

    Raises:
        ModelNotFoundError: neither a file nor a known name.
    """
    if model is None:
        model = DEFAULT_MODEL
    if not isinstance(model, (str, Path)):
        raise ModelNotFoundError(
            f"a model is a file or a name, not {type(model).__name__}", hint="`edge-embed list` shows the names"
        )
    path = Path(model)
    with contextlib.suppress(OSError, RuntimeError):  # a name too long for a file, or ~ of nobody: not found below
        path = path.expanduser()
        if path.is_file():
            return path
    for entry in entries():
        if entry.name == str(model).lower() and entry.path is not None:
            return entry.path
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names too long for a file
        raise ModelNotFoundError(
            f"{path} is a folder, not a GGUF file", hint=f"convert it first: edge-embed convert {path}"
        )
    known = ", ".join(entry.name for entry in entries() if entry.path is not None)
    raise ModelNotFoundError(
        f"there is no model file {str(model)!r} and no model of that name",
        hint=f"known names: {known}; or give a GGUF file",
    )


def _entry(name: str, table: dict[str, Any]) -> CatalogueEntry:
    path = Path(str(resources.files("edge_embed.models") / str(table.get("file", ""))))
    return CatalogueEntry(
        name=name,
        repository=table["repository"],
        license=table["license"],
        dimensions=table["dimensions"],
        max_tokens=table["max_tokens"],
        path=path if path.is_file() else None,
        size_bytes=path.stat().st_size if path.is_file() else 0,
    )
