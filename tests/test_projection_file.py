"""A learned projection in files: beside a model, inside a copy of it, refused where it does not belong."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder, keys
from edge_embed.convert import convert
from edge_embed.convert.projection import write_beside, write_inside
from edge_embed.convert.quantize import quantize
from edge_embed.convert.verify import verify
from edge_embed.errors import (
    EdgeEmbedError,
    InvalidDimensionError,
    InvalidOptionError,
    ModelFileError,
    ModelNotFoundError,
    OutputFileError,
    UnsupportedModelError,
)
from edge_embed.gguf_header import GgufHeader, read_header
from edge_embed.model_info import read_model_info
from edge_embed.projection_file import model_key, read_projection, with_projection
from edge_embed.types import Float32Array
from tests.checkpoints import build_tiny_bert
from tests.projecting import TEXTS, WIDTH, model, some_projection
from tests.tiny_gguf import (
    Metadata,
    Tensors,
    assemble,
    gguf_bytes,
    string,
    tensor_info,
    tiny_bert,
    tiny_reranker,
    value,
)


@pytest.fixture(scope="module")
def header(bert_path: Path) -> GgufHeader:
    return read_header(bert_path)


# Round trips


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("rows", [1, 8, WIDTH])
def test_both_ways_to_store_one_give_the_same_vectors(
    header: GgufHeader, bert: Embedder, tmp_path: Path, rows: int, center: bool
) -> None:
    """Bit for bit, and they are W (x - m) of the model's unit vectors."""
    made = some_projection(rows, center=center)
    write_beside(tmp_path / "p.gguf", made, header)
    write_inside(tmp_path / "m.gguf", made, header)
    with (
        Embedder(header.path, projection=tmp_path / "p.gguf", n_threads=1) as beside,
        Embedder(tmp_path / "m.gguf", n_threads=1) as inside,
    ):
        found = beside.encode(TEXTS[:9], normalize=False)
        assert found.tolist() == inside.encode(TEXTS[:9], normalize=False).tolist()
        assert rows == beside.info.n_embd == inside.info.n_embd == found.shape[1]
    plain = bert.encode(TEXTS[:9]).astype(np.float64)
    assert np.abs((plain - made.mean) @ made.weight.T.astype(np.float64) - found).max() < 1e-6


def test_a_file_beside_a_model_is_read_back_as_it_was(header: GgufHeader, tmp_path: Path) -> None:
    made = some_projection(8, center=True, pooling="last")
    write_beside(tmp_path / "p.gguf", made, header)
    found = read_projection(read_header(tmp_path / "p.gguf"))
    assert made.weight.tolist() == found.weight.tolist()
    assert made.mean.tolist() == found.mean.tolist()
    assert ("last", 1000) == (found.pooling, found.n_texts)


@pytest.mark.parametrize("dim", [1, 5, 8])
def test_a_projected_vector_is_cut_to_any_size_up_to_its_rows(header: GgufHeader, tmp_path: Path, dim: int) -> None:
    write_beside(tmp_path / "p.gguf", some_projection(8), header)
    with Embedder(header.path, projection=str(tmp_path / "p.gguf"), n_threads=1) as embedder:
        whole, cut = (embedder.encode(TEXTS[:4], truncate_dim=d) for d in (None, dim))
        expected = whole[:, :dim] / np.linalg.norm(whole[:, :dim], axis=1, keepdims=True)
        assert np.abs(expected - cut).max() < 1e-6
        with pytest.raises(InvalidDimensionError) as caught:
            embedder.encode(TEXTS[:4], truncate_dim=9)
        assert "the model's vectors have 8 values" in caught.value.hint
    with pytest.raises(InvalidDimensionError):
        Embedder(header.path, projection=tmp_path / "p.gguf", truncate_dim=9)


def aligned_model(alignment: int) -> bytes:
    """The tiny model with its data at multiples of another number."""
    metadata, tensors = tiny_bert()
    metadata = {**metadata, "general.alignment": np.uint32(alignment)}
    infos, data = [], b""
    for name, array in tensors.items():
        infos.append(tensor_info(name, array.shape[::-1], 0, len(data)))
        data += array.tobytes() + b"\0" * (-array.nbytes % alignment)
    return assemble([string(key) + value(item) for key, item in metadata.items()], infos, data, alignment=alignment)


