"""Where edge-embed keeps what it has found out, and what it has downloaded or made.

Folders named by the environment at call time: a cache that may be deleted at any moment, and what was asked for, which
is large or took long: models, and builds of llama.cpp's libraries. None is created here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """``$EDGE_EMBED_CACHE``, else ``edge-embed`` in the platform's cache folder."""
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


def models_dir() -> Path:
    """``models`` in ``$EDGE_EMBED_HOME``, else in ``edge-embed`` of the platform's folder for data."""
    return _data_dir() / "models"


def engines_dir() -> Path:
    """``engines`` beside ``models_dir``: builds of llama.cpp's libraries, a folder each."""
    return _data_dir() / "engines"


def _data_dir() -> Path:
    override = os.environ.get("EDGE_EMBED_HOME")
    if override:
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "edge-embed"
