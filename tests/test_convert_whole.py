"""A converted file is the same twice, and whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import errors
from edge_embed.convert import convert
from edge_embed.convert.blocks import rows
from edge_embed.convert.checkpoint import Checkpoint, TensorRef
from edge_embed.convert.container import output as container
from tests.checkpoints import build_tiny_bert
from tests.converting import small_qwen3


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint that no test changes."""
    return build_tiny_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert", max_seq_length=96)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 checkpoint that no test changes."""
    return small_qwen3(tmp_path_factory.mktemp("checkpoints") / "tiny-qwen3")


# ---------------------------------------------------------------- the same twice


@pytest.mark.parametrize("build", [build_tiny_bert, small_qwen3])
@pytest.mark.parametrize("ftype", ["f16", "q8_0", "q4_k_m"])
def test_same_bytes_whatever_the_threads_the_chunks_and_the_place(
    build: Callable[..., Path], ftype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the clock, the machine or the path gets into the file."""
    first = convert(build(tmp_path / "a" / "model"), tmp_path / "first.gguf", ftype=ftype, threads=1).path.read_bytes()
    monkeypatch.setattr(rows, "CHUNK_VALUES", 700)
    folder = build(tmp_path / "elsewhere" / "model")
    for threads in (1, 4):
        path = convert(folder, tmp_path / f"{threads}.gguf", ftype=ftype, threads=threads).path
        assert path.read_bytes() == first


def test_no_tensor_is_read_whole(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the chunks in flight: whole rows, at most CHUNK_VALUES of values."""
    limit = 1000
    monkeypatch.setattr(rows, "CHUNK_VALUES", limit)
    reads: list[tuple[TensorRef, int]] = []
    original = Checkpoint.read_rows

    def spy(self: Checkpoint, ref: TensorRef, first: int, count: int) -> Any:
        reads.append((ref, count))
        return original(self, ref, first, count)

    monkeypatch.setattr(Checkpoint, "read_rows", spy)
    report = convert(bert_folder, tmp_path / "m.gguf", threads=2)
    assert max(count * ref.n_cols for ref, count in reads) <= limit
    assert sum(count * ref.n_cols for ref, count in reads) == report.n_parameters


# ---------------------------------------------------------------- whole, or not there


@contextmanager
def files_limited_to(n_bytes: int) -> Iterator[None]:
    """Writes beyond that many bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["nothing there", "a file there"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A path to convert to; after the test it must be as it was, and nothing beside it."""
    path = tmp_path / "out" / "m.gguf"
    path.parent.mkdir()
    before = {}
    if request.param == "a file there":
        path.write_bytes(b"an older file")
        before = {"m.gguf": b"an older file"}
    yield path
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.parametrize("problem", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_conversion_that_stops_half_way_leaves_nothing(
    problem: type[BaseException], threads: int, bert_folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CHUNK_VALUES", 1000)

    def stop(done: int, total: int, what: str) -> None:
        if what == "model.safetensors":
            return  # its digest, before anything is written
        assert len(list(target.parent.glob("m.gguf.*.part"))) == 1
        if done > total // 2:
            raise problem

    with pytest.raises(problem):
        convert(bert_folder, target, threads=threads, progress=stop)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_a_disk_that_fills_up_leaves_nothing(share: float, bert_folder: Path, target: Path, tmp_path: Path) -> None:
    """In the header, in the middle, and on the last byte."""
    size = convert(bert_folder, tmp_path / "whole.gguf").size_bytes
    with files_limited_to(int(size * share)), pytest.raises(errors.OutputFileError, match=r"m\.gguf"):
        convert(bert_folder, target)


def test_a_disk_that_reports_only_at_the_end_that_it_is_full_leaves_nothing(
    bert_folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems with delayed allocation find out when the file is flushed."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.OutputFileError, match="No space left"):
        convert(bert_folder, target)


def test_too_little_room_is_found_before_anything_is_written(
    bert_folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(errors.OutputFileError, match="has 1000 left"):
        convert(bert_folder, target)


def test_bad_weights_half_way_leave_nothing(target: Path, tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path / "model")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()  # the pooler, which is left out
    path.write_bytes(data)
    convert(folder, tmp_path / "fine.gguf")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin = 8 + int.from_bytes(data[:8], "little") + header["encoder.layer.1.output.dense.bias"]["data_offsets"][0]
    data[begin : begin + 4] = np.float32(np.inf).tobytes()
    path.write_bytes(data)
    with pytest.raises(errors.CheckpointError, match=r"model\.safetensors.*layer\.1\.output\.dense\.bias"):
        convert(folder, target)


def test_a_library_that_is_missing_is_found_before_anything_is_written(
    bert_folder: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_embed.convert.blocks import ggml

    ggml.prepare.cache_clear()
    ggml._library.cache_clear()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(errors.EngineUnavailableError, match="ggml-base"):
        convert(bert_folder, target, ftype="q8_0")
    for ftype in ("f32", "f16", "bf16"):
        convert(bert_folder, tmp_path / f"{ftype}.gguf", ftype=ftype)


def test_an_existing_file_is_replaced_by_a_whole_one(bert_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"an older file")
    report = convert(bert_folder, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == report.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_place_that_cannot_be_written(bert_folder: Path, tmp_path: Path) -> None:
    """A folder that is missing or is a file, and anything that is neither a file nor a folder."""
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for place in ("missing/m.gguf", "file/m.gguf", "pipe"):
        with pytest.raises(errors.OutputFileError, match=r"cannot be written|not a file"):
            convert(bert_folder, tmp_path / place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "pipe").is_fifo()
