"""Weights that are damaged, hostile, elsewhere or missing: each refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed import errors
from edge_embed.convert import convert
from edge_embed.convert.checkpoint import Checkpoint, is_inner_path, is_plain_name, short
from tests.checkpoints import build_tiny_bert, write_safetensors
from tests.converting import edited
from tests.folders import Broken, Unsupported, attempt, refused

NAME = "encoder.layer.1.output.dense.weight"


Header = dict[str, Any]


def reheader(path: Path, change: Callable[[Header], None]) -> None:
    """Change the header of a safetensors file, and leave its data as it is."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def poke(path: Path, name: str, index: int, value: bytes) -> None:
    """Overwrite bytes of one tensor's data."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0] + index * len(value)
    data[begin : begin + len(value)] = value
    path.write_bytes(data)


# ---------------------------------------------------------------- safetensors


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.02, 0.5, 0.9, -1])
def test_truncated_weights(keep: float, bert: Path) -> None:
    """In the length, in the header, in any tensor, and by one byte."""
    path = bert / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep) if keep in (0, 1, 7, 8, 9, 100, -1) else int(len(data) * keep)])
    refused(bert, Broken, r"model\.safetensors.*(truncated|not valid JSON)")


@pytest.mark.parametrize("n", [1, 2, 8, 4096])
def test_bytes_that_belong_to_no_tensor(n: int, bert: Path) -> None:
    with (bert / "model.safetensors").open("ab") as file:
        file.write(b"\0" * n)
    refused(bert, Broken, rf"model\.safetensors: {n} bytes belong to no tensor")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_a_header_of_an_impossible_length(length: int, bert: Path) -> None:
    """Refused by its number; nothing of that size is allocated."""
    path = bert / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(bert, Broken, r"model\.safetensors")


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b'{"a": {}}', b"[" * 100_000, b'{"a": NaN}', b"GGUF"],
)
def test_a_header_that_is_none(header: bytes, bert: Path) -> None:
    (bert / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(bert, Broken, r"model\.safetensors")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F12"}, "unknown dtype 'F12'"),
        ({"dtype": ["F32"]}, "unknown dtype"),
        ({"dtype": None}, "unknown dtype None"),
        ({"dtype": "F16"}, "do not fit shape"),
        ({"shape": [-64, 256]}, "non-negative"),
        ({"shape": [64.0, 256]}, "non-negative"),
        ({"shape": [True, 16384]}, "non-negative"),
        ({"shape": "64"}, "non-negative"),
        ({"shape": [2**62, 2**62]}, "non-negative"),
        ({"shape": [1] * 100_000 + [16384]}, "shape"),
        ({"shape": [2**40, 2**40]}, "do not fit shape"),
        ({"shape": []}, "do not fit shape"),
        ({"data_offsets": [0]}, "offsets"),
        ({"data_offsets": [8, 4]}, "do not fit"),
        ({"data_offsets": [0, 65536, 0]}, "offsets"),
        ({"data_offsets": None}, "offsets"),
        ({"data_offsets": [0, 65536]}, "overlaps"),
        ({"data_offsets": [2**40, 2**40 + 65536]}, "truncated"),
    ],
)
def test_a_tensor_entry_that_cannot_be(entry: dict[str, Any], message: str, bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header[NAME].update(entry))
    refused(bert, Broken, rf"model\.safetensors: .*{message}")


def test_a_hole_between_tensors(bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header.pop("pooler.dense.weight"))
    refused(bert, Broken, r"model\.safetensors: tensor 'pooler.dense.bias' overlaps another or leaves a hole")


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_weights_of_another_dtype(dtype: str, bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header[NAME].update(dtype=dtype))
    refused(bert, Broken, rf"model\.safetensors: tensor '{NAME}' has dtype {dtype}, expected one of F32, F16, BF16")


def test_an_integer_tensor_that_is_left_out_may_have_any_dtype(bert: Path) -> None:
    """``position_ids`` of older checkpoints is int64."""
    path = bert / "model.safetensors"
    size = path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
    entry = {"dtype": "I64", "shape": [1, 128], "data_offsets": [size, size + 1024]}
    reheader(path, lambda header: header.update({"embeddings.position_ids": entry}))
    path.write_bytes(path.read_bytes() + np.arange(128, dtype="<i8").tobytes())
    assert "embeddings.position_ids" in {s.name for s in attempt(bert).skipped}


def test_a_wrong_shape_names_both(bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header[NAME].update(shape=[256, 64]))
    refused(bert, Broken, rf"model\.safetensors: tensor '{NAME}' has shape \[256, 64\].*makes it \[64, 256\]")


def test_a_missing_tensor(bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header.update({"pooler.dense.bias2": header.pop(NAME)}))
    refused(bert, Broken, f"tensor '{NAME}' is missing")


@pytest.mark.parametrize("name", ["encoder.layer.2.output.dense.weight", "adapter.weight", "model.embed_tokens.weight"])
def test_an_unknown_tensor_is_not_left_out_silently(name: str, bert: Path) -> None:
    reheader(bert / "model.safetensors", lambda header: header.update({name: header.pop("pooler.dense.weight")}))
    refused(bert, Broken, rf"model\.safetensors: unknown tensor '{name}' for bert with 2 layers")


def test_a_tensor_with_and_without_its_prefix(bert: Path) -> None:
    other = "encoder.layer.0.output.dense.bias"
    reheader(bert / "model.safetensors", lambda header: header.update({"bert.pooler.dense.bias": header.pop(other)}))
    refused(bert, Broken, "'(bert.)?pooler.dense.bias' and '(bert.)?pooler.dense.bias' are the same one")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_weights_that_are_not_finite_name_the_row(dtype: str, value: float, tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path / "bert", dtype=dtype)
    wide = np.float32(value)
    raw = {"f32": wide, "f16": wide.astype("<f2"), "bf16": (wide.view(np.uint32) >> 16).astype("<u2")}[dtype].tobytes()
    poke(folder / "model.safetensors", NAME, 3 * 256 + 17, raw)
    refused(folder, Broken, rf"model\.safetensors: tensor '{NAME}' has NaN or infinity in row 3")


def test_a_weight_beyond_float16(bert: Path) -> None:
    poke(bert / "model.safetensors", NAME, 0, np.float32(70000).tobytes())
    refused(bert, Broken, rf"model\.safetensors: tensor '{NAME}' has a value of magnitude 70000, which F16 cannot hold")
    convert(bert, bert.with_suffix(".bf16"), ftype="bf16")


def test_a_file_that_shrinks_while_it_is_read(bert: Path) -> None:
    path = bert / "model.safetensors"

    def shrink(*_: Any) -> None:
        with path.open("r+b") as file:
            file.truncate(1000)

    refused(bert, Broken, r"model\.safetensors: ended inside tensor", progress=shrink, threads=1)


@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_converted_or_refused(
    data: st.DataObject, pristine: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any byte of any file changed: an error of ours, or a file; never another exception."""
    folder = tmp_path_factory.mktemp("damaged", numbered=True) / "model"
    shutil.copytree(pristine[data.draw(st.sampled_from(["bert", "sharded", "qwen3"]))], folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # The headers matter more than the weights behind them.
        at = data.draw(st.integers(0, min(len(content), 6000) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b"[", b"-"])
        )
    path.write_bytes(content)
    try:
        attempt(folder)
    except errors.ConversionError:
        assert not folder.with_suffix(".gguf").exists()
    finally:
        shutil.rmtree(folder.parent)


