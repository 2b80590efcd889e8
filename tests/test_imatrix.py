"""Importance matrices: llama.cpp's format read and written, and its bytes with every type."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from edge_embed import errors, keys
from edge_embed.convert import FTYPES, convert
from edge_embed.convert.blocks import ggml
from edge_embed.convert.blocks.types import RECIPES
from edge_embed.convert.calibrate.imatrix import Columns, ImportanceMatrix, read_imatrix, write_imatrix
from edge_embed.convert.quantize import quantize
from tests.checkpoints import build_tiny_bert
from tests.converting import metadata, small_qwen3, tensors
from tests.test_quantize import LAYERS
from tests.test_verify import Entries, Tensors, rewritten


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Many layers, for the rules of the mixes; four query heads for each key, for IQ4_XS's; rows of 96."""
    folder = tmp_path_factory.mktemp("imatrix")
    return {
        "qwen3": small_qwen3(folder / "qwen3", hidden=256, layers=LAYERS, heads=4, kv_heads=1, head_dim=64),
        "narrow": build_tiny_bert(folder / "narrow", hidden=96, layers=10),
    }


def random_matrix(model: Path, *, missing: str = "\0") -> ImportanceMatrix:
    """Importance of each column of each matrix in the layers, of very different sizes, a column of zeros among them."""
    random = np.random.default_rng(1)
    columns = {}
    for name, tensor in tensors(model).items():
        if name.startswith("blk.") and name.endswith(".weight") and len(tensor.shape) == 2 and missing not in name:
            sums = (10.0 ** random.uniform(-4, 4, tensor.shape[0])).astype(np.float32)
            sums[7] = 0
            columns[name] = Columns(sums, 37.0)
    return ImportanceMatrix("imatrix.gguf", columns, ("texts.txt",), 4, 128)


def by_llama_cpp(source: Path, target: Path, ftype: int, matrix: ImportanceMatrix) -> Path:
    """Quantize with ``llama_model_quantize``, given the quotients as llama.cpp's tool computes them."""
    arrays = {name: c.sums / np.float32(c.count) for name, c in matrix.columns.items()}
    struct = llama_cpp.llama_cpp.llama_model_imatrix_data
    entries = (struct * (len(arrays) + 1))()
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = ctypes.cast(values.ctypes.data, dict(struct._fields_)["data"])
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 2
    params.imatrix = ctypes.cast(entries, dict(type(params)._fields_)["imatrix"])
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return target


@pytest.mark.parametrize("model", ["qwen3", "narrow"])
def test_every_type_with_a_matrix_is_llama_cpps_own_byte_for_byte(
    model: str, exact: dict[str, Path], tmp_path: Path
) -> None:
    f32 = convert(exact[model], tmp_path / "f32.gguf", ftype="f32").path
    matrix = random_matrix(f32, missing="blk.1.attn_k")
    write_imatrix(tmp_path / "imatrix.gguf", matrix)
    changed = []
    for ftype in FTYPES[1:]:
        report = convert(exact[model], tmp_path / "ours.gguf", ftype=ftype, imatrix=tmp_path / "imatrix.gguf")
        ours = tensors(report.path)
        theirs = tensors(by_llama_cpp(f32, tmp_path / "theirs.gguf", int(RECIPES[ftype].file_type), matrix))
        assert {n: t.tensor_type.name for n, t in ours.items()} == {n: t.tensor_type.name for n, t in theirs.items()}
        assert [n for n in ours if ours[n].data.tobytes() != theirs[n].data.tobytes()] == [], ftype
        plain = tensors(convert(exact[model], tmp_path / "plain.gguf", ftype=ftype).path)
        if any(ours[n].data.tobytes() != plain[n].data.tobytes() for n in ours):
            changed.append(ftype)
    nothing_to_choose = {"f32", "f16", "bf16", "q8_0"} | (
        {"q6_k"} if model == "narrow" else set()
    )  # falls back to Q8_0
    assert set(changed) == set(FTYPES) - nothing_to_choose


def test_what_has_no_entry_is_named_and_the_file_says_what_it_was_made_with(
    exact: dict[str, Path], tmp_path: Path
) -> None:
    f32 = convert(exact["qwen3"], tmp_path / "f32.gguf", ftype="f32").path
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, random_matrix(f32, missing="attn_k.weight"))
    report = convert(exact["qwen3"], tmp_path / "m.gguf", ftype="q4_k_m", imatrix=path)
    (note,) = [sentence for sentence in report.notes if "imatrix.gguf" in sentence]
    assert f"no entry for {LAYERS + 1} of the {7 * LAYERS + 1} quantized tensors (token_embd.weight" in note
    found = metadata(report.path)
    assert found["quantize.imatrix.file"] == "imatrix.gguf"
    assert found["quantize.imatrix.dataset"] == "texts.txt"
    assert found["quantize.imatrix.entries_count"] == 6 * LAYERS
    assert found["quantize.imatrix.chunks_count"] == 4
    assert found[keys.IMATRIX_SHA256] == read_imatrix(path).sha256


