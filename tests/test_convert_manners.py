"""A conversion as a guest on the machine: signals, company, memory, what a terminal and a log see.

With real processes: what a signal does to an interpreter with threads is not to be imitated.
"""

from __future__ import annotations

import hashlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_embed import errors
from edge_embed.convert import convert
from edge_embed.convert.blocks import rows
from edge_embed.convert.container import output as container
from edge_embed.convert.container.output import GGUFOutput, OutputTensor
from edge_embed.progress import BytesProgress
from tests.checkpoints import build_tiny_bert
from tests.converting import small_qwen3

# The command line; half-way it waits until a file says that it may go on.
PATIENT = """
import itertools, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background starts without
from edge_embed.convert.blocks import rows
from edge_embed.cli.app import main
module = sys.modules["edge_embed.convert.convert"]
encode, number, go = module.encode_rows, itertools.count(), pathlib.Path(sys.argv.pop(1))
def patient(*arguments):
    time.sleep(0.02)
    while next(number) > 60 and not go.exists():
        time.sleep(0.01)
    return encode(*arguments)
module.encode_rows = patient
rows.CHUNK_VALUES = 2000
main(sys.argv[1:])
"""
PATIENCE = 300.0  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of some 150,000 weights: 100 chunks of 2,000."""
    return build_tiny_bert(tmp_path_factory.mktemp("checkpoint") / "model")


def command(folder: Path, target: Path, go: Path) -> list[str]:
    """What runs the conversion above."""
    return [sys.executable, "-c", PATIENT, str(go), "convert", str(folder), "-o", str(target), "--no-verify"]


def half_way(folder: Path, target: Path, go: Path) -> subprocess.Popen[bytes]:
    """A conversion in a process of its own that has written some of the data and waits."""
    child = subprocess.Popen(command(folder, target, go), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE
    while not any(part.stat().st_size > 30_000 for part in parts(target.parent)):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline, "it never began to write"
        time.sleep(0.01)
    return child


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


@pytest.fixture(params=["nothing there", "a file there"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A path to convert to; after the test it must be as it was, and nothing beside it."""
    path = tmp_path / "out" / "m.gguf"
    path.parent.mkdir()
    before = {"m.gguf": b"an older file"} if request.param == "a file there" else {}
    for name, content in before.items():
        (path.parent / name).write_bytes(content)
    yield path
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


# ---------------------------------------------------------------- interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(number: signal.Signals, folder: Path, target: Path, tmp_path: Path) -> None:
    """Ctrl-C, and what a service manager sends."""
    child = half_way(folder, target, tmp_path / "go")
    child.send_signal(number)
    time.sleep(0.1)
    (tmp_path / "go").touch()  # threads are not interrupted; they end what they are at
    _, complaints = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    assert complaints.decode().splitlines()[-1] == "interrupted"
    assert b"Traceback" not in complaints


def test_an_interrupt_while_hashing_leaves_nothing_behind(folder: Path, target: Path) -> None:
    def interrupt(_done: int, _total: int, what: str) -> None:
        assert what == "model.safetensors"
        assert parts(target.parent) == []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, target, progress=interrupt)