# ---------------------------------------------------------------- shards


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, Broken, r"model-00002-of-00002\.safetensors is missing\n.*incomplete")


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "C:\\x.safetensors",
        "model.bin",
        7,
        None,
        [],
        "\0.safetensors",
    ],
)
def test_a_shard_outside_the_folder(file: Any, sharded: Path) -> None:
    edited(sharded / "model.safetensors.index.json", weight_map={NAME: file})
    refused(sharded, Broken, r"index\.json.*expected the name of a \.safetensors file of the folder")


def test_an_index_that_names_a_tensor_the_shard_lacks(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    whole = json.loads(path.read_text())
    whole["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(whole))
    refused(sharded, Broken, r"model-00001-of-00002\.safetensors: tensor 'ghost' is in the index but not in the file")


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded / "model-00002-of-00002.safetensors")
    refused(sharded, Broken, "is also in another shard")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", ""])
def test_an_index_that_is_none(index: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    refused(sharded, Broken, r"model\.safetensors\.index\.json")


def test_only_pickles(bert: Path) -> None:
    """Never opened: loading a pickle runs what is in it."""
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    refused(bert, Unsupported, r"only as pickle \(pytorch_model\.bin\).*refused\n.*save_pretrained")


def test_no_weights(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    refused(bert, Broken, r"model\.safetensors is missing, and so is its index")


def test_an_adapter(bert: Path) -> None:
    (bert / "adapter_config.json").write_text("{}")
    refused(bert, Unsupported, "is an adapter")


# ---------------------------------------------------------------- small parts


@pytest.mark.parametrize(
    ("name", "plain", "inner"),
    [
        ("a", True, True),
        ("a.b-c_d", True, True),
        ("", False, True),
        (".", False, True),
        ("..", False, False),
        ("a/b", False, True),
        ("a/../b", False, False),
        ("/a", False, False),
        ("a\\b", False, False),
        ("c:a", False, False),
        ("a\0", False, False),
    ],
)
def test_names_that_stay_in_a_folder(name: str, plain: bool, inner: bool) -> None:
    assert (is_plain_name(name), is_inner_path(name)) == (plain, inner)


@given(
    st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists, max_leaves=200), st.integers(10, 300)
)
def test_a_quoted_value_is_short(value: Any, limit: int) -> None:
    assert len(short(value, limit)) <= limit + 3


def test_a_checkpoint_closes_its_files(sharded: Path) -> None:
    with Checkpoint(sharded) as opened:
        files = list(opened._files.values())
        assert len(files) == 2
    assert all(file.closed for file in files)


def test_rows_are_widened_exactly(tmp_path: Path) -> None:
    """Every float16 and every bfloat16 that is a number."""
    half = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    brain = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    (tmp_path / "config.json").write_text("{}")
    for dtype, values in (("f16", half), ("bf16", brain)):
        finite = values[np.isfinite(values)]
        write_safetensors(tmp_path / "model.safetensors", {"w": finite.reshape(-1, 32)}, dtype)
        with Checkpoint(tmp_path) as opened:
            found = opened.read_rows(opened.tensors["w"], 0, len(finite) // 32)
        assert found.dtype == np.float32
        assert np.array_equal(found.view(np.uint32), finite.reshape(-1, 32).view(np.uint32))
