"""The command line in processes of its own: the bundled model, interrupts, readers that go away, full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_embed.cli.app import BROKEN_PIPE, INTERRUPTED
from edge_embed.engine import probe
from tests.commands import COMMAND, INTERRUPTIBLE, run

TEXTS = ["a cat sleeps", "", "naïve café 猫", "the bank raised rates"]


def test_doctor_finds_a_working_machine() -> None:
    """Every check passes, the engine included."""
    done = subprocess.run([*COMMAND, "doctor", "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert found["ok"] is True
    assert {"versions", "CPU", "threads", "library", "model", "probe", "embedding"} <= {
        check["name"] for check in found["checks"]
    }


def test_doctor_says_what_is_broken() -> None:
    """The exit code says that something is, the hint what to do."""
    result = run("doctor", "--model", "no-such-model", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["ok"] is False
    assert found["checks"][-1]["name"] == "model"
    assert found["checks"][-1]["hint"]


def test_what_the_output_cannot_show_ends_no_command() -> None:
    """A pipe under Windows has a few hundred letters, and doctor's arrow is none of them."""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [*COMMAND, "doctor", "--model", "猫"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"'\\u732b'" in done.stdout
    assert b"\\u2192 " in done.stdout


def test_json_stays_json_whatever_the_output_can_show() -> None:
    """JSON knows an escape for each letter, and it is not always Python's."""
    text = "é 猫 🐈"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1251"}
    command = [*COMMAND, "doctor", "--model", text, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert text in json.loads(done.stdout.decode("cp1251"))["checks"][-1]["detail"]


def test_doctor_says_that_the_fastest_kernels_crash(monkeypatch: pytest.MonkeyPatch, bert_path: Path) -> None:
    """Works, but slowly: exit code 0 and the way to mend it."""
    crashes = probe.ChildResult(True, "it died of SIGILL")
    monkeypatch.setattr(probe, "run_child", lambda _, fast, *_rest: crashes if fast else probe.ChildResult(False))
    result = run("doctor", "-m", bert_path, "--fresh", "--json")
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 0
    assert found["probe"]["status"] == "slow"
    assert "SIGILL" in found["probe"]["detail"]
    assert found["probe"]["hint"]
    monkeypatch.setattr(probe, "run_child", lambda *_: crashes)
    result = run("doctor", "-m", bert_path, "--fresh")
    assert result.exit_code == 1
    assert "fail  probe" in result.stdout


def test_embed_with_the_bundled_model(tmp_path: Path) -> None:
    """The same vectors as the library's, and stderr silent."""
    from edge_embed import Embedder

    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    done = subprocess.run([*COMMAND, "embed", "-f", tmp_path / "a.txt"], capture_output=True, check=True)
    with Embedder() as embedder:
        np.testing.assert_allclose(
            np.array(json.loads(done.stdout), dtype=np.float32), embedder.encode(TEXTS), atol=1e-5
        )
    assert done.stderr == b""


def test_progress_is_never_on_stdout(tmp_path: Path) -> None:
    """Asked for, it goes to stderr; the output is the same."""
    (tmp_path / "a.txt").write_text("".join(f"text {i}\n" for i in range(100)))
    command = [*COMMAND, "embed", "--threads", "1", "-f", tmp_path / "a.txt", "--output-format", "csv"]
    with_it = subprocess.run([*command, "--progress"], capture_output=True, check=True)
    without = subprocess.run([*command, "--no-progress"], capture_output=True, check=True)
    assert with_it.stdout == without.stdout
    assert without.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
def test_a_reader_that_goes_away_is_no_error() -> None:
    """As with `| head`: nothing on stderr."""
    process = subprocess.Popen(
        [*COMMAND, "embed", "--threads", "1", "--output-format", "csv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.write(b"".join(b"%d\n" % i for i in range(200)))
    process.stdin.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == BROKEN_PIPE


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
def test_an_interrupt_is_a_short_line(tmp_path: Path) -> None:
    """Exit code 130, no traceback, nothing left of the output."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "embed", "-o", tmp_path / "v.npy"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    while not (tmp_path / "v.npy.part").exists() and process.poll() is None:  # it is in the midst of its work
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait()
    process.stdin.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.returncode, stderr.strip()) == (INTERRUPTED, b"interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_an_error() -> None:
    """Exit code 4 and the system's reason, on standard output as well."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "embed", "x"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 4
    assert done.stderr.startswith("error: cannot write standard output: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["embed", "-h"], ["--version"], ["list"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """No NumPy, no engine, no tokenizers, no converter."""
    code = (
        "import sys\nfrom edge_embed.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'llama_cpp', 'tokenizers', 'gguf', 'edge_embed.convert'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
