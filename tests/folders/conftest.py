"""Checkpoints to change, in place of the models of the same names that other tests run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoints import build_tiny_bert
from tests.converting import small_qwen3


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints to copy."""
    folder = tmp_path_factory.mktemp("pristine")
    return {
        "bert": build_tiny_bert(folder / "bert"),
        "sharded": build_tiny_bert(folder / "sharded", sharded=True),
        "qwen3": small_qwen3(folder / "qwen3"),
    }


@pytest.fixture
def bert(pristine: dict[str, Path], tmp_path: Path) -> Path:
    """A BERT checkpoint to damage or change."""
    return Path(shutil.copytree(pristine["bert"], tmp_path / "bert"))


@pytest.fixture
def sharded(pristine: dict[str, Path], tmp_path: Path) -> Path:
    """The same in two shards."""
    return Path(shutil.copytree(pristine["sharded"], tmp_path / "sharded"))


@pytest.fixture
def qwen3(pristine: dict[str, Path], tmp_path: Path) -> Path:
    """A Qwen3 checkpoint to damage or change, of 279 tokens, the last three of them added ones."""
    return Path(shutil.copytree(pristine["qwen3"], tmp_path / "qwen3"))
