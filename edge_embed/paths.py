"""Where edge-embed keeps what it has found out or downloaded: one folder, named by the environment at call time."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """``$EDGE_EMBED_CACHE``, else ``edge-embed`` in the platform's cache folder. Not created here."""
    override = os.environ.get("EDGE_EMBED_CACHE")
    if override:
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "edge-embed"
