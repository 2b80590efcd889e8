"""Builds of llama.cpp's libraries for tests: the installed libraries under another name, or files that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edge_embed.engine import bindings, build, builder, builds

SOURCES = {"llama_cpp_python": build.LLAMA_CPP_PYTHON, "sha256": build.ARCHIVE_SHA256}


def made(folder: Path, *, real: bool = False, **changes: Any) -> Path:
    """What ``cmake --build`` leaves: libraries and the facts about them.

    Args:
        folder: is made.
        real: with the installed libraries; else with files that only have their names.
        changes: facts that are others.
    """
    system, machine = builds.here()
    facts = {"preset": "", "sources": SOURCES, "system": system, "machine": machine, "compiler": "GNU 12.2.0"}
    if real:
        shutil.copytree(bindings.packaged_folder(), folder)
    else:
        folder.mkdir(parents=True)
        (folder / "libllama.so.0").write_text("llama")
        (folder / "libllama.so").symlink_to("libllama.so.0")
        (folder / "libggml.so").write_text("ggml")
    manifest = {**facts, "settings": ["GGML_NATIVE=ON"], **changes}
    (folder / builds.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def install(name: str, *, real: bool = False, **changes: Any) -> builds.Build:
    """A build of that name among the others; see ``made``."""
    folder = made(builds.engines_dir() / f".{name}.made", real=real, **changes)
    try:
        return builder.add(folder, name=name)
    finally:
        shutil.rmtree(folder)
