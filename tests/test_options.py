"""Options that several commands share: what they let through, what they refuse, what reaches the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder, types
from edge_embed.cli import options
from edge_embed.testing import fake_embedder
from tests.commands import run


def test_the_names_are_those_of_the_library() -> None:
    """They are spelled out twice, because the library's module imports NumPy."""
    assert options.TEXT_TRUNCATIONS == types.TEXT_TRUNCATIONS


def test_a_long_text_is_read_in_windows(bert: Embedder, bert_path: Path) -> None:
    text = "the cat sat on the mat and the green world " * 4
    for more, overlap in ([], None), (["--overlap", "0"], 0):
        result = run(
            "embed", "-m", bert_path, "--threads", "1", "--max-tokens", "16", "--truncate", "chunk", *more, text
        )
        assert result.exit_code == 0, result.output
        with Embedder(bert_path, n_threads=1, max_tokens=16) as embedder:
            expected = embedder.embed([text], truncate="chunk", overlap=overlap).vectors[0]
        np.testing.assert_allclose(json.loads(result.stdout)[0], expected, atol=1e-6)
        assert "cut" not in result.stderr
        assert np.abs(expected - bert.encode(text, max_tokens=16)).max() > 0.01


def test_an_overlap_needs_windows(bert_path: Path) -> None:
    result = run("embed", "-m", bert_path, "--overlap", "4", "a")
    assert (result.exit_code, "belongs to --truncate chunk" in result.stderr) == (2, True)


@pytest.mark.parametrize(("given", "role"), [([], None), (["--query"], "query"), (["--document"], "document")])
def test_a_role_reaches_the_library(given: list[str], role: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_embed.embedder.Embedder", lambda *_, **__: fake_embedder())
    expected = fake_embedder().encode(["x"], role=role)
    result = run("embed", *given, "x")
    np.testing.assert_array_equal(np.float32(json.loads(result.stdout)), expected)
