"""The models folder: GGUF files that were pulled or converted, each with a record of what it is and where it is from.

The record lies next to the file, as ``<file>.gguf.json``: the two are moved and deleted together, and there is no
index that could disagree with the folder. A file without a record is not ours and is not listed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from edge_embed.errors import OutputFileError
from edge_embed.paths import models_dir

RECORD: Final = ".json"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One GGUF of the models folder.

    Attributes:
        name: the name that it is called by.
        ftype: what its weights are stored as: ``q8_0``, ``f16`` ...
        repository: where it, or the checkpoint that it was made of, is from.
        revision: the commit of that repository.
        file: its path in the repository, or None where it was converted here.
        sha256: its digest: a file that no longer has it is damaged.
        size_bytes: its size.
        license: SPDX identifier, possibly empty.
        path: where it is on this machine.
    """

    name: str
    ftype: str
    repository: str
    revision: str
    file: str | None
    sha256: str
    size_bytes: int
    license: str
    path: Path


def stored() -> list[StoredModel]:
    """Every model of the folder, by name and size. A record that cannot be read is a warning, not an end."""
    found = [record_of(path.with_suffix("")) for path in models_dir().rglob("*.gguf" + RECORD)]
    return sorted((model for model in found if model is not None), key=lambda model: (model.name, model.size_bytes))


def record_of(path: Path) -> StoredModel | None:
    """What is recorded of a GGUF file, or None where the file or its record is missing or unreadable."""
    record = _record_path(path)
    if not path.is_file() or not record.is_file():
        return None
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        return StoredModel(**{**_checked(values), "path": path})
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{record} cannot be used ({error}); pull the model again, or delete both files", stacklevel=2)
        return None


def _checked(values: Any) -> dict[str, Any]:
    kinds: dict[str, tuple[type, ...]] = {f.name: (str,) for f in fields(StoredModel) if f.name != "path"}
    kinds |= {"size_bytes": (int,), "file": (str, type(None))}
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise ValueError(f"expected an object of {', '.join(sorted(kinds))}")
    for name, value in values.items():
        if type(value) not in kinds[name]:
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    return values


def record(model: StoredModel) -> None:
    """Write a model's record: whole or not at all."""
    values = {name: value for name, value in asdict(model).items() if name != "path"}
    target = _record_path(model.path)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")  # another process may write the same record
    try:
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputFileError(f"{target} cannot be written: {error}") from error


def sha256(path: Path) -> str:
    """Digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + RECORD)