@pytest.mark.parametrize("alignment", [8, 32, 128])
def test_inside_a_copy_everything_else_stays_byte_for_byte(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(aligned_model(alignment))
    before = read_header(path)
    ticks: list[tuple[int, int, str]] = []
    write_inside(tmp_path / "m.gguf", some_projection(8, center=True), before, progress=lambda *t: ticks.append(t))
    old, new = path.read_bytes(), (tmp_path / "m.gguf").read_bytes()
    after = read_header(tmp_path / "m.gguf")
    first = next(iter(before.tensors.values())).offset
    moved = next(iter(after.tensors.values())).offset
    assert old[first:] == new[moved:]
    table = len(b"".join(tensor_info(t.name, t.shape, 0, 0) for t in before.tensors.values()))
    entries = old[24 : old.index(tensor_info("token_embd.weight", before.tensors["token_embd.weight"].shape, 0, 0))]
    assert new[24:].startswith(entries)
    assert old[24 + len(entries) :][:table] in new
    assert struct.unpack("<IQQ", new[4:24]) == (3, len(before.tensors), len(before.metadata) + 5)
    added = {key for key in after.metadata if key not in before.metadata}
    names = ("in_features", "mean", "pooling", "texts", "weight")
    assert {f"edge_embed.projection.{name}" for name in names} == added
    assert (len(old) - first, len(old) - first, "m.gguf") == ticks[-1]
    assert 8 == read_model_info(after).n_embd


def test_sizes_that_a_model_was_trained_for_say_nothing_of_projected_vectors(tmp_path: Path) -> None:
    metadata, tensors = tiny_bert()
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes({**metadata, keys.MRL_DIMENSIONS: np.array([8, 16], np.uint32)}, tensors))
    assert (8, 16) == read_model_info(read_header(path)).mrl_dimensions
    write_inside(tmp_path / "m.gguf", some_projection(), read_header(path))
    assert () == read_model_info(read_header(tmp_path / "m.gguf")).mrl_dimensions


def test_a_projection_stays_when_its_model_is_quantized(header: GgufHeader, tmp_path: Path) -> None:
    write_inside(tmp_path / "m.gguf", some_projection(8), header)
    quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", ftype="f16")
    with Embedder(tmp_path / "m.gguf", n_threads=1) as exact, Embedder(tmp_path / "q.gguf", n_threads=1) as small:
        a, b = exact.encode(TEXTS[:5]), small.encode(TEXTS[:5])
    assert (5, 8) == b.shape
    assert (a * b).sum(axis=1).min() > 0.999


def test_a_copy_does_not_replace_its_model(header: GgufHeader) -> None:
    with pytest.raises(OutputFileError, match="is the model itself"):
        write_inside(header.path, some_projection(), header)


def test_a_copy_is_verified_by_its_vectors_before_the_projection(tmp_path: Path) -> None:
    """Its checkpoint has none."""
    build_tiny_bert(tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "model.gguf", ftype="f16", verify=False)
    header = read_header(tmp_path / "model.gguf")
    write_inside(tmp_path / "m.gguf", some_projection(8, width=read_model_info(header).n_embd), header)
    found = verify(tmp_path / "m.gguf", tmp_path / "checkpoint")
    assert () == tuple(found.problems)
    assert found.vectors is not None
    assert found.vectors.min_cosine > 0.9999


# Which model it belongs to


def test_another_model_is_refused_by_name(header: GgufHeader, tmp_path: Path) -> None:
    write_beside(tmp_path / "p.gguf", some_projection(), header)
    with pytest.raises(
        UnsupportedModelError, match=r"p\.gguf was fit for 'tiny bert', and .*other\.gguf is not"
    ) as caught:
        Embedder(model(tmp_path, seed=7), projection=tmp_path / "p.gguf")
    assert "edge-embed project fit" in caught.value.hint


def test_weights_of_one_origin_are_one_model_in_every_type(tmp_path: Path) -> None:
    source = {keys.SOURCE_SHA256: "ab" * 32}
    a, b = (read_header(model(tmp_path, f"{seed}.gguf", seed=seed, more=source)) for seed in (0, 7))
    merged = {**source, keys.SOURCE_LORA_SHA256: "cd" * 32}
    c = read_header(model(tmp_path, "c.gguf", more=merged))
    assert model_key(a) == model_key(b) != model_key(c)


