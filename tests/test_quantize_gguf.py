"""GGUF to GGUF: the bytes of a direct conversion, all metadata, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from edge_embed import errors, keys
from edge_embed.cli import main
from edge_embed.convert import FTYPES, convert
from edge_embed.convert.container.entries import text, uint
from edge_embed.convert.container.output import OutputTensor
from edge_embed.convert.container.raw import encode_entry, encode_head, file_size
from edge_embed.convert.gguf_source import GGUFSource
from edge_embed.convert.quantize import quantize
from tests.checkpoints import build_tiny_bert
from tests.converting import metadata, small_qwen3, tensors


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whose weights are float32 and whose rows need fall-backs, one of bfloat16."""
    folder = tmp_path_factory.mktemp("gguf")
    return {
        "bert": build_tiny_bert(folder / "bert", hidden=96, layers=3),
        "qwen3": small_qwen3(folder / "qwen3", hidden=256, layers=3, heads=2, kv_heads=1, head_dim=128, dtype="bf16"),
    }


@pytest.mark.parametrize(("model", "first"), [("bert", "f32"), ("qwen3", "f32"), ("qwen3", "bf16")])
def test_the_file_is_that_of_converting_the_checkpoint(
    model: str, first: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Byte for byte, metadata and fall-backs included, for every type."""
    convert(checkpoints[model], tmp_path / "first.gguf", ftype=first)
    for ftype in FTYPES:
        if first == "bf16" and ftype == "f32":
            continue  # the direct conversion widens; here nothing is widened that is not asked for by a mix
        direct = convert(checkpoints[model], tmp_path / "direct.gguf", ftype=ftype)
        report = quantize(tmp_path / "first.gguf", tmp_path / "second.gguf", ftype=ftype)
        assert report.sha256 == direct.sha256, ftype
        assert report.path.read_bytes() == direct.path.read_bytes()
        assert [t.why for t in report.tensors] == [t.why for t in direct.tensors]


def test_every_key_is_kept_with_its_type(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = convert(checkpoints["qwen3"], tmp_path / "f.gguf", ftype="f16", license="mit", mrl_dimensions=[64]).path
    target = quantize(source, tmp_path / "q.gguf", ftype="q5_k_m").path
    before, after = gguf.GGUFReader(source).fields, gguf.GGUFReader(target).fields
    changed = {"general.file_type", keys.RECIPE}
    assert list(before) == list(after)
    for name, field in before.items():
        assert field.types == after[name].types
        assert (field.contents() == after[name].contents()) == (name not in changed), name


def test_what_is_no_longer_true_is_dropped(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = convert(checkpoints["qwen3"], tmp_path / "f.gguf", ftype="f32", verify=True).path
    assert [key for key in metadata(source) if key.startswith(keys.VERIFY)]
    narrow = convert(checkpoints["bert"], tmp_path / "b.gguf", ftype="q4_k_m").path
    assert keys.FALLBACKS in metadata(narrow)
    for path in (
        quantize(source, tmp_path / "q.gguf", ftype="q8_0").path,
        quantize(narrow, tmp_path / "r.gguf", ftype="f32", allow_requantize=True).path,
    ):
        assert [key for key in metadata(path) if key.startswith(keys.VERIFY) or key == keys.FALLBACKS] == []


def test_a_quantized_file_needs_leave_and_the_cost_is_said(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = convert(checkpoints["qwen3"], tmp_path / "q8.gguf", ftype="q8_0").path
    with pytest.raises(errors.InvalidOptionError, match="quantized already") as refused:
        quantize(source, tmp_path / "q4.gguf", ftype="q4_k_m")
    assert "--allow-requantize" in refused.value.hint
    assert not (tmp_path / "q4.gguf").exists()
    report = quantize(source, tmp_path / "q4.gguf", ftype="q4_k_m", allow_requantize=True)
    assert "a second time: the errors of both types add up" in report.notes[0]
    exact = tensors(convert(checkpoints["qwen3"], tmp_path / "f32.gguf", ftype="f32").path)
    found = tensors(report.path)["blk.1.ffn_up.weight"]
    values = gguf.quants.dequantize(found.data, found.tensor_type)
    assert np.corrcoef(values.ravel(), exact["blk.1.ffn_up.weight"].data.ravel())[0, 1] > 0.99


def test_a_file_of_the_same_type_is_copied(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = convert(checkpoints["qwen3"], tmp_path / "q.gguf", ftype="q4_k_m").path
    assert quantize(source, tmp_path / "copy.gguf", ftype="q4_k_m").path.read_bytes() == source.read_bytes()
    assert quantize(source, source, ftype="q4_k_m").path.read_bytes() == (tmp_path / "copy.gguf").read_bytes()


def written(path: Path, **changes: object) -> Path:
    """A small GGUF with one matrix."""
    values = {"arch": "bert", "alignment": 32, "value": 1.0, "fields": {}, **changes}
    writer = gguf.GGUFWriter(str(path), str(values["arch"]))
    writer.add_uint32("bert.block_count", 1)
    if values["alignment"] != 32:
        writer.add_custom_alignment(int(str(values["alignment"])))
    for key, value in dict(values["fields"]).items():  # type: ignore[call-overload]
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    matrix = np.ones((4, 64), np.float32)
    matrix[2, 5] = values["value"]
    writer.add_tensor("blk.0.attn_q.weight", matrix)
    writer.add_tensor("blk.0.attn_q.bias", np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"arch": "mamba"}, errors.UnsupportedCheckpointError, "architecture 'mamba'"),
        ({"fields": {"general.type": "adapter"}}, errors.UnsupportedCheckpointError, "general.type 'adapter'"),
        ({"fields": {"split.count": 2}}, errors.UnsupportedCheckpointError, "one of 2 parts"),
        ({"value": np.nan}, errors.CheckpointError, r"'blk.0.attn_q.weight' has NaN or infinity in row 2"),
        ({"value": 1e6}, errors.CheckpointError, r"'blk.0.attn_q.weight' has a value of magnitude 1e\+06.*F16"),
    ],
)
def test_what_cannot_be_quantized_is_refused_and_leaves_nothing(
    changes: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.gguf", **changes)
    with pytest.raises(error, match=message):
        quantize(source, tmp_path / "out.gguf", ftype="f16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.gguf"]


def test_a_source_of_another_alignment(tmp_path: Path) -> None:
    source = written(tmp_path / "in.gguf", alignment=128)
    target = quantize(source, tmp_path / "out.gguf", ftype="q8_0").path
    assert "general.alignment" not in metadata(target)
    assert (tensors(target)["blk.0.attn_q.bias"].data == np.arange(4)).all()


def test_rows_are_read_as_gguf_py_reads_them(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for ftype in ("f32", "f16", "bf16", "q8_0", "q4_k_m", "iq4_xs"):
        path = convert(checkpoints["qwen3"], tmp_path / "m.gguf", ftype=ftype).path
        with GGUFSource(path) as source:
            tensor = source.header.tensors["blk.0.ffn_down.weight"]
            found = tensors(path)["blk.0.ffn_down.weight"]
            expected = gguf.quants.dequantize(found.data, found.tensor_type)
            np.testing.assert_allclose(source.rows(tensor, 3, 5), expected[3:8], rtol=1e-6, atol=1e-8)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A matrix of 256 MB, in a file with a hole in its place: what is in flight are a few chunks of 4 MB."""
    path = tmp_path / "in.gguf"
    infos = [OutputTensor("blk.0.ffn_up.weight", (65536, 1024), gguf.GGMLQuantizationType.F32, 2**28)]
    entries = [encode_entry(text("general.architecture", "bert")), encode_entry(uint("bert.block_count", 1))]
    head = encode_head(entries, infos)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(file_size(head, infos))
    code = (
        "import sys; from pathlib import Path; from edge_embed.convert.quantize import quantize; "
        # not ru_maxrss: a child inherits that from the process that started it
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024; "
        "before = peak(); "
        "quantize(sys.argv[1], sys.argv[2], ftype='q8_0'); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out.gguf")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 64
    assert 0 < (tmp_path / "out.gguf").stat().st_size - 2**26 // 32 * 34 < 1000  # Q8_0, and the metadata


def test_the_command(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = convert(checkpoints["bert"], tmp_path / "f.gguf", ftype="f32").path
    target = tmp_path / "q.gguf"
    result = CliRunner().invoke(main, ["quantize", str(source), str(target), "--type", "Q4_K_M"])
    assert result.exit_code == 0, result.output
    direct = convert(checkpoints["bert"], tmp_path / "direct.gguf", ftype="q4_k_m")
    assert direct.path.read_bytes() == target.read_bytes()
    assert direct.sha256 in result.output
    assert "rows of 96 do not divide by 256" in result.output
    for arguments in ((), ("--type", "q8_0", "--max-size", "1MB"), ("--type", "q8_0", "--plot", "x.png")):
        assert CliRunner().invoke(main, ["quantize", str(source), str(target), *arguments]).exit_code == 2
