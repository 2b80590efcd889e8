"""What is written beside the blocks of a job: which job they are of, how many there will be, whether all are there.

It is written before the first block. Names of blocks carry the job's digest, so blocks of two jobs cannot be mistaken
for each other even where the manifest is gone; the manifest is what can say how the two differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from edge_embed.bulk import storage
from edge_embed.errors import ResumeError

NAME: Final = "_edge_embed.json"
_FORMAT: Final = 1
_LONGEST: Final = 120  # characters of a setting in a message


@dataclass(frozen=True, slots=True)
class Manifest:
    """One job's.

    Attributes:
        settings: all that decides what is in the blocks.
        digest: of these.
        n_blocks: how many blocks there will be.
        n_rows: rows of all of them.
        complete: whether they are all there.
    """

    settings: dict[str, Any]
    digest: str
    n_blocks: int
    n_rows: int
    complete: bool = False


def load(folder: str) -> Manifest | None:
    """The manifest of a folder, None where there is none. ResumeError: it cannot be used."""
    data = storage.read(folder, NAME)
    if data is None:
        return None
    try:
        values = json.loads(data)
        if values.pop("format") != _FORMAT or not isinstance(values["settings"], dict):
            raise ValueError("another format")
        return Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResumeError(
            f"{storage.shown(storage.join(folder, NAME))} cannot be used: {error}",
            hint="write to another folder, or start again with --no-resume",
        ) from None


def save(folder: str, manifest: Manifest) -> None:
    """Write it; OutputFileError where that does not work."""
    text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=1, ensure_ascii=False)
    storage.write(folder, NAME, text.encode("utf-8", "surrogatepass"))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What was and what is, of each setting that differs."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [f"{name} was {_shown(theirs.get(name))} and is {_shown(ours.get(name))}" for name in names]


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
