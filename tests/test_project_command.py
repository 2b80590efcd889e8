"""``edge-embed project fit``: what it reports and writes, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import Result

from edge_embed import Embedder, keys, projection
from edge_embed.cli import main
from edge_embed.convert.calibrate.texts import TEXTS as CALIBRATION_TEXTS
from edge_embed.gguf_header import read_header
from edge_embed.projection_file import read_projection
from tests.commands import run
from tests.projecting import TEXTS, model


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def fitted(bert_path: Path, texts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("fitted")
    result = run(
        "project", "fit", bert_path, "-f", texts_file, "-o", folder / "p.gguf", "--into", folder / "m.gguf", "--plot",
        folder / "p.png", "--json", "--threads", "1", "--no-progress",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result


def test_fit_reports_what_each_size_costs(fitted: tuple[Path, Result]) -> None:
    folder, result = fitted
    report = json.loads(result.stdout)
    sample = projection.choose(TEXTS)
    assert (len(TEXTS), len(sample.to_fit), len(sample.held_out)) == (
        report["texts_read"], report["texts_fitted"], report["texts_held_out"],
    )  # fmt: skip
    assert [16, 32] == [size["dimensions"] for size in report["sizes"]]
    cut, whole = report["sizes"]
    assert cut["projected"]["overlap"] > cut["plain"]["overlap"]
    assert 1.0 == whole["projected"]["overlap"]
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["m.gguf", "p.gguf", "p.png"]


def test_what_was_fit_is_what_numpy_finds(fitted: tuple[Path, Result], bert: Embedder) -> None:
    found = read_projection(read_header(fitted[0] / "p.gguf"))
    rows_ = bert.encode(list(projection.choose(TEXTS).to_fit)).astype(np.float64)
    _, _, expected = np.linalg.svd(rows_ - rows_.mean(axis=0))
    assert np.abs(np.abs((expected * found.weight).sum(axis=1)) - 1)[:24].max() < 1e-3


def test_uncut_vectors_of_a_fitted_model_keep_their_cosines(fitted: tuple[Path, Result], bert: Embedder) -> None:
    with Embedder(fitted[0] / "m.gguf", n_threads=1) as projected:
        a, b = bert.encode(TEXTS[:20]), projected.encode(TEXTS[:20])
    assert np.abs(a @ a.T - b @ b.T).max() < 1e-5


def test_embed_takes_a_projection_and_show_names_one(fitted: tuple[Path, Result], bert_path: Path) -> None:
    folder, _ = fitted
    result = run("embed", "a cat", "-m", bert_path, "--projection", folder / "p.gguf", "-d", "4", "--threads", "1")
    inside_ = run("embed", "a cat", "-m", folder / "m.gguf", "-d", "4", "--threads", "1")
    assert 4 == len(json.loads(result.stdout)[0])
    assert result.stdout == inside_.stdout
    assert "values to at most 32, mean kept" in run("show", folder / "m.gguf").stdout
    assert {"in": 32, "out": 32, "centered": False} == {
        key: item for key, item in json.loads(run("show", folder / "m.gguf", "--json").stdout)["projection"].items()
        if key != "texts"
    }  # fmt: skip
    assert None is json.loads(run("show", bert_path, "--json").stdout)["projection"]


def test_show_describes_a_projection_by_itself(fitted: tuple[Path, Result]) -> None:
    shown = run("show", fitted[0] / "p.gguf")
    assert "32 values to at most 32, mean kept" in shown.stdout
    assert "is a projection, not a model of its own" in shown.stderr


@pytest.mark.parametrize("command", [main.commands["project"], *main.commands["project"].commands.values()])
def test_the_command_and_its_options_have_help(command: click.Command) -> None:
    assert command.help
    assert command.epilog
    assert "Examples:" in command.epilog
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [] == [option.name for option in options if not (option.help or "").rstrip("]").endswith(".")]


def test_the_help_names_the_sample() -> None:
    assert f"{projection.SAMPLE} by default" in " ".join(run("project", "fit", "-h").stdout.split())


def test_help_loads_no_numpy() -> None:
    code = (
        "import sys\nfrom edge_embed.cli import main\ntry: main(['project', 'fit', '-h'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'llama_cpp', 'edge_embed.convert'} & set(sys.modules)\nsys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


def test_the_table_and_what_should_be_known(bert_path: Path, texts_file: Path, tmp_path: Path) -> None:
    result = run(
        "project", "fit", bert_path, "-f", texts_file, "--into", tmp_path / "m.gguf", "-d", "8", "--sample", "60",
        "--center", "--threads", "1", "--no-progress",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "vectors        32 values to at most 8" in result.stdout
    assert "mean           taken off" in result.stdout
    assert ["1", "2", "4", "8"] == [line.split()[0] for line in result.stdout.splitlines()[-4:]]
    assert "texts are few for 32 values: with 160 or more" in result.stderr
    assert "60 of the texts were used; --sample takes more" in result.stderr
    assert "held out: the figures are rough" in result.stderr
    assert "other programs take m.gguf for the model without the projection" in result.stderr
    assert "mean taken off" in run("show", tmp_path / "m.gguf").stdout


def test_documents_are_what_texts_are_unless_it_is_said(
    texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompts are in the file that is fit on, so they are in the vectors: other prompts give another projection."""
    path = model(tmp_path, more={keys.PROMPT + "document": "green ", keys.PROMPT + "query": "the "})
    made = {}
    for name, options in {"": (), "d": ("--document",), "q": ("--query",), "p": ("--prompt", "the ")}.items():
        out = tmp_path / f"p{name}.gguf"
        done = run("project", "fit", path, "-f", texts_file, "-o", out, *options, "--threads", "1", "--no-progress")
        assert done.exit_code == 0, done.output
        made[name] = out.read_bytes()
    assert made[""] == made["d"] != made["q"] == made["p"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "nowhere to put the projection"),
        (("-o", "x.gguf", "--into", "x.gguf"), 2, "--output and --into are one file"),
        (("-o", "MODEL"), 2, "would replace what is read"),
        (("--into", "MODEL"), 2, "would replace what is read"),
        (("-o", "TEXTS"), 2, "would replace what is read"),
        (("-o", "."), 2, "is not a file"),
        (("-o", "none/x.gguf"), 4, "no such folder"),
        (("-o", "x.gguf", "--plot", "x.svg"), 2, "not a .png"),
        (("-o", "x.gguf", "-d", "33"), 2, "dimensions is 33"),
        (("-o", "x.gguf", "--sample", "20"), 2, "cannot show 32 axes"),
        (("--into", "x.gguf", "--pooling", "cls"), 2, "--into stores no pooling"),
        (("-o", "x.gguf", "--max-tokens", "4", "--truncate", "error"), 2, "tokens, and the limit is 4"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    bert_path: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...],
    code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(bert_path), "TEXTS": str(texts_file)}
    result = run("project", "fit", bert_path, "-f", texts_file, *(places.get(o, o) for o in options), "--threads", "1")
    assert (code, True) == (result.exit_code, message in result.stderr), result.output
    assert [] == list(tmp_path.iterdir())


