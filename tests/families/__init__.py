"""A tiny checkpoint of every model family, and what the original model makes of it.

One module per family. Each has

- ``NAME``: the golden file's name, ``tests/data/golden_<NAME>.npz``;
- ``build(folder, **options)``: writes the checkpoint as Hugging Face and sentence-transformers write it, with random
  weights from NumPy alone and the same ones every time, and returns the folder;
- ``record()``: runs the original model in float32 and returns the arrays to keep. The only part that needs torch,
  which it imports inside.

``python tests/make_golden.py NAME...`` writes the files; tests read them with ``golden(NAME)`` and need no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parents[1] / "data"

Arrays = dict[str, npt.NDArray[Any]]


def modules() -> dict[str, Any]:
    """Every family's module by its ``NAME``; an underscore begins the names of modules that only help."""
    found: dict[str, Any] = {}
    for entry in pkgutil.iter_modules(__path__):
        if entry.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{entry.name}")
        if module.NAME in found:
            raise ValueError(f"two families are called {module.NAME!r}")
        found[module.NAME] = module
    return found


def golden_path(name: str) -> Path:
    """Where the recorded arrays of a family lie."""
    return DATA / f"golden_{name}.npz"


def golden(name: str) -> Arrays:
    """The recorded arrays of a family."""
    with np.load(golden_path(name), allow_pickle=False) as file:
        return dict(file)


def packed(rows: Iterable[Sequence[int]], name: str = "ids") -> Arrays:
    """Lists of ids as two arrays that a golden file can hold: ``<name>``, all in one, and ``<name>_lengths``."""
    lists = [list(row) for row in rows]
    return {
        name: np.array([i for row in lists for i in row], dtype=np.int32),
        f"{name}_lengths": np.array([len(row) for row in lists], dtype=np.int32),
    }


def unpacked(arrays: Arrays, name: str = "ids") -> list[list[int]]:
    """The lists that ``packed`` took."""
    ends = np.cumsum(arrays[f"{name}_lengths"])[:-1]
    return [row.tolist() for row in np.split(arrays[name], ends)]