def test_without_a_recorded_origin_the_tensors_tell_models_apart(header: GgufHeader, tmp_path: Path) -> None:
    same = read_header(model(tmp_path, more={"general.license": "mit"}))
    changed_metadata, tensors = tiny_bert()
    tensors["blk.1.layer_output_norm.bias"][3] += 1
    path = tmp_path / "changed.gguf"
    path.write_bytes(gguf_bytes(changed_metadata, tensors))
    assert model_key(header) == model_key(same) != model_key(read_header(path))


def test_vectors_of_another_pooling_are_refused(header: GgufHeader, tmp_path: Path) -> None:
    write_beside(tmp_path / "p.gguf", some_projection(), header)
    write_inside(tmp_path / "m.gguf", some_projection(), header)
    for arguments in ({"model": header.path, "projection": tmp_path / "p.gguf"}, {"model": tmp_path / "m.gguf"}):
        with pytest.raises(InvalidOptionError, match="was fit on vectors of mean pooling, and these are of cls"):
            Embedder(pooling="cls", **arguments)


def test_one_projection_is_enough(header: GgufHeader, tmp_path: Path) -> None:
    write_beside(tmp_path / "p.gguf", some_projection(), header)
    write_inside(tmp_path / "m.gguf", some_projection(), header)
    with pytest.raises(InvalidOptionError, match=r"m\.gguf holds a projection already"):
        Embedder(tmp_path / "m.gguf", projection=tmp_path / "p.gguf")


def test_an_adapter_changes_the_vectors_that_it_was_fit_on(header: GgufHeader, tmp_path: Path) -> None:
    write_beside(tmp_path / "p.gguf", some_projection(), header)
    write_inside(tmp_path / "m.gguf", some_projection(), header)
    for arguments in ({"model": header.path, "projection": tmp_path / "p.gguf"}, {"model": tmp_path / "m.gguf"}):
        with pytest.raises(InvalidOptionError, match="without the adapter") as caught:
            Embedder(lora=tmp_path / "lora.gguf", **arguments)
        assert "--merge-lora" in caught.value.hint


def test_a_projection_is_no_model_and_a_model_is_no_projection(header: GgufHeader, tmp_path: Path) -> None:
    write_beside(tmp_path / "p.gguf", some_projection(), header)
    with pytest.raises(UnsupportedModelError, match="is a projection, not a model of its own") as caught:
        Embedder(tmp_path / "p.gguf")
    assert "--projection" in caught.value.hint
    with pytest.raises(UnsupportedModelError, match=r"is not a projection: general\.type is 'model'"):
        Embedder(header.path, projection=header.path)
    with pytest.raises(ModelNotFoundError):
        Embedder(header.path, projection=tmp_path / "none.gguf")


def test_a_reranker_has_no_vectors_to_project() -> None:
    metadata, tensors = tiny_reranker()
    settings = inside(WIDTH, np.eye(WIDTH, dtype=np.float32))
    with pytest.raises(UnsupportedModelError, match=r"a reranker with Dense layers .* or a projection"):
        read_model_info(parsed({**metadata, **settings}, tensors))


# Hostile files


def beside(n_in: int = WIDTH, **changed: Any) -> tuple[Metadata, Tensors]:
    """A sound file beside the tiny model, with some entries changed; None takes one out."""
    made = some_projection(8, center=True)
    metadata: Metadata = {
        "general.type": "projection",
        keys.PROJECTION_MODEL: "some model",
        keys.PROJECTION_IN_FEATURES: np.uint32(n_in),
        keys.PROJECTION_POOLING: "mean",
        keys.PROJECTION_TEXTS: np.uint32(1000),
    }
    tensors: Tensors = {"projection.weight": made.weight, "projection.mean": made.mean}
    for name, item in changed.items():
        place: dict[str, Any] = tensors if name in ("weight", "mean", "extra") else metadata
        key = f"projection.{name}" if place is tensors else f"edge_embed.projection.{name}"
        if item is None:
            del place[key]
        else:
            place[key] = item
    return metadata, tensors