def test_a_matrix_that_has_no_part_in_a_file_is_not_recorded_there(exact: dict[str, Path], tmp_path: Path) -> None:
    f32 = convert(exact["narrow"], tmp_path / "f32.gguf", ftype="f32").path
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, random_matrix(f32))
    report = convert(exact["narrow"], tmp_path / "f16.gguf", ftype="f16", imatrix=path)
    assert report.notes[-1] == "imatrix.gguf has no part in the file: nothing in it is quantized"
    assert recorded(report.path) == []
    quantized = quantize(f32, tmp_path / "q.gguf", ftype="q4_0", imatrix=path).path
    assert len(recorded(quantized)) == 5
    again = quantize(quantized, tmp_path / "again.gguf", ftype="q5_k_m", allow_requantize=True).path
    assert recorded(again) == recorded(quantized)  # its values still come from there

    def claim(entries: Entries, _: Tensors) -> None:
        entries["quantize.imatrix.file"] = ("other.gguf", gguf.GGUFValueType.STRING, None)

    claims = rewritten(f32, tmp_path / "claims.gguf", claim)
    assert recorded(claims) == ["quantize.imatrix.file"]
    assert recorded(quantize(claims, tmp_path / "plain.gguf", ftype="q4_0").path) == []


def recorded(path: Path) -> list[str]:
    """The keys that speak of an importance matrix."""
    return [key for key in metadata(path) if "imatrix" in key]


def test_what_is_written_is_read_back(exact: dict[str, Path], tmp_path: Path) -> None:
    f32 = convert(exact["narrow"], tmp_path / "f32.gguf", ftype="f32").path
    matrix = random_matrix(f32)
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, matrix)
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("texts.txt",), 4, 128)
    assert found.columns.keys() == matrix.columns.keys()
    for name, columns in matrix.columns.items():
        assert (found.columns[name].sums == columns.sums).all()
        assert found.columns[name].count == columns.count
    assert metadata(path)["general.type"] == "imatrix"
    assert list(tmp_path.glob("*.part")) == []


def written_by_llama_cpp(path: Path, **changes: object) -> Path:
    """As llama-imatrix writes it: no architecture, two-dimensional tensors, the sums of one matrix and their count."""
    values = {"type": "imatrix", "kind": np.float32, "suffix": ".counts", "sum": 2.0, "n_counts": 1, **changes}
    writer = gguf.GGUFWriter(str(path), "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", str(values["type"]))
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    sums = np.full((1, 64), values["sum"], values["kind"])
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", sums)
    writer.add_tensor(f"blk.0.attn_q.weight{values['suffix']}", np.full((values["n_counts"], 1), 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_llama_cpps_own_file_is_read(tmp_path: Path) -> None:
    found = read_imatrix(written_by_llama_cpp(tmp_path / "i.gguf"))
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("wiki.txt",), 3, 512)
    importance = found.importance("blk.0.attn_q.weight", 64)
    assert importance is not None
    assert (importance == 0.5).all()
    assert found.importance("blk.0.attn_k.weight", 64) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "model"}, "not an importance matrix"),
        ({"kind": np.float16}, "is F16, expected F32"),
        ({"suffix": ".count"}, "pair of in_sum2 and counts"),
        ({"sum": -1.0}, "not sums of squares"),
        ({"sum": np.nan}, "not sums of squares"),
        ({"n_counts": 8}, "mixture of experts"),
    ],
)
def test_what_no_inputs_can_give_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelFileError, match=message):
        read_imatrix(written_by_llama_cpp(tmp_path / "i.gguf", **changes))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError):
        read_imatrix(tmp_path / "none.gguf")
    old = tmp_path / "old.dat"
    old.write_bytes(b"\x01\x00\x00\x00\x04\x00\x00\x00blk.")
    with pytest.raises(errors.ModelFileError, match=r"older format"):
        read_imatrix(old)


def test_a_matrix_of_another_model_is_refused_before_anything_is_written(
    exact: dict[str, Path], tmp_path: Path
) -> None:
    narrow = written_by_llama_cpp(tmp_path / "i.gguf")
    for checkpoint, message in ((exact["qwen3"], "has 64 columns, and the tensor has 256"), (exact["narrow"], "96")):
        with pytest.raises(errors.CheckpointError, match=message):
            convert(checkpoint, tmp_path / "m.gguf", ftype="q4_k_m", imatrix=narrow)
    assert not (tmp_path / "m.gguf").exists()


def test_a_count_of_nothing_weighs_all_columns_alike() -> None:
    matrix = ImportanceMatrix("i", {"w": Columns(np.zeros(4, np.float32), 0.0)}, (), 0, 0)
    importance = matrix.importance("w", 4)
    assert importance is not None
    assert (importance == 1).all()


@pytest.mark.parametrize("bad", [np.ones(255, np.float32), np.ones(256), np.ones((1, 256), np.float32)])
def test_the_c_function_is_not_called_with_another_importance(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="importance must be"):
        ggml.quantize(np.ones((2, 256), np.float32), gguf.GGMLQuantizationType.Q4_K, bad)


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "IQ4_XS", "IQ4_NL", "Q4_1", "Q3_K"])
def test_blocks_are_read_back_as_gguf_py_does(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    data = ggml.quantize(values, gguf.GGMLQuantizationType[kind])
    assert data is not None
    theirs = gguf.quants.dequantize(np.frombuffer(data, np.uint8).reshape(16, -1), gguf.GGMLQuantizationType[kind])
    ours = ggml.dequantize(data, gguf.GGMLQuantizationType[kind], 256)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
