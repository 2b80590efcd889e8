"""Which type each tensor gets, and its bytes: against gguf-py's and llama.cpp's own quantizers."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf.quants
import llama_cpp
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_embed import errors, keys
from edge_embed.convert import FTYPES, convert
from edge_embed.convert.blocks import ggml
from edge_embed.convert.blocks.rows import chunks, encode_rows, in_order, tensor_bytes
from edge_embed.convert.blocks.types import RECIPES, Traits, recipe_named, tensor_type
from edge_embed.convert.quantize import quantize
from tests.checkpoints import build_tiny_bert
from tests.converting import metadata, small_qwen3, tensors
from tests.families import modern_bert

BLOCK_KINDS = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "IQ4_XS", "IQ4_NL", "Q4_1", "Q4_0", "Q3_K")
LAYERS = 20  # enough for every rule of the mixes: a sixteenth, an eighth, and every third layer between


def rows(n_rows: int, n_cols: int, seed: int = 0) -> np.ndarray:
    """Random weights with rows of very different sizes, a zero row and ties among them."""
    random = np.random.default_rng(seed)
    values = (random.standard_normal((n_rows, n_cols)) * 10.0 ** random.uniform(-6, 3, (n_rows, 1))).astype(np.float32)
    values[0] = 0
    values[-1, ::2] = values[-1, 0]
    return values


# ---------------------------------------------------------------- bytes of one tensor


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_bytes_are_those_of_gguf_py(kind: str) -> None:
    values = rows(64, 256)
    assert encode_rows(values, Kind[kind], "w") == gguf.quants.quantize(values, Kind[kind]).tobytes()


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_blocks_hold_the_values(kind: str) -> None:
    """Read back by gguf-py; the error of a row is bounded by the bits that it has."""
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    data = np.frombuffer(encode_rows(values, Kind[kind], "w"), np.uint8)
    assert data.nbytes == tensor_bytes(Kind[kind], values.shape)
    back = gguf.quants.dequantize(data.reshape(64, -1), Kind[kind])
    error = np.linalg.norm(back - values, axis=1) / np.linalg.norm(values, axis=1)
    bits = 8 * GGML_QUANT_SIZES[Kind[kind]][1] / GGML_QUANT_SIZES[Kind[kind]][0]
    assert error.max() < 2.0 ** (1.7 - bits) + 2.0**-11


@given(
    arrays.arrays(
        np.float32,
        (2, 32),
        elements=st.floats(-60000, 60000, width=32),
    )
)
def test_any_values_become_gguf_pys_bytes(values: np.ndarray) -> None:
    for kind in (Kind.F16, Kind.BF16, Kind.Q8_0):
        assert encode_rows(values, kind, "w") == gguf.quants.quantize(values, kind).tobytes()


@pytest.mark.parametrize("value", [65505.0, 1e6, -3e38])
def test_a_value_beyond_float16_is_refused(value: float) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 3] = value
    with pytest.raises(errors.CheckpointError, match=r"w has a value of magnitude .*, which F16 cannot hold"):
        encode_rows(values, Kind.F16, "w")
    assert np.isfinite(
        gguf.quants.dequantize(np.frombuffer(encode_rows(values, Kind.BF16, "w"), np.uint8), Kind.BF16)
    ).all()


def test_the_largest_values_of_each_type_are_kept() -> None:
    for kind, largest in ((Kind.F16, 65504.0), (Kind.BF16, float.fromhex("0x1.fep127"))):
        values = np.full((1, 32), largest, np.float32)
        back = gguf.quants.dequantize(np.frombuffer(encode_rows(values, kind, "w"), np.uint8), kind)
        assert (back == values).all()


def test_a_value_that_would_round_to_infinity_in_bfloat16_is_refused() -> None:
    values = np.full((1, 32), np.finfo(np.float32).max, np.float32)
    with pytest.raises(errors.CheckpointError, match="BF16"):
        encode_rows(values, Kind.BF16, "w")
    assert encode_rows(values, Kind.F32, "w") == values.tobytes()


@pytest.mark.parametrize("value", [3e38, -3e38, 1e20, 1e13, 1e12, 1.1e9, 9e8, -3e8])
@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_a_value_that_no_block_can_hold_is_refused(kind: str, value: float) -> None:
    """A block's scale is a float16: an infinite one would make every value NaN, and K-quants' search gives zeros."""
    values = rows(4, 256)
    values[2, 100] = value
    with pytest.raises(errors.CheckpointError, match=rf"^w has .*{kind}"):
        encode_rows(values, Kind[kind], "w")


def test_the_c_function_is_not_called_with_what_it_would_not_check() -> None:
    good = rows(2, 256)
    for bad in (good.astype(np.float64), good[0], good[:, ::2], good[:, :31].copy()):
        with pytest.raises(ValueError, match=r"values must be|do not divide"):
            ggml.quantize(bad, Kind.Q8_0)


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_threads_may_quantize_at_once(kind: str) -> None:
    values = rows(64, 256)
    expected = encode_rows(values, Kind[kind], "w")
    found = list(in_order((lambda: encode_rows(values, Kind[kind], "w") for _ in range(16)), 4))
    assert found == [expected] * 16


# ---------------------------------------------------------------- which type


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with many narrow layers, and one of rows that K-quants do not divide."""
    folder = tmp_path_factory.mktemp("types")
    return {
        "qwen3": small_qwen3(folder / "qwen3", hidden=256, layers=LAYERS, heads=2, kv_heads=1, head_dim=128),
        "bert": build_tiny_bert(folder / "bert", hidden=256, layers=3, vocab=None),
        "narrow": build_tiny_bert(folder / "narrow", hidden=96, layers=10),
        "modern_bert": modern_bert.build(folder / "modern_bert", hidden=256, layers=9, ffn=256),  # attn_qkv
    }