def inside(n_in: int, weight: Any, **changed: Any) -> Metadata:
    """The entries of a model that holds a projection."""
    entries = {"in_features": np.uint32(n_in), "pooling": "mean", "texts": np.uint32(9), "weight": weight, **changed}
    return {
        f"edge_embed.projection.{name}": item.ravel() if isinstance(item, np.ndarray) and item.ndim else item
        for name, item in entries.items()
        if item is not None
    }


def parsed(metadata: Metadata, tensors: Tensors) -> GgufHeader:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(gguf_bytes(metadata, tensors))
        return read_header(path)


def rows(*, scale: float = 1.0, bad: float | None = None, repeat: bool = False) -> Float32Array:
    result = some_projection(8).weight * np.float32(scale)
    if bad is not None:
        result[2, 3] = bad
    if repeat:
        result[1] = result[0]
    return result


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"weight": rows(bad=float("nan"))}, "not finite"),
    ({"weight": rows(bad=float("inf"))}, "not finite"),
    ({"weight": rows(bad=3e38)}, "not orthonormal"),
    ({"weight": rows(scale=1.1)}, "not orthonormal"),
    ({"weight": rows(scale=0.0)}, "not orthonormal"),
    ({"weight": rows(repeat=True)}, "not orthonormal"),
    ({"mean": np.full(WIDTH, np.nan, np.float32)}, "not finite"),
    ({"mean": np.full(WIDTH, 1e30, np.float32)}, "longer than 1"),
    ({"mean": np.zeros(WIDTH - 1, np.float32)}, "31 means"),
    ({"in_features": np.uint32(0)}, "in_features is 0"),
    ({"in_features": None}, "in_features' is missing"),
    ({"in_features": "32"}, "in_features is '32'"),
    ({"pooling": "rank"}, "pooling is 'rank'"),
    ({"pooling": None}, "pooling' is missing"),
    ({"texts": np.uint32(0)}, "texts is 0"),
]


@pytest.mark.parametrize(("changed", "message"), HOSTILE)
def test_a_malformed_file_beside_a_model_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.gguf"
    path.write_bytes(gguf_bytes(*beside(**changed)))
    with pytest.raises(ModelFileError, match=message):
        read_projection(read_header(path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"in_features": np.uint32(16)}, "takes vectors of 32 values instead of 16"),
        ({"weight": None}, "does not hold just projection.weight"),
        ({"extra": np.zeros(3, np.float32)}, "does not hold just projection.weight"),
        ({"weight": rows().astype(np.float16)}, "is F16 of shape"),
        ({"weight": np.zeros((1, 2, WIDTH), np.float32)}, "expected F32, at most a matrix"),
        ({"weight": np.zeros((WIDTH + 1, WIDTH), np.float32)}, "1056 weights"),
    ],
)
def test_tensors_that_are_no_projection_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    test_a_malformed_file_beside_a_model_is_refused(tmp_path, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *HOSTILE,
        ({"in_features": np.uint32(16)}, "takes vectors of 16 values, and gets those of 32"),
        ({"weight": None}, "0 weights"),
        ({"weight": np.zeros(33, np.float32)}, "33 weights"),
        ({"weight": "weights"}, "not a list of numbers"),
        ({"weight": np.zeros(WIDTH * (WIDTH + 1), np.float32)}, "1056 weights"),
    ],
)
def test_a_malformed_projection_inside_a_model_is_refused(changed: dict[str, Any], message: str) -> None:
    metadata, tensors = tiny_bert()
    entries = inside(WIDTH, **{"weight": rows(), **changed})
    with pytest.raises(ModelFileError, match=message):
        read_model_info(parsed({**metadata, **entries}, tensors))


def test_every_cut_off_file_is_refused(header: GgufHeader, tmp_path: Path) -> None:
    path = tmp_path / "p.gguf"
    write_beside(path, some_projection(2), header)
    data = path.read_bytes()
    info = read_model_info(header)
    for length in [*range(0, len(data) - 256, 61), len(data) - 200]:
        path.write_bytes(data[:length])
        with pytest.raises(EdgeEmbedError):
            with_projection(info, header, path)


def test_what_is_no_file_name_is_refused(header: GgufHeader) -> None:
    with pytest.raises(InvalidOptionError, match="projection is 3"):
        with_projection(read_model_info(header), header, 3)  # type: ignore[arg-type]