def test_a_model_that_holds_one_is_not_fit_again(fitted: tuple[Path, Result], texts_file: Path, tmp_path: Path) -> None:
    result = run("project", "fit", fitted[0] / "m.gguf", "-f", texts_file, "-o", tmp_path / "p.gguf")
    assert 3 == result.exit_code
    assert "holds a projection already" in result.stderr


def test_an_interrupt_leaves_nothing(
    bert_path: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While embedding, and while a copy is written."""
    arguments = ("project", "fit", bert_path, "-f", texts_file, "--into", tmp_path / "m.gguf", "--no-progress")
    for target in ("edge_embed.projection.fit", "edge_embed.convert.container.output.GGUFOutput.write"):
        with monkeypatch.context() as patch:
            patch.setattr(target, interrupt)
            result = run(*arguments, "--threads", "1")
        assert (130, "interrupted\n") == (result.exit_code, result.stderr), result.output
        assert [] == list(tmp_path.iterdir())


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_the_bundled_model_keeps_more_projected_than_cut(tmp_path: Path) -> None:
    """Real vectors of real texts and their clauses; few, so the sizes are small. benchmarks/projection.py has many."""
    clauses = [clause for text in CALIBRATION_TEXTS for clause in re.split(r"(?<=[.,;:?!。，、])\s*|\n", text)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(text) + "\n" for text in [*CALIBRATION_TEXTS, *clauses]))
    out = tmp_path / "p.gguf"
    result = run("project", "fit", "all-minilm-l6-v2", "-f", texts, "-o", out, "-d", "64", "--json", "--no-progress")
    assert result.exit_code == 0, result.output
    for size in json.loads(result.stdout)["sizes"]:
        assert size["projected"]["overlap"] > size["plain"]["overlap"] + 0.03
        assert size["projected"]["drift"] < size["plain"]["drift"] - 0.02
    with Embedder(projection=out) as embedder, Embedder() as plain:
        assert (2, 16) == embedder.encode(["a cat", "a bank"], truncate_dim=16).shape
        expected = plain.encode(["a cat", "a bank"]) @ read_projection(read_header(out)).weight.T
        assert np.abs(expected - embedder.encode(["a cat", "a bank"], normalize=False)).max() < 1e-5