def by_llama_cpp(source: Path, target: Path, ftype: int) -> Path:
    """Quantize a GGUF with ``llama_model_quantize``, as the command line tool of llama.cpp does."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return target


@pytest.mark.parametrize("model", ["qwen3", "bert", "narrow", "modern_bert"])
def test_every_type_is_llama_cpps_own_byte_for_byte(model: str, exact: dict[str, Path], tmp_path: Path) -> None:
    """``llama_model_quantize`` of the float32 file and one pass of ours: the same type and bytes of every tensor."""
    f32 = convert(exact[model], tmp_path / "f32.gguf", ftype="f32").path
    for ftype in FTYPES[1:]:
        ours = tensors(convert(exact[model], tmp_path / "ours.gguf", ftype=ftype).path)
        reference = by_llama_cpp(f32, tmp_path / "reference.gguf", int(RECIPES[ftype].file_type))
        theirs = tensors(reference)
        assert {n: t.tensor_type.name for n, t in ours.items()} == {n: t.tensor_type.name for n, t in theirs.items()}
        assert [n for n in ours if ours[n].data.tobytes() != theirs[n].data.tobytes()] == [], ftype
        assert metadata(reference)["general.file_type"] == RECIPES[ftype].file_type


@pytest.mark.parametrize("ftype", FTYPES)
def test_norms_biases_and_positions_stay_float32(ftype: str, exact: dict[str, Path], tmp_path: Path) -> None:
    report = convert(exact["bert"], tmp_path / "m.gguf", ftype=ftype)
    small = [t for t in report.tensors if len(t.shape) == 1 or t.name in ("position_embd.weight", "token_types.weight")]
    assert len(small) == 4 + 3 * 10
    assert {t.got for t in small} == {"F32"}


@pytest.mark.parametrize(("ftype", "bits"), [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q6_k", 6.5625)])
def test_size_of_uniform_types(ftype: str, bits: float, exact: dict[str, Path], tmp_path: Path) -> None:
    report = convert(exact["qwen3"], tmp_path / "m.gguf", ftype=ftype)
    matrices = [t for t in report.tensors if len(t.shape) == 2]
    assert {8 * t.nbytes / np.prod(t.shape) for t in matrices} == {bits}
    assert report.fallbacks == ()


@pytest.mark.parametrize(
    ("asked", "n_cols", "got"),
    [
        ("q8_0", 96, "Q8_0"),
        ("q8_0", 100, "F16"),
        ("q4_0", 96, "Q4_0"),
        ("q4_0", 33, "F16"),
        ("q6_k", 384, "Q8_0"),
        ("q5_k_s", 384, "Q5_1"),
        ("q4_k_s", 384, "Q5_0"),
        ("q3_k_m", 384, "Q4_0"),
        ("q6_k", 100, "F16"),
        ("q4_k_m", 100, "F16"),
        ("f16", 1, "F16"),
        ("bf16", 7, "BF16"),
        ("f32", 7, "F32"),
    ],
)
def test_rows_that_do_not_divide_into_blocks_fall_back(asked: str, n_cols: int, got: str) -> None:
    found = tensor_type(recipe_named(asked), "blk.9.attn_q.weight", (8, n_cols), Traits(12))
    assert found.got == Kind[got]
    block = GGML_QUANT_SIZES[found.asked][0]
    assert found.why == ("" if found.asked == found.got else f"rows of {n_cols} do not divide by {block}")


def test_fallbacks_are_in_the_report_and_in_the_file(exact: dict[str, Path], tmp_path: Path) -> None:
    report = convert(exact["narrow"], tmp_path / "m.gguf", ftype="q4_k_m")
    lines = metadata(report.path)[keys.FALLBACKS]
    assert lines == [f"{t.name}: {t.asked} -> {t.got} ({t.why})" for t in report.fallbacks]
    assert "token_embd.weight: Q6_K -> Q8_0 (rows of 96 do not divide by 256)" in lines
    assert "blk.0.attn_q.weight: Q4_K -> Q5_0 (rows of 96 do not divide by 256)" in lines


# ---------------------------------------------------------------- other types for some tensors


def test_overrides_apply_to_matrices_the_first_match_first(exact: dict[str, Path], tmp_path: Path) -> None:
    report = convert(
        exact["bert"],
        tmp_path / "m.gguf",
        ftype="q4_k_m",
        overrides=[("attn_v", "F16"), (r"blk\.1\.", "q8_0"), ("token_embd", "bf16")],
    )
    got = {t.name: t.got for t in report.tensors}
    assert {got[f"blk.{i}.attn_v.weight"] for i in range(3)} == {"F16"}
    assert got["blk.1.attn_q.weight"] == got["blk.1.ffn_down.weight"] == "Q8_0"
    assert got["blk.0.attn_q.weight"] == "Q4_K"
    assert got["token_embd.weight"] == "BF16"
    assert got["blk.1.attn_v.bias"] == got["blk.1.layer_output_norm.weight"] == got["token_embd_norm.weight"] == "F32"
    assert metadata(report.path)[keys.RECIPE] == report.ftype == r"q4_k_m attn_v=f16 blk\.1\.=q8_0 token_embd=bf16"
    assert metadata(report.path)["general.file_type"] == RECIPES["q4_k_m"].file_type


def test_a_pattern_that_is_found_nowhere_is_said(exact: dict[str, Path], tmp_path: Path) -> None:
    overrides = [("attn_v", "f16"), ("atn_v", "q8_0"), ("_norm", "f16")]
    notes = tuple(f"{entry} changes nothing: no matrix has such a name" for entry in ("atn_v=q8_0", "_norm=f16"))
    first = convert(exact["bert"], tmp_path / "m.gguf", ftype="f32", overrides=overrides)
    assert first.notes == notes
    assert quantize(first.path, tmp_path / "q.gguf", ftype="q8_0", overrides=overrides).notes == notes


def test_an_override_falls_back_too(exact: dict[str, Path], tmp_path: Path) -> None:
    report = convert(exact["narrow"], tmp_path / "m.gguf", ftype="f16", overrides=[("ffn_up", "q4_k")])
    assert {(t.asked, t.got) for t in report.fallbacks} == {("Q4_K", "Q5_0")}
    assert len(report.fallbacks) == 10


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *BLOCK_KINDS])
def test_every_tensor_type_can_be_asked_for(kind: str, exact: dict[str, Path], tmp_path: Path) -> None:
    report = convert(exact["bert"], tmp_path / "m.gguf", ftype="f16", overrides=[("blk", kind.lower())])
    assert {t.got for t in report.tensors if len(t.shape) == 2 and t.name.startswith("blk")} == {kind}


@pytest.mark.parametrize("name", ["", "q4", "q4_k", "int8", "Q8_0 "])
def test_an_unknown_type_names_the_known_ones(name: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match="q4_k_m"):
        recipe_named(name)


@pytest.mark.parametrize("kind", ["", "q4_k_m", "iq3_s", "I32", "q2_k"])
def test_an_unknown_tensor_type_names_the_known_ones(kind: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match="q8_0, q6_k"):
        recipe_named("f16", [("attn_v", kind)])


# ---------------------------------------------------------------- chunks and threads


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_chunks_cover_all_rows_once_within_the_bound(n_rows: int, n_cols: int) -> None:
    n_rows = min(n_rows, 10**9 // n_cols)
    found = list(chunks(n_rows, n_cols))
    assert [first for first, _ in found] == list(np.cumsum([0, *(count for _, count in found)])[:-1])
    assert sum(count for _, count in found) == n_rows
    assert all(1 <= count <= max(1, 2**20 // n_cols) for _, count in found)


def test_results_come_in_the_jobs_order_with_few_in_flight() -> None:
    begun: list[int] = []

    def jobs() -> Iterator[Callable[[], bytes]]:
        for i in range(50):
            begun.append(i)
            yield lambda i=i: (time.sleep(0.001 * (i % 3)), b"%d" % i)[1]

    for number, result in enumerate(in_order(jobs(), 3)):
        assert result == b"%d" % number
        assert len(begun) <= number + 1 + 2 * 3


def test_the_first_failure_in_order_is_raised_and_the_rest_is_dropped() -> None:
    ran: list[int] = []

    def job(i: int) -> bytes:
        ran.append(i)
        if i >= 5:
            raise errors.CheckpointError(f"job {i}")
        return b""

    with pytest.raises(errors.CheckpointError, match="job 5"):
        list(in_order((lambda i=i: job(i) for i in range(1000)), 2))
    assert len(ran) < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("quantize")]


def test_no_thread_outlives_a_conversion_that_failed(exact: dict[str, Path], tmp_path: Path) -> None:
    """Even while the exception, and with it every frame, is still held."""

    def stop(*_: Any) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough") as held:
        convert(exact["bert"], tmp_path / "m.gguf", threads=4, progress=stop)
    assert held.value.__traceback__ is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("quantize")]


# ---------------------------------------------------------------- the library


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A converter that has not loaded ggml yet."""
    yield monkeypatch
    ggml.prepare.cache_clear()
    ggml._library.cache_clear()


def test_a_library_that_is_none_is_an_error(forgotten: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ggml._library.cache_clear()
    ggml.prepare.cache_clear()
    forgotten.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(errors.EngineUnavailableError, match="no ggml-base library in"):
        ggml.prepare(Kind.Q8_0)
    (tmp_path / ggml.NAMES[0]).write_bytes(b"not a library")
    with pytest.raises(errors.EngineUnavailableError, match="cannot be used"):
        ggml.prepare(Kind.Q8_0)


def test_another_block_layout_is_an_error(forgotten: pytest.MonkeyPatch) -> None:
    ggml.prepare.cache_clear()
    forgotten.setitem(ggml.GGML_QUANT_SIZES, Kind.Q8_0, (32, 36))
    with pytest.raises(errors.EngineUnavailableError, match="expected"):
        ggml.prepare(Kind.Q8_0)


def test_every_type_is_known_to_the_library() -> None:
    for kind in BLOCK_KINDS:
        ggml.prepare(Kind[kind])
        assert ggml.row_bytes(Kind[kind], 256) == tensor_bytes(Kind[kind], (1, 256))
