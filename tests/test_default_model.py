"""The bundled model: what it is, and that it can be made again, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edge_embed import catalogue
from edge_embed.convert import default_model
from tests.checkpoints import build_tiny_bert


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint that no test changes."""
    return build_tiny_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert", max_seq_length=96)


# ---------------------------------------------------------------- the bundled model


def test_bundled_model_is_what_the_catalogue_says() -> None:
    models = Path(__file__).parents[1] / "models"
    entry = catalogue.tomllib.loads((models / "all-minilm-l6-v2.toml").read_text("utf-8"))
    data = (models / entry["file"]).read_bytes()
    assert len(data) == entry["size"]
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def test_bundled_model_is_made_again_byte_for_byte(capsys: pytest.CaptureFixture[str]) -> None:
    assert default_model.main(["--check"]) == 0
    assert "the same as" in capsys.readouterr().out


def test_check_tells_a_different_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says what is missing where the checkpoint is not installed."""
    monkeypatch.setattr(default_model.resources, "files", lambda _: tmp_path)
    (tmp_path / default_model.FILE).write_bytes(b"GGUF")
    assert default_model.main(["--check"]) == 1
    assert "NOT the same" in capsys.readouterr().out
    monkeypatch.setattr(default_model, "MODULE", "no_such_package")
    assert default_model.main(["--check"]) == 4
    assert "pip install" in capsys.readouterr().err


def test_bundled_model_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bert_folder: Path
) -> None:
    monkeypatch.setattr(default_model.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(default_model, "checkpoint_folder", lambda: bert_folder)
    assert default_model.main([]) == 0
    written = hashlib.sha256((tmp_path / default_model.FILE).read_bytes()).hexdigest()
    assert capsys.readouterr().out.startswith(written)
