"""Ready GGUF files of a repository, and which of them is meant."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

from edge_embed.errors import HubNotFoundError, InvalidOptionError

from .failures import size
from .repository import RepoFile, Repository

_SPLIT: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_TYPE: Final = re.compile(r"(?:^|[-._/])(i?q\d(?:_[0-9a-z]+)*|bf16|fp?16|fp?32)\.gguf$", re.IGNORECASE)


def gguf_type(path: str) -> str:
    """The type that a file's name ends with, in small letters; an empty string where it names none."""
    match = _TYPE.search(path)
    return match[1].lower().replace("fp", "f") if match else ""


def gguf_files(repository: Repository) -> list[RepoFile]:
    """The whole GGUF files of a repository; those in several parts and those of vision encoders are none."""
    return [
        file
        for file in repository.files
        if file.path.lower().endswith(".gguf")
        and not _SPLIT.search(file.path)
        and not PurePosixPath(file.path).name.startswith("mmproj")
    ]


def choose_gguf(repository: Repository, wanted: str | None) -> RepoFile:
    """The one GGUF of a repository that is meant.

    Args:
        repository: where it is.
        wanted: its path or name, its type, or None for the only one there is.

    Raises:
        HubNotFoundError: there is no such file.
        InvalidOptionError: there are several; the message lists them.
    """
    files = gguf_files(repository)
    if wanted is None:
        found = files
    elif wanted.lower().endswith(".gguf"):
        found = [f for f in files if wanted in (f.path, PurePosixPath(f.path).name)]
    else:
        found = [f for f in files if gguf_type(f.path) == gguf_type(f"-{wanted}.gguf")]
    if len(found) == 1:
        return found[0]
    choices = ", ".join(f"{f.path} ({size(f.size)})" for f in sorted(found or files, key=lambda f: f.size))
    if found:
        raise InvalidOptionError(
            f"{repository.name} has {len(found)} GGUF files{f' of the type {wanted}' if wanted else ''}: {choices}",
            hint=f"name one, or its type: edge-embed pull {repository.name}:FILE",
        )
    if not files:
        parts = any(_SPLIT.search(file.path) for file in repository.files)
        raise HubNotFoundError(
            f"{repository.name} has no GGUF file" + (" in one piece, and those in parts are not read" if parts else ""),
            hint=f"to make one of its weights: edge-embed convert {repository.name}",
        )
    raise HubNotFoundError(f"{repository.name} has no GGUF {wanted}", hint=f"it has: {choices}")
