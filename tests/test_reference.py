"""The NumPy forward passes against transformers' own, recorded in float32 (``tests/families/reference.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from edge_embed.convert import reference
from edge_embed.convert.checkpoint import Checkpoint
from edge_embed.convert.reference import ops
from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from tests import families, oracle
from tests.checkpoints import build_tiny_bert, build_tiny_qwen3, write_safetensors
from tests.converting import edited
from tests.families import reference as tiny
from tests.golden_texts import TEXTS
from tests.make_golden import GOLDEN

STATES = [case for case in tiny.CASES if "scores" not in case and "words" not in case]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return families.golden(tiny.NAME)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("case", STATES)
def test_hidden_states_are_transformers(case: str, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    with Checkpoint(tiny.build(tmp_path, case)) as checkpoint:
        found = reference.hidden_states(checkpoint, ops.Tokens.pack(tiny.texts()))
    assert found.dtype == np.float32
    assert cosines(found, golden[case]).min() > 0.9999995
    assert np.abs(found - golden[case]).max() < 3e-5


@pytest.mark.parametrize("case", [case for case in tiny.CASES if case not in STATES])
def test_scores_are_transformers(case: str, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    tokens = ops.Tokens.pack(tiny.texts())
    with Checkpoint(tiny.build(tmp_path, case)) as checkpoint:
        if "words" in case:
            found = reference.word_scores(checkpoint, tokens, tiny.WORDS)
        else:
            found = reference.label_scores(checkpoint, tokens)
    assert found.shape == golden[case].shape
    assert np.abs(found - golden[case]).max() < 3e-5


@pytest.mark.parametrize(
    ("model", "pooling", "limit"), [("minilm", "mean", 256), ("tiny_bert", "cls", 128), ("tiny_qwen3", "last", 2048)]
)
def test_vectors_of_real_texts_are_transformers(model: str, pooling: Any, limit: int, tmp_path: Path) -> None:
    """The real MiniLM and two fixtures, from text to unit vector, many scripts and lengths."""
    build = {
        "minilm": oracle.minilm_folder,
        "tiny_bert": lambda: build_tiny_bert(tmp_path, pooling="cls"),
        "tiny_qwen3": lambda: build_tiny_qwen3(tmp_path),
    }[model]
    folder = build()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    with Checkpoint(folder) as checkpoint, np.load(GOLDEN) as golden:
        tokens = ops.Tokens.pack([tokenizer.encode(text).ids for text in TEXTS])
        found = reference.vectors(checkpoint, tokens, pooling=pooling, normalize=True)
        assert cosines(found, golden[model]).min() > 0.999999
        assert np.abs(found - golden[model]).max() < 1e-5


def test_dense_modules_come_behind_the_pooling(tmp_path: Path) -> None:
    """Two of them, the first with bias and tanh: computed here by hand."""
    build_tiny_bert(tmp_path, hidden=8, heads=2, layers=1)
    random = np.random.default_rng(0)
    first, bias, second = (random.standard_normal(s).astype(np.float32) for s in ((6, 8), (6,), (5, 6)))
    modules = json.loads((tmp_path / "modules.json").read_text("utf-8"))
    for path, weights, tanh in (
        ("2_Dense", {"linear.weight": first, "linear.bias": bias}, "torch.nn.modules.activation.Tanh"),
        ("3_Dense", {"linear.weight": second}, "torch.nn.modules.linear.Identity"),
    ):
        (tmp_path / path).mkdir()
        sizes = {"in_features": weights["linear.weight"].shape[1], "out_features": len(weights["linear.weight"])}
        edited(tmp_path / path / "config.json", bias="linear.bias" in weights, activation_function=tanh, **sizes)
        write_safetensors(tmp_path / path / "model.safetensors", weights)
        modules.insert(-1, {"path": path, "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules), "utf-8")
    tokens = ops.Tokens.pack([[2, 9, 11, 3], [2, 3]])
    with Checkpoint(tmp_path) as checkpoint:
        pooled = reference.vectors(checkpoint, tokens, pooling="mean", normalize=False)
        found = reference.vectors(checkpoint, tokens, pooling="mean", normalize=True, modules=tmp_path)
    expected = np.tanh(pooled @ first.T + bias) @ second.T
    assert np.allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_texts_do_not_see_each_other(tmp_path: Path) -> None:
    """Packed or alone, a text has the same hidden states."""
    with Checkpoint(tiny.build(tmp_path, "gemma3")) as checkpoint:
        packed = reference.hidden_states(checkpoint, ops.Tokens.pack(tiny.texts()))
        alone = [reference.hidden_states(checkpoint, ops.Tokens.pack([text])) for text in tiny.texts()]
    assert np.allclose(packed, np.concatenate(alone), atol=1e-5)


def test_weights_are_read_once_and_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of 100 values is 3 rows of 32: no read is larger, and no row is read twice."""
    monkeypatch.setattr(ops, "SLICE_VALUES", 100)
    with Checkpoint(tiny.build(tmp_path, "qwen3")) as checkpoint:
        reads: list[tuple[str, int, int]] = []
        read = checkpoint.read_rows

        def watched(ref: Any, first: int, count: int) -> Any:
            reads.append((ref.name, first, count * ref.n_cols))
            return read(ref, first, count)

        monkeypatch.setattr(checkpoint, "read_rows", watched)
        reference.hidden_states(checkpoint, ops.Tokens.pack(tiny.texts()))
    assert max(size for _, _, size in reads) <= 100
    places = [(name, first) for name, first, _ in reads]
    assert len(places) == len(set(places))


def test_erf_is_exact_to_float32() -> None:
    import math

    x = np.linspace(-6, 6, 4001, dtype=np.float32)
    exact = np.array([v * 0.5 * (1 + math.erf(v / 2**0.5)) for v in x.tolist()])
    assert np.abs(ops.gelu(x) - exact).max() < 1e-6


@pytest.mark.parametrize(
    ("case", "fields", "error", "message"),
    [
        ("bert", {"model_type": "deberta"}, UnsupportedCheckpointError, "no reference for model_type 'deberta'"),
        ("bert", {"hidden_act": "mish"}, UnsupportedCheckpointError, "hidden_act is 'mish'"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, UnsupportedCheckpointError, "rope_type 'yarn'"),
        ("qwen3", {"num_hidden_layers": 3}, CheckpointError, "'layers.2.input_layernorm.weight' is missing"),
        ("bert", {"vocab_size": 0, "hidden_size": None}, CheckpointError, "'hidden_size' is missing"),
    ],
)
def test_what_is_not_computed_is_refused(
    case: str, fields: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    edited(tiny.build(tmp_path, case) / "config.json", **fields)
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(error, match=message):
        reference.hidden_states(checkpoint, ops.Tokens.pack(tiny.texts()))


@pytest.mark.parity
def test_recorded_states_are_what_transformers_computes_now(golden: dict[str, np.ndarray]) -> None:
    for case, found in tiny.record().items():
        assert np.abs(found - golden[case]).max() < 1e-5, case
