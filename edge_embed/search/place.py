"""Where a search database lies where nobody says."""

from __future__ import annotations

import os
from pathlib import Path

from edge_embed.paths import models_dir

VARIABLE = "EDGE_EMBED_DB"


def database_path(given: str | Path | None = None) -> Path:
    """The path that was given, else ``$EDGE_EMBED_DB``, else ``search`` beside the folder of models."""
    chosen = given or os.environ.get(VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else models_dir().parent / "search"