def test_what_a_killed_conversion_left_is_removed_by_the_next(folder: Path, tmp_path: Path) -> None:
    """Nothing can be done at the moment of SIGKILL; but the leftover is known by its lock, which ended with it."""
    target = tmp_path / "m.gguf"
    child = half_way(folder, target, tmp_path / "go")
    child.kill()
    child.communicate()
    assert len(parts(tmp_path)) == 1
    convert(folder, target)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_parts_of_other_files_stay(folder: Path, tmp_path: Path) -> None:
    """A part belongs to the file whose whole name it begins with."""
    others = [
        "other.gguf.01234567.part",
        "m.gguf.part",
        "m.gguf.notes.part",
        "xm.gguf.01234567.part",
        "m.gguf.0123.part",
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    convert(folder, tmp_path / "m.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "m.gguf"])


# ---------------------------------------------------------------- in company


def test_two_conversions_to_one_file_do_not_meet(folder: Path, tmp_path: Path) -> None:
    """Each writes a part of its own; the one that ends last is what stays, and it is whole."""
    target = tmp_path / "m.gguf"
    child = half_way(folder, target, tmp_path / "go")
    (its_part,) = parts(tmp_path)
    report = convert(folder, target, ftype="f16")
    assert hashlib.sha256(target.read_bytes()).hexdigest() == report.sha256
    assert parts(tmp_path) == [its_part]
    (tmp_path / "go").touch()
    said, complaints = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, complaints
    assert hashlib.sha256(target.read_bytes()).hexdigest() in said.decode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["go", "m.gguf"]
    assert target.read_bytes() == convert(folder, tmp_path / "again.gguf").path.read_bytes()


@contextmanager
def writing(target: Path, n_bytes: int) -> Iterator[GGUFOutput]:
    """A file with one tensor that is about to be written."""
    info = OutputTensor("x", (n_bytes // 4,), container.GGMLQuantizationType.F32, n_bytes)
    with GGUFOutput(target, "bert", [], [info]) as output:
        yield output


def test_a_part_in_use_is_not_taken_for_a_stale_one(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with writing(target, 64) as first:
        with writing(target, 64) as second:
            assert first.part != second.part
            assert len(parts(tmp_path)) == 2
            second.write(b"2" * 64)
        assert first.part.exists()
        first.write(b"1" * 64)
    assert target.read_bytes().endswith(b"1" * 64)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_without_locks_a_part_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: leftovers then stay, and harm nothing."""

    def unsupported(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(container.fcntl, "flock", unsupported)
    left = tmp_path / "m.gguf.01234567.part"
    left.write_bytes(b"")
    with writing(tmp_path / "m.gguf", 64) as output:
        output.write(b"1" * 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", left.name]


def test_a_file_has_the_permissions_that_the_umask_leaves(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = convert(folder, tmp_path / "m.gguf").path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def write_to_the_full_device(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux has one that is always full: the error is the system's own."""
    with Path("/dev/full").open("wb", buffering=0) as full, writing(target, 64) as output:
        assert output._file is not None
        output._file.close()
        monkeypatch.setattr(output, "_file", full)
        output.write(b"1" * 64)


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.OutputFileError) as caught:
        write_to_the_full_device(tmp_path / "m.gguf", monkeypatch)
    assert "No space left on device" in caught.value.message
    assert "m.gguf" in caught.value.message
    assert "free some room" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the same bytes, in little memory


def test_the_same_bytes_in_other_processes(folder: Path, tmp_path: Path) -> None:
    """Whatever the order of hashes, the number of threads and the place."""
    expected = convert(folder, tmp_path / "here.gguf", ftype="q4_k_m").path.read_bytes()
    for seed, threads in (("1", "1"), ("2", "5")):
        target = tmp_path / seed / "there.gguf"
        target.parent.mkdir()
        subprocess.run(
            [
                *(sys.executable, "-m", "edge_embed.cli", "convert", str(folder), "-o", str(target), "--no-verify"),
                *("--type", "q4_k_m", "--threads", threads),
            ],
            check=True,
            capture_output=True,
            cwd=target.parent,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert target.read_bytes() == expected


def test_shards_need_no_more_memory_than_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And both a small part of the weights. NumPy and Python tell tracemalloc of all they allocate."""
    monkeypatch.setattr(rows, "CHUNK_VALUES", 2**15)
    peaks = {}
    for sharded in (False, True):
        folder = small_qwen3(tmp_path / f"sharded={sharded}", sharded=sharded, hidden=512, heads=8)
        weights = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        assert len(list(folder.glob("*.safetensors"))) == 1 + sharded
        tracemalloc.start()
        try:
            convert(folder, tmp_path / "m.gguf", ftype="q8_0", threads=2)
            peaks[sharded] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peaks[True] < 1.1 * peaks[False]
    assert max(peaks.values()) < weights / 4, f"{peaks} bytes for {weights}"


def test_few_chunks_are_in_flight() -> None:
    """However slowly they are written, no more than two for each thread wait for it, beside those being made."""
    made = []

    def job(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            made.append(number)
            return bytes([number])

        return run

    results = rows.in_order((job(number) for number in range(100)), threads=3)
    for expected in range(100):
        assert next(results) == bytes([expected])
        time.sleep(0.001)
        assert len(made) <= expected + 1 + 2 * 3 + 1
    results.close()
    assert sorted(made) == list(range(100))


# ---------------------------------------------------------------- what is shown


def run_on_terminal(folder: Path, target: Path) -> str:
    """What a terminal of 80 columns is sent while a conversion of 100 chunks runs, each of which takes a moment."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        command(folder, target, folder / "config.json"),  # which exists: it does not wait
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env={**os.environ, "COLUMNS": "80"},
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(master)
    assert child.wait(timeout=PATIENCE) == 0
    return shown.decode()


def test_a_terminal_sees_bytes_and_the_time_left(folder: Path, tmp_path: Path) -> None:
    shown = run_on_terminal(folder, tmp_path / "m.gguf")
    lines = [line.rpartition("\r\x1b[K")[2].rstrip("\r") for line in shown.split("\n")]
    assert lines[0].startswith("hashing ████████████████████████ ")
    assert re.fullmatch(r"converting █{24} 0\.6/0\.6 MB, [\d.]+ MB/s, [\d:]+ (s|min)", lines[1])
    drawn = [line for line in re.split(r"\r\x1b\[K|\n", shown) if line.startswith("converting")]
    assert len(drawn) > 3
    assert any(
        re.search(r"0\.\d/0\.6 MB, [\d.]+ MB/s, [\d:]+ (s|min), [\d:]+ (s|min) left, \w", line) for line in drawn
    )
    assert max(map(len, drawn)) < 80


def test_a_log_sees_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer the work, the rarer: every five seconds at first, later in every tenth of the time so far."""
    import io

    from edge_embed import progress

    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with BytesProgress("hashing", "converting", stream=stream) as shown:
        for n_bytes in range(10):
            shown(n_bytes * 10**8, 10**9, "model.safetensors")
        for second in range(1000):
            now = float(second)
            shown(second * 10**6, 10**9, "blk.0.ffn_up.weight")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "converting: 5.0/1000.0 MB, 1.0 MB/s, 5 s, 16:35 min left, blk.0.ffn_up.weight"
    assert 20 < len(lines) < 50
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize("options", [("--no-progress",), ()])
def test_a_short_conversion_writes_nothing_to_a_log(options: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edge_embed.cli", "convert", str(folder), "-o", str(tmp_path / "m.gguf")),
            *("--no-verify", *options),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "MB/s" not in done.stderr
