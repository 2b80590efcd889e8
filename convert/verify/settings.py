"""The metadata of a GGUF beside what its checkpoint makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_embed import keys
from edge_embed.gguf_header import GgufHeader

from ..checkpoint import short
from ..plan import Plan


def check_settings(header: GgufHeader, plan: Plan, notes: list[str]) -> tuple[int, list[str]]:
    """How many entries were compared, and a sentence for each that differs.

    What another converter leaves out has a default in llama.cpp or the runtime, and the vectors show whether it fits.
    """
    arch = plan.family.arch
    entries = {e.key: e.value for e in plan.key_values if e.key.startswith((f"{arch}.", keys.PREFIX))}
    entries["general.architecture"] = arch
    problems: list[str] = []
    missing: list[str] = []
    for key, value in entries.items():
        if key not in header.metadata:
            if value not in ("", []):  # an empty array has no type in GGUF, and is not written
                missing.append(key)
        elif not _same(header.metadata[key], value):
            problems.append(f"settings: {key} is {short(header.metadata[key])}, the checkpoint makes it {short(value)}")
    for key in header.metadata:
        if key.startswith(keys.PROMPT) and key not in entries:
            problems.append(f"settings: {key} is {short(header.metadata[key])}, the checkpoint has no such prompt")
    if missing and keys.VERSION in header.metadata:
        problems.append(f"settings: missing in the metadata: {', '.join(missing)}")
    elif missing:
        notes.append(f"another converter made this file; it does not record {', '.join(missing)}")
    return len(entries), problems


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return bool(np.float32(found) == np.float32(expected))
    return bool(found == (list(expected) if isinstance(expected, tuple) else expected))
