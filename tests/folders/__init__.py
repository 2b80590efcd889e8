"""What a checkpoint folder may hold: damaged, hostile, unusual or of models that are not converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_embed import errors
from edge_embed.convert import ConversionReport, convert

Broken = errors.CheckpointError
Unsupported = errors.UnsupportedCheckpointError


def attempt(folder: Path, **options: Any) -> ConversionReport:
    """Convert next to the folder."""
    return convert(folder, folder.with_suffix(".gguf"), ftype="f16", **options)


def refused(folder: Path, kind: type[errors.ConversionError], message: str, **options: Any) -> None:
    """The conversion is refused so, and leaves no file."""
    with pytest.raises(kind, match=message):
        attempt(folder, **options)
    assert [p.name for p in folder.parent.glob("*.gguf*")] == []
