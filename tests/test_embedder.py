"""The spine on the bundled model: prompts survive a cut, long texts stay small, odd input is a typed error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.engine.probe import run_child
from edge_embed.errors import (
    EdgeEmbedError,
    EngineClosedError,
    EngineUnavailableError,
    InvalidOptionError,
    InvalidTextError,
)
from edge_embed.rebuild import _SLICE
from edge_embed.types import ModelInfo
from tests.scripts import run_script


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    with Embedder() as bundled:
        yield bundled


def test_identical_texts_are_computed_once(embedder: Embedder) -> None:
    result = embedder.embed(["one", "two", "one", "one"])
    assert (result.usage.n_texts, result.usage.n_computed) == (4, 2)
    assert (result.vectors[0] == result.vectors[3]).all()


def test_vectors_have_unit_length_at_every_size(embedder: Embedder) -> None:
    for dim in (1, 32, 383, 384):
        norms = np.linalg.norm(embedder.encode(["some text", "another"], truncate_dim=dim), axis=1)
        assert np.abs(norms - 1).max() < 1e-4


@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("special", [True, False])
def test_the_ids_of_a_text_stand_for_it(prompt: str, special: bool, embedder: Embedder) -> None:
    text = "The central bank raised interest rates."
    ids = embedder.tokenize(text).token_ids.tolist()
    given = ids if special else ids[1:-1]
    found = embedder.embed([given, text], prompt=prompt)
    assert found.n_tokens[0] == found.n_tokens[1]
    np.testing.assert_array_equal(found.vectors[0], found.vectors[1])


@pytest.mark.parametrize("wrong", [[30522], [-1], [1, 2**40], [True], [1.5], ["a"], [None]])
def test_ids_that_the_model_does_not_have_are_refused(wrong: Any, embedder: Embedder) -> None:
    with pytest.raises(InvalidTextError, match="text 1"):
        embedder.encode(["fine", wrong])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_text_keeps_its_prompt(side: Any, embedder: Embedder) -> None:
    ids = embedder.tokenizer.encode("word " * 300, prompt="classify this: ", truncate=side).token_ids.tolist()
    prompt = embedder.tokenize("classify this: ").token_ids.tolist()
    assert len(ids) == 256
    assert ids[: len(prompt) - 1] == prompt[:-1]
    assert ids[-1] == prompt[-1]


def test_a_prompt_that_leaves_no_room_is_refused(embedder: Embedder) -> None:
    with pytest.raises(InvalidOptionError, match="leaves no room"):
        embedder.encode("some text", prompt="word " * 300)


def test_long_texts_are_tokenized_in_slices_with_the_same_ids(embedder: Embedder) -> None:
    text = "".join(f"wörd{i} 中文 [SEP] e\u0301tude\n" for i in range(9000))
    assert len(text) > 2 * _SLICE
    pieces = [embedder.tokenizer.content(line) for line in text.splitlines()]
    assert list(embedder.tokenizer.content(text)) == [token for piece in pieces for token in piece]


def test_a_text_of_20_million_characters_needs_little_memory() -> None:
    script = """
        from pathlib import Path
        from edge_embed import Embedder
        result = Embedder().embed(["hello world " * 1_666_667])
        assert result.n_original[0] == 3_333_336, result.n_original
        # not ru_maxrss: a child inherits that from the process that started it
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        assert peak < 400, peak
    """
    run_script(script)


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.encode({"a": 1}),
        lambda e: e.encode({"a"}),
        lambda e: e.encode(np.array("a")),
        lambda e: e.encode([None]),
        lambda e: e.encode([b"x"]),
        lambda e: e.encode(["a"], precision=np.array([1, 2])),
        lambda e: e.encode(["a"], truncate=np.array([1, 2])),
        lambda e: e.encode(["a"], normalize=5),
        lambda e: e.encode(["a"], normalize=np.array([True, True])),
        lambda e: e.encode(["a"], truncate_dim=0),
        lambda e: e.encode(["a"], truncate_dim=385),
        lambda e: e.encode(["a"], truncate_dim=True),
        lambda e: e.encode(["a"], prompt="\ud800"),
        lambda e: e.encode(["a"], prompt_name="none such"),
        lambda e: e.encode(["a"], instruction="find"),
        lambda e: e.similarity([], []),
        lambda e: e.similarity(None, None),
        lambda e: e.similarity([["a"]], [["b"]]),
        lambda _: Embedder(5),  # type: ignore[arg-type]
        lambda _: Embedder(gpu_layers="x"),  # type: ignore[arg-type]
        lambda _: Embedder(gpu_layers=2**40),
        lambda _: Embedder(n_batch=1_000_000),
        lambda _: Embedder(prompts=5),  # type: ignore[arg-type]
        lambda _: Embedder(prompts={"a": "\ud800"}),
    ],
)
def test_odd_arguments_are_typed_errors_with_a_message(call: Any, embedder: Embedder) -> None:
    with pytest.raises(EdgeEmbedError) as caught:
        call(embedder)
    assert caught.value.message


def test_a_closed_embedder_says_so_whatever_is_asked() -> None:
    embedder = Embedder()
    embedder.close()
    for call in (lambda: embedder.encode([]), lambda: embedder.tokenize("a"), embedder.__enter__):
        with pytest.raises(EngineClosedError):
            call()


def test_modules_in_the_working_directory_are_not_imported_by_the_probe(tmp_path: Path) -> None:
    for name in ("numpy", "json", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)\n")
    command = [str(Path(sys.executable).with_name("edge-embed")), "embed", "a", "-d", "2"]
    environment = {**os.environ, "EDGE_EMBED_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_that_was_killed_says_nothing_about_the_model(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    info: ModelInfo = embedder.info
    monkeypatch.setattr("edge_embed.engine.child._PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EngineUnavailableError, match="SIGKILL"):
        run_child(info, True)
