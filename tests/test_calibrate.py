"""Calibration: what goes into each weight matrix, counted and squared as NumPy does it, framed as the model sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_embed import Embedder, errors
from edge_embed.cli import main
from edge_embed.convert import convert
from edge_embed.convert.calibrate import calibrate
from edge_embed.convert.calibrate.imatrix import ImportanceMatrix, read_imatrix
from edge_embed.convert.calibrate.texts import TEXTS
from edge_embed.engine.observe import Observer
from tests.checkpoints import build_tiny_bert
from tests.converting import metadata, small_qwen3, tensors

SOME = ["a cat on the street", "how many books are there", "the old house near the river was red", "yes"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    return convert(build_tiny_bert(folder / "c"), folder / "m.gguf", ftype="f32").path


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    return convert(small_qwen3(folder / "c"), folder / "m.gguf", ftype="f32").path


def measured(model: Path, texts: list[str], folder: Path) -> ImportanceMatrix:
    calibrate(model, texts, folder / "imatrix.gguf", dataset="some.txt", threads=1)
    return read_imatrix(folder / "imatrix.gguf")


def test_an_encoders_inputs_are_those_of_numpy(bert: Path, tmp_path: Path) -> None:
    """The first layer sees the normalized sum of the three embeddings, of every token of every text."""
    matrix = measured(bert, SOME, tmp_path)
    weights = {name: np.array(tensor.data, np.float64) for name, tensor in tensors(bert).items()}
    with Embedder(bert) as embedder:
        ids = [embedder.tokenize(text).token_ids for text in SOME]
    rows = (
        np.concatenate([weights["token_embd.weight"][i] + weights["position_embd.weight"][: len(i)] for i in ids])
        + weights["token_types.weight"][0]
    )
    rows = (rows - rows.mean(axis=1, keepdims=True)) / np.sqrt(rows.var(axis=1, keepdims=True) + 1e-12)
    rows = rows * weights["token_embd_norm.weight"] + weights["token_embd_norm.bias"]
    for part in ("attn_q", "attn_k", "attn_v"):
        found = matrix.columns[f"blk.0.{part}.weight"]
        assert found.count == len(rows)
        np.testing.assert_allclose(found.sums, (rows**2).sum(axis=0), rtol=1e-3)
    assert {c.count for c in matrix.columns.values()} == {len(rows)}


def test_a_decoders_inputs_are_those_of_numpy_in_every_framing(qwen3: Path, tmp_path: Path) -> None:
    """The first layer sees the normalized embeddings; the last one's upper half only what the vectors are read from."""
    matrix = measured(qwen3, SOME, tmp_path)
    found = metadata(qwen3)
    weights = {name: np.array(tensor.data, np.float64) for name, tensor in tensors(qwen3).items()}
    with Embedder(qwen3) as embedder:
        prompts = [embedder.prompts["query"], embedder.prompts.get("document", "")]
        ids = [embedder.tokenize(prompt + text).token_ids for prompt in prompts for text in SOME]
    assert prompts[0] != prompts[1]
    rows = weights["token_embd.weight"][np.concatenate(ids)]
    rows = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + found["qwen3.attention.layer_norm_rms_epsilon"])
    rows = rows * weights["blk.0.attn_norm.weight"]
    first = matrix.columns["blk.0.attn_q.weight"]
    assert first.count == len(rows)
    np.testing.assert_allclose(first.sums, (rows**2).sum(axis=0), rtol=1e-3)
    last = found["qwen3.block_count"] - 1
    assert matrix.columns[f"blk.{last}.ffn_up.weight"].count == 2 * len(SOME)
    assert matrix.columns[f"blk.{last}.attn_k.weight"].count == len(rows)


def test_the_file_says_what_it_was_measured_on(bert: Path, tmp_path: Path) -> None:
    report = calibrate(bert, [*SOME, SOME[0], " ", ""], tmp_path / "i.gguf", dataset="some.txt", threads=1)
    matrix = read_imatrix(tmp_path / "i.gguf")
    assert (report.n_texts, report.framings) == (len(SOME), ("document",))
    assert (matrix.datasets, matrix.chunk_count) == (("some.txt",), len(SOME))
    assert matrix.chunk_size == round(report.n_tokens / len(SOME))
    assert set(matrix.columns) == {
        name for name, t in tensors(bert).items() if name.startswith("blk.") and len(t.shape) == 2
    }
    first = (tmp_path / "i.gguf").read_bytes()
    calibrate(bert, SOME, tmp_path / "i.gguf", dataset="some.txt", threads=1)
    assert (tmp_path / "i.gguf").read_bytes() == first


def test_calibrated_bits_are_closer_in_what_the_matrices_compute(bert: Path, tmp_path: Path) -> None:
    """What a matrix makes of its inputs has a smaller error than without, in the sum that the quantizer weighs."""
    matrix = measured(bert, SOME, tmp_path)
    exact = tensors(bert)
    errors_of = []
    for imatrix in (None, tmp_path / "imatrix.gguf"):
        from edge_embed.convert.gguf_source import GGUFSource
        from edge_embed.convert.quantize import quantize

        path = quantize(bert, tmp_path / "q.gguf", ftype="q4_0", imatrix=imatrix).path
        total = 0.0
        with GGUFSource(path) as source:
            for name, columns in matrix.columns.items():
                tensor = source.header.tensors[name]
                difference = source.rows(tensor, 0, tensor.shape[1]) - exact[name].data
                total += float((difference**2 @ (columns.sums / columns.count)).sum())
        errors_of.append(total)
    assert errors_of[1] < 0.97 * errors_of[0]


def test_there_must_be_texts(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidOptionError, match="no texts"):
        calibrate(bert, ["", "  "], tmp_path / "i.gguf")
    assert not (tmp_path / "i.gguf").exists()


def test_what_fails_inside_the_callback_is_raised(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception cannot pass through C; it must not be lost there either."""

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("edge_embed.engine.observe.InputObserver.saw", fail)
    with pytest.raises(MemoryError, match="no room"):
        calibrate(bert, SOME, tmp_path / "i.gguf", threads=1)
    assert not (tmp_path / "i.gguf").exists()


def test_another_layout_of_tensors_is_refused(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_embed.engine.observe._span", lambda _: 0)
    with pytest.raises(errors.EngineUnavailableError, match="lays out its tensors differently"):
        calibrate(bert, SOME, tmp_path / "i.gguf", threads=1)
    assert Observer.wants.__doc__


def test_the_built_in_texts() -> None:
    assert len(TEXTS) >= 100
    assert len(set(TEXTS)) == len(TEXTS)
    scripts = {chr(ord(c) // 128 * 128) for text in TEXTS for c in text if c.isalpha()}
    assert len(scripts) > 30


def test_the_command(bert: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SOME), "utf-8")
    arguments = ["calibrate", str(bert), "-f", str(texts), "-o", str(tmp_path / "i.gguf"), "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "4 (as document)" in result.output
    assert read_imatrix(tmp_path / "i.gguf").datasets == ("texts.txt",)
    quantized = [
        "quantize",
        str(bert),
        str(tmp_path / "q.gguf"),
        "--type",
        "q4_0",
        "--imatrix",
        str(tmp_path / "i.gguf"),
    ]
    result = CliRunner().invoke(main, quantized)
    assert result.exit_code == 0, result.output
    assert metadata(tmp_path / "q.gguf")["quantize.imatrix.file"] == "i.gguf"
