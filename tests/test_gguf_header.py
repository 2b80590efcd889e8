"""Reading a GGUF's table of contents: all of the format, and none of what is malformed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed import gguf_header
from edge_embed.errors import ModelFileError, ModelNotFoundError
from edge_embed.gguf_header import TENSOR_TYPES, GgufHeader, TensorInfo, read_header
from tests.tiny_gguf import assemble, gguf_bytes, string, tensor_info, tiny_bert, value


def header_of(data: bytes, folder: Path) -> GgufHeader:
    path = folder / "some model.gguf"
    path.write_bytes(data)
    return read_header(path)


def pair(key: str | bytes, item: Any) -> bytes:
    return string(key) + value(item)


# The format


def test_tensor_types_are_those_of_gguf_py() -> None:
    theirs = {int(kind): (kind.name, *size) for kind, size in gguf.constants.GGML_QUANT_SIZES.items()}
    assert {kind: theirs[kind] for kind in TENSOR_TYPES} == TENSOR_TYPES


def test_the_tests_own_writer_is_read_by_gguf_py(tmp_path: Path) -> None:
    metadata, tensors = tiny_bert()
    (tmp_path / "bert.gguf").write_bytes(gguf_bytes(metadata, tensors))
    reader = gguf.GGUFReader(tmp_path / "bert.gguf")
    assert set(metadata) == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert {n: t.tolist() for n, t in tensors.items()} == {t.name: t.data.tolist() for t in reader.tensors}


def test_every_value_type_of_gguf_py_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "bert")
    expected: dict[str, Any] = {"general.architecture": "bert"}
    for name, item in (
        ("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000), ("uint32", 4_000_000_000),
        ("int32", -2_000_000_000), ("float32", 0.5), ("uint64", 1 << 63), ("int64", -(1 << 62)), ("float64", 0.1),
        ("bool", True), ("string", "ünï 中\0"),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(f"x.{name}", item)
        expected[f"x.{name}"] = item
    for name, items in (("ints", [1, -2, 3]), ("floats", [0.5, -1.5]), ("bools", [True, False]), ("texts", ["a", "é"])):
        writer.add_array(f"x.{name}", items)
        expected[f"x.{name}"] = items
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "x.gguf")
    assert expected == header.metadata
    assert {key: type(item) for key, item in expected.items()} == {k: type(v) for k, v in header.metadata.items()}


def test_tensors_of_gguf_py_are_listed_with_shape_type_and_size(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "bert")
    writer.add_tensor("a", np.zeros((3, 64), np.float32))
    writer.add_tensor("b", np.zeros((2, 5, 7), np.float16))
    blocks = gguf.quants.quantize(np.zeros((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("c", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    offsets = {tensor.name: tensor.data_offset for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    expected = {
        "a": TensorInfo("a", (64, 3), "F32", 768, offsets["a"]),
        "b": TensorInfo("b", (7, 5, 2), "F16", 140, offsets["b"]),
        "c": TensorInfo("c", (64, 4), "Q8_0", 4 * 2 * 34, offsets["c"]),
    }
    assert expected == read_header(tmp_path / "x.gguf").tensors


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_the_bounds_of_every_integer_type_are_read(dtype: str, tmp_path: Path) -> None:
    bounds = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    header = header_of(assemble([pair("list", bounds), pair("low", bounds[0]), pair("high", bounds[1])], []), tmp_path)
    assert {"list": bounds.tolist(), "low": int(bounds[0]), "high": int(bounds[1])} == header.metadata


@given(items=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20), max_size=20))
def test_any_strings_are_read_back(items: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    header = header_of(assemble([pair("x", items)], []), tmp_path_factory.getbasetemp())
    assert {"x": items} == header.metadata


def test_version_2_is_read(tmp_path: Path) -> None:
    assert {"x": 3} == header_of(assemble([pair("x", np.uint8(3))], [], version=2), tmp_path).metadata


def test_tokens_that_are_not_utf8_are_read_with_replacement(tmp_path: Path) -> None:
    """Old converters wrote the bytes of byte-level tokens as they are."""
    array = struct.pack("<IIQ", 9, 8, 2) + string(b"\xff") + string("a")
    assert {"x": ["\ufffd", "a"]} == header_of(assemble([pair("x", array)], []), tmp_path).metadata


def test_an_own_alignment_is_kept(tmp_path: Path) -> None:
    infos = [tensor_info("a", (1,), 0, 0), tensor_info("b", (1,), 0, 64)]
    data = assemble([pair("general.alignment", np.uint32(64))], infos, bytes(68), alignment=64)
    assert ["a", "b"] == list(header_of(data, tmp_path).tensors)


def test_size_and_path_are_the_files(tmp_path: Path) -> None:
    data = assemble([], [tensor_info("a", (8,), 0, 0)], bytes(32))
    header = header_of(data, tmp_path)
    assert (tmp_path / "some model.gguf", len(data)) == (header.path, header.size_bytes)


# Attacks: name -> (bytes of the file, what the message says)

HUGE = (1 << 64) - 1
ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "too few"),
    "only a magic": (b"GGUF", "too few"),
    "another magic": (assemble([], [], magic=b"GGML"), "begins with b'GGML'"),
    "a safetensors file": (b'\x40\0\0\0\0\0\0\0{"__metadata__": {"format": "pt"}}', "begins with"),
    "version 0": (assemble([], [], version=0), "version 0"),
    "version 1": (assemble([], [], version=1), "version 1"),
    "version 4": (assemble([], [], version=4), "version 4"),
    "big-endian": (assemble([], [], version=3 << 24), "big-endian"),
    "huge number of keys": (assemble([], [], n_kv=HUGE), "more than fit"),
    "huge number of tensors": (assemble([], [], n_tensors=HUGE), "more than fit"),
    "one key too many": (assemble([pair("a", np.uint64(1))], [], n_kv=2), "empty"),
    "65,537 keys": (assemble([bytes(13 * 65537)], [], n_kv=65537), "more than 65536"),
    "65,537 tensors": (assemble([], [bytes(32 * 65537)], n_tensors=65537), "more than 65536"),
    "key twice": (assemble([pair("a", np.uint8(1)), pair("a", np.uint8(2))], []), "'a' occurs twice"),
    "empty key": (assemble([pair("", np.uint8(1))], []), "empty"),
    "key of 65,536 bytes": (assemble([pair("k" * 65536, np.uint8(1))], []), "longer than 65535"),
    "key not UTF-8": (assemble([pair(b"\xff\xfe", np.uint8(1))], []), "not UTF-8"),
    "key longer than the file": (assemble([struct.pack("<Q", 60000) + b"abcdefgh"], []), "ends in the middle"),
    "string not UTF-8": (assemble([pair("a", struct.pack("<I", 8) + string(b"\xc3"))], []), "not UTF-8"),
    "string longer than the file": (assemble([pair("a", struct.pack("<IQ", 8, HUGE))], []), "ends in the middle"),
    "unknown value type": (assemble([pair("a", struct.pack("<IQ", 13, 0))], []), "unknown value type 13"),
    "array of arrays": (assemble([pair("a", struct.pack("<IIQ", 9, 9, 1))], []), "unsupported type 9"),
    "array of an unknown type": (assemble([pair("a", struct.pack("<IIQ", 9, 99, 1))], []), "unsupported type 99"),
    "array longer than the file": (assemble([pair("a", struct.pack("<IIQ", 9, 4, 1 << 62))], []), "more than fit"),
    "array of more strings than bytes": (assemble([pair("a", struct.pack("<IIQ", 9, 8, HUGE))], []), "more than fit"),
    "string of an array too long": (
        assemble([pair("a", struct.pack("<IIQQ", 9, 8, 1, HUGE))], []), "longer than the file",
    ),
    "bool of 2": (assemble([pair("a", struct.pack("<IB", 7, 2))], []), "neither true nor false"),
    "bool of 255 in an array": (
        assemble([pair("a", struct.pack("<IIQ3B", 9, 7, 3, 0, 1, 255))], []), "neither true nor false",
    ),
    "alignment 0": (assemble([pair("general.alignment", np.uint32(0))], []), "general.alignment is 0"),
    "alignment 24": (assemble([pair("general.alignment", np.uint32(24))], []), "general.alignment is 24"),
    "alignment 2^31": (assemble([pair("general.alignment", np.uint32(1 << 31))], []), "general.alignment is"),
    "alignment of the wrong type": (assemble([pair("general.alignment", "32")], []), "general.alignment is '32'"),
    "tensor name of 64 bytes": (assemble([], [tensor_info("n" * 64, (8,), 0, 0)], bytes(32)), "longer than 63"),
    "tensor name not UTF-8": (assemble([], [tensor_info(b"\xff", (8,), 0, 0)], bytes(32)), "not UTF-8"),
    "tensor twice": (
        assemble([], [tensor_info("a", (8,), 0, 0), tensor_info("a", (8,), 0, 32)], bytes(64)), "'a' occurs twice",
    ),
    "no dimensions": (assemble([], [tensor_info("a", (), 0, 0)], bytes(32)), "0 dimensions"),
    "five dimensions": (assemble([], [tensor_info("a", (1,) * 5, 0, 0)], bytes(32)), "5 dimensions"),
    "2^32-1 dimensions": (assemble([], [string("a") + b"\xff" * 4 + bytes(40)]), "4294967295 dimensions"),
    "dimension of zero": (assemble([], [tensor_info("a", (8, 0), 0, 0)], bytes(32)), "impossible shape"),
    "dimension of 2^64-1": (assemble([], [tensor_info("a", (HUGE,), 0, 0)], bytes(32)), "impossible shape"),
    "product of 2^64": (assemble([], [tensor_info("a", (1 << 32, 1 << 32), 0, 0)], bytes(32)), "impossible shape"),
    "row that does not fill blocks": (assemble([], [tensor_info("a", (33,), 8, 0)], bytes(96)), "multiple of 32"),
    "row that does not fill superblocks": (assemble([], [tensor_info("a", (128, 2), 12, 0)], bytes(144)), "of 256"),
    "unknown tensor type": (assemble([], [tensor_info("a", (8,), 4, 0)], bytes(32)), "unknown type 4"),
    "tensor type of 2^32-1": (assemble([], [tensor_info("a", (8,), 0xFFFFFFFF, 0)], bytes(32)), "unknown type"),
    "data one byte short": (assemble([], [tensor_info("a", (8,), 0, 0)], bytes(31)), "1 bytes behind the end"),
    "no data": (assemble([], [tensor_info("a", (8,), 0, 0)]), "truncated"),
    "offset of the first tensor": (assemble([], [tensor_info("a", (8,), 0, 32)], bytes(64)), "0 was expected"),
    "offset outside the file": (assemble([], [tensor_info("a", (8,), 0, 1 << 63)], bytes(32)), "0 was expected"),
    "offsets that overlap": (
        assemble([], [tensor_info("a", (16,), 0, 0), tensor_info("b", (8,), 0, 32)], bytes(96)), "64 was expected",
    ),
    "offsets out of order": (
        assemble([], [tensor_info("a", (8,), 0, 32), tensor_info("b", (8,), 0, 0)], bytes(64)), "0 was expected",
    ),
    "offset not aligned": (
        assemble([], [tensor_info("a", (8,), 0, 0), tensor_info("b", (8,), 0, 36)], bytes(96)), "32 was expected",
    ),
    "offset with a gap": (
        assemble([], [tensor_info("a", (8,), 0, 0), tensor_info("b", (8,), 0, 64)], bytes(96)), "32 was expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_is_refused_by_file_and_reason(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        header_of(data, tmp_path)
    assert f"{tmp_path}/some model.gguf is not a sound GGUF file" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("items", [np.zeros(101, np.uint8), np.zeros(101, np.bool_), [""] * 101])
def test_an_array_that_no_model_has_is_refused(items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python objects it would take many times the bytes that it has in the file."""
    monkeypatch.setattr(gguf_header, "_MAX_ITEMS", 100)
    assert len(header_of(assemble([pair("a", items[:100])], []), tmp_path).metadata["a"]) == 100
    with pytest.raises(ModelFileError, match="'a' has 101 values, more than 100"):
        header_of(assemble([pair("a", items)], []), tmp_path)


def test_a_file_that_is_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    pairs = [
        pair("general.architecture", "bert"),
        pair("numbers", np.arange(5, dtype=np.int32)),
        pair("flags", np.array([True, False])),
        pair("texts", ["one", "", "thrée"]),
        pair("one", np.float64(1)),
    ]
    infos = [tensor_info("a.weight", (32, 2), 8, 0), tensor_info("b", (3,), 0, 96)]
    whole = assemble(pairs, infos, bytes(96 + 12))
    assert {"a.weight", "b"} == set(header_of(whole, tmp_path).tensors)
    for size in range(len(whole)):
        with pytest.raises(ModelFileError, match=r"some model\.gguf is not a sound GGUF file"):
            header_of(whole[:size], tmp_path)


@given(data=st.binary(max_size=200), with_magic=st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, with_magic: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    prefix = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) if with_magic else b""
    with pytest.raises(ModelFileError):
        header_of(prefix + data, tmp_path_factory.getbasetemp())


def test_a_missing_file_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing\.gguf"):
        read_header(tmp_path / "nothing.gguf")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_header(tmp_path)
