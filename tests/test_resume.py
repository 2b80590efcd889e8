"""Jobs that are interrupted and go on: the same bytes as an undisturbed run, or a refusal that says what differs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edge_embed import types
from edge_embed.cli import output, resume
from edge_embed.cli.app import INTERRUPTED
from edge_embed.errors import ComputeError, ResumeError, exit_code
from edge_embed.testing import FakeEngine, fake_embedder
from tests.commands import run

N_TEXTS = 6000
# A state after each step, so that there is something to continue from however early a process is killed.
EACH_STEP = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from edge_embed.cli import main, resume; resume.CHECKPOINT_SECONDS = 0; main()"
)


def words(count: int, seed: int = 0) -> Iterator[str]:
    """Texts of few and of many words."""
    chosen = random.Random(seed)
    for index in range(count):
        yield " ".join([str(index), *chosen.choices(["bees", "navigate", "by", "the", "sun"], k=chosen.randrange(9))])


class Interrupting(FakeEngine):
    """Fails once it was given so many batches."""

    error: BaseException = KeyboardInterrupt()
    limit = 1 << 30

    def decode(self, batch: types.Batch, *rest: Any, **more: Any) -> types.Float32Array:
        if len(self.batches) >= self.limit:
            raise self.error
        return super().decode(batch, *rest, **more)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Interrupting:
    """What the command gets for a model; its file is ``fake.gguf``."""
    from dataclasses import replace

    engine = Interrupting(n_batch=2048, n_seq_max=32)
    (tmp_path / "fake.gguf").write_bytes(b"weights")

    def opened(*_: object, **__: object) -> Any:
        embedder = fake_embedder(engine)
        embedder.info = replace(embedder.info, path=str(tmp_path / "fake.gguf"))
        return embedder

    monkeypatch.setattr(engine, "close", lambda: None)
    monkeypatch.setattr("edge_embed.embedder.Embedder", opened)
    monkeypatch.setattr(resume, "CHECKPOINT_SECONDS", 0.0)
    return engine


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{text}\n" for text in words(N_TEXTS)))
    return path


def interrupted(engine: Interrupting, arguments: list[str | Path], *, after: int = 45) -> Result:
    """The command, stopped after so many batches of its own."""
    engine.limit = len(engine.batches) + after
    result = run(*arguments)
    engine.limit = 1 << 30
    return result


@pytest.mark.parametrize("output_format", output.OUTPUT_FORMATS)
def test_an_interrupted_job_goes_on(engine: Interrupting, texts: Path, tmp_path: Path, output_format: str) -> None:
    """Three times; each part of the work is done once, and the file is the same to the byte."""
    whole, target = tmp_path / f"whole.{output_format}", tmp_path / f"v.{output_format}"
    assert run("embed", "-f", texts, "-o", whole).exit_code == 0
    undisturbed = len(engine.batches)
    engine.batches.clear()
    command: list[str | Path] = ["embed", "-f", texts, "-o", target, "--resume"]
    reached = []
    for _ in range(3):
        result = interrupted(engine, command)
        assert result.exit_code == INTERRUPTED
        assert f"of {N_TEXTS} texts are kept" in result.stderr
        assert not target.exists()
        reached.append(resume._read(resume.state_of(target))["state"].n_texts)  # type: ignore[index]
    assert 0 < reached[0] < reached[1] < reached[2] < N_TEXTS
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert f"{reached[2]} texts were done before" in result.stderr
    assert target.read_bytes() == whole.read_bytes()
    assert len(engine.batches) < 1.5 * undisturbed
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([whole.name, target.name, "in.txt", "fake.gguf"])


def test_what_was_half_written_is_cut_off(engine: Interrupting, texts: Path, tmp_path: Path) -> None:
    target = tmp_path / "v.csv"
    command: list[str | Path] = ["embed", "-f", texts, "-o", target]
    assert run(*command).exit_code == 0
    whole = target.read_bytes()
    interrupted(engine, [*command, "--resume"])
    with output.part_of(target).open("ab") as part:
        part.write(b"0.25,0.5,0.")
    assert run(*command, "--resume").exit_code == 0
    assert target.read_bytes() == whole


def test_an_error_keeps_what_is_done_as_well(engine: Interrupting, texts: Path, tmp_path: Path) -> None:
    target = tmp_path / "v.npy"
    engine.error = ComputeError("the engine failed")
    command: list[str | Path] = ["embed", "-f", texts, "-o", target, "--resume"]
    result = interrupted(engine, command)
    assert result.exit_code == exit_code(engine.error)  # type: ignore[arg-type]
    assert "texts are kept" in result.stderr
    assert run(*command).exit_code == 0


def test_truncated_texts_are_counted_over_all_parts(
    engine: Interrupting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("\n".join(["x" * 600, *map(str, range(400)), "y" * 600]) + "\n")
    command: list[str | Path] = ["embed", "-f", tmp_path / "in.txt", "-o", tmp_path / "v.npy", "--resume"]
    assert interrupted(engine, command, after=9).exit_code == INTERRUPTED
    assert "2 of 402 texts were cut to 512 tokens" in run(*command).stderr


def test_without_resume_nothing_is_left(engine: Interrupting, texts: Path, tmp_path: Path) -> None:
    result = interrupted(engine, ["embed", "-f", texts, "-o", tmp_path / "v.npy"])
    assert result.exit_code == INTERRUPTED
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fake.gguf", "in.txt"]


def test_kept_work_is_not_lost_by_accident(engine: Interrupting, texts: Path, tmp_path: Path) -> None:
    """Without --resume the command refuses; --no-resume starts again."""
    target = tmp_path / "v.npy"
    command: list[str | Path] = ["embed", "-f", texts, "-o", target]
    interrupted(engine, [*command, "--resume"])
    kept = output.part_of(target).read_bytes()
    result = run(*command)
    assert result.exit_code == exit_code(ResumeError("x")) == 2
    assert "texts of a job that was interrupted" in result.stderr
    assert "--resume goes on" in result.stderr
    assert output.part_of(target).read_bytes() == kept
    assert interrupted(engine, [*command, "--no-resume"], after=3).exit_code == INTERRUPTED
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fake.gguf", "in.txt"]
    assert run(*command, "--no-resume").exit_code == 0


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["-d", "4"], "dimensions was not given and is 4"),
        (["--query"], "query was false and is true"),
        (["--prompt", "p: "], 'prompt was not given and is "p: "'),
        (["--precision", "int8"], 'precision was "float32" and is "int8"'),
        (["--no-normalize"], "normalize was not given and is false"),
        (["--truncate", "left"], 'truncate was "right" and is "left"'),
        (["--max-tokens", "9"], "max_tokens was not given and is 9"),
        (["--threads", "1"], "threads was not given and is 1"),
        (["--output-format", "f32"], 'output-format was "npy" and is "f32"'),
    ],
)
def test_another_job_is_refused(engine: Interrupting, texts: Path, tmp_path: Path, more: list[str], part: str) -> None:
    """By what differs, with nothing touched; the first command still goes on."""
    command: list[str | Path] = ["embed", "-f", texts, "-o", tmp_path / "v.npy", "--resume"]
    interrupted(engine, command)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    result = run(*command, *more)
    assert result.exit_code == 2
    assert part in result.stderr
    assert "--no-resume" in result.stderr
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert run(*command).exit_code == 0


def test_a_changed_input_is_refused(engine: Interrupting, texts: Path, tmp_path: Path) -> None:
    """By its size or time; and by its texts, where these were put back."""
    command: list[str | Path] = ["embed", "-f", texts, "-o", tmp_path / "v.npy", "--resume"]
    interrupted(engine, command)
    stat = texts.stat()
    data = texts.read_bytes()
    texts.write_bytes(data + b"one more\n")
    result = run(*command)
    assert (result.exit_code, "file was " in result.stderr) == (2, True)
    texts.write_bytes(data.replace(b"bees", b"BEES", 1))
    os.utime(texts, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = run(*command)
    assert result.exit_code == 2
    assert "texts have changed" in result.stderr
    texts.write_bytes(data)
    os.utime(texts, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(*command).exit_code == 0


def test_another_model_is_refused_and_the_same_elsewhere_is_not(
    engine: Interrupting, texts: Path, tmp_path: Path
) -> None:
    """It goes by the file's bytes."""
    command: list[str | Path] = ["embed", "-f", texts, "-o", tmp_path / "v.npy", "--resume"]
    interrupted(engine, command)
    (tmp_path / "fake.gguf").write_bytes(b"WEIGHTS")
    result = run(*command)
    assert result.exit_code == 2
    assert "the model was" in result.stderr
    (tmp_path / "fake.gguf").write_bytes(b"weights")
    assert run(*command).exit_code == 0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 99}',
        '{"format": 1, "settings": {}, "model": {}, "state": {"mark": {}}}',
        '{"format": 1, "settings": {}, "model": {}, "state": {"mark": '
        '{"n_bytes": -1, "n_rows": 0, "columns": 0, "descr": ""}}}',
    ],
)
def test_a_state_that_cannot_be_read_is_refused(
    engine: Interrupting, texts: Path, tmp_path: Path, content: str
) -> None:
    command: list[str | Path] = ["embed", "-f", texts, "-o", tmp_path / "v.npy"]
    interrupted(engine, [*command, "--resume"])
    resume.state_of(tmp_path / "v.npy").write_text(content)
    for flags in (["--resume"], []):
        result = run(*command, *flags)
        assert result.exit_code == 2
        assert "cannot be used" in result.stderr
        assert "--no-resume" in result.stderr
    assert run(*command, "--no-resume").exit_code == 0


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_part_that_is_shorter_than_it_was_is_refused(
    engine: Interrupting, texts: Path, tmp_path: Path, damage: str
) -> None:
    target = tmp_path / "v.npy"
    command: list[str | Path] = ["embed", "-f", texts, "-o", target, "--resume"]
    interrupted(engine, command)
    part = output.part_of(target)
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:500])
    result = run(*command)
    assert result.exit_code == 2
    assert "bytes, and the interrupted job had written" in result.stderr


def test_a_job_killed_at_its_very_end_is_complete(
    engine: Interrupting, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the file got its name, and after it."""
    target = tmp_path / "v.json"
    command: list[str | Path] = ["embed", "-f", texts, "-o", target, "--resume"]
    assert run(*command).exit_code == 0
    whole = target.read_bytes()
    target.unlink()
    rename = Path.replace
    for name in ("replace", "remove"):
        with monkeypatch.context() as patch:
            if name == "replace":  # of the part, not of the state
                patch.setattr(Path, "replace", lambda self, to: rename(self, to) if self.suffix == ".new" else 1 / 0)
            else:
                patch.setattr(resume.Job, "remove", lambda _: 1 / 0)
            run(*command)
        engine.batches.clear()
        result = run(*command)
        assert result.exit_code == 0, result.stderr
        assert engine.batches == []
        assert target.read_bytes() == whole
        assert not resume.state_of(target).exists()
        target.unlink()


@pytest.mark.parametrize(
    "arguments",
    [["x", "-o", "v.npy"], ["-f", "-", "-o", "v.npy"], ["-f", "in.txt"], ["-f", "in.txt", "-o", os.devnull]],
)
def test_resume_needs_a_file_to_read_and_one_to_write(
    engine: Interrupting, texts: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(texts.parent)
    result = run("embed", "--resume", "--output-format", "csv", *arguments)
    assert result.exit_code == 2
    assert "--resume needs" in result.stderr


def test_an_empty_file_is_a_job_as_well(engine: Interrupting, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("")
    result = run("embed", "-f", tmp_path / "in.txt", "-o", tmp_path / "v.json", "--resume")
    assert (result.exit_code, (tmp_path / "v.json").read_text()) == (0, "[]\n")


# Real processes


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", EACH_STEP, "embed", "--threads", "1", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def n_done(state: Path) -> int:
    return int(json.loads(state.read_text())["state"]["n_texts"]) if state.exists() else 0


def wait_for_progress(process: subprocess.Popen[bytes], state: Path, beyond: int) -> None:
    while process.poll() is None and n_done(state) <= beyond:
        time.sleep(0.005)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("model", "output_format"), [("bert_path", "npy"), ("qwen3_path", "jsonl")])
def test_killed_five_times_the_bytes_are_the_same(
    model: str, output_format: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """At random moments, by the signal that cannot be caught; once by Ctrl-C and once by SIGTERM.

    The second model keeps what its texts begin with from one batch to the next, which a new process has to do again.
    """
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in words(8_000)))
    whole, target = tmp_path / f"whole.{output_format}", tmp_path / f"v.{output_format}"
    prompt = (
        "Find what this is about: the sun, the bees, or how they navigate by it.\nText: " if "qwen" in model else ""
    )
    command = ["-m", request.getfixturevalue(model), "--prompt", prompt, "-f", tmp_path / "in.txt", "-o"]
    process = start(*command, whole)
    assert process.communicate()[1] == b""
    moments = random.Random(5)
    state = resume.state_of(target)
    reached = [0]
    for sent in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = start(*command, target, "--resume")
        wait_for_progress(process, state, reached[-1])
        time.sleep(moments.random() * 0.02)
        process.send_signal(sent)
        stderr = process.communicate()[1]
        assert process.returncode == (-sent if sent == signal.SIGKILL else INTERRUPTED), stderr
        assert not target.exists()
        reached.append(n_done(state))
    assert reached == sorted(set(reached))
    process = start(*command, target, "--resume")
    assert b"texts were done before" in process.communicate()[1]
    assert process.returncode == 0
    assert target.read_bytes() == whole.read_bytes()
    assert not state.exists()


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_two_processes_do_not_write_one_part(bert_path: Path, tmp_path: Path) -> None:
    """The second is refused, with --no-resume as well, and the first is not disturbed."""
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in words(8_000)))
    command = ["-m", bert_path, "-f", tmp_path / "in.txt", "-o", tmp_path / "v.npy"]
    first = start(*command, "--resume")
    wait_for_progress(first, resume.state_of(tmp_path / "v.npy"), 0)
    first.send_signal(signal.SIGSTOP)
    try:
        for flag in ("--resume", "--no-resume"):
            second = start(*command, flag)
            assert b"another process is writing" in second.communicate()[1]
            assert second.returncode == 2
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.communicate()[1] == b""
    assert first.returncode == 0
    assert (tmp_path / "v.npy").stat().st_size == 128 + 8_000 * 32 * 4


MEMORY = """
import dataclasses, re, sys
import numpy as np
from pathlib import Path
import edge_embed.embedder
from edge_embed.cli import main
from edge_embed.testing import FakeEngine, fake_embedder

class Forgetful(FakeEngine):
    def decode(self, batch, *rest, **more):
        return np.zeros((batch.n_seqs, 256), dtype=np.float32)

def opened(*_, **__):
    embedder = fake_embedder(Forgetful(n_embd=256, n_batch=8192, n_seq_max=64))
    embedder.info = dataclasses.replace(embedder.info, path=sys.argv[2])
    return embedder

edge_embed.embedder.Embedder = opened
try:
    main(["embed", *sys.argv[1:]])
except SystemExit as end:
    assert not end.code, end.code
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak of resident memory")
@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, flags: list[str]) -> None:
    """Four times the texts, the same peak; holding them would take 9 MB more, holding their vectors 30."""
    peaks = []
    for count in (10_000, 40_000):
        (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{text:*<250}"}}\n' for text in words(count)))
        arguments = ["-f", tmp_path / "in.jsonl", "-o", tmp_path / f"{count}.f32", *flags]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) * 1024)
    assert (tmp_path / "40000.f32").stat().st_size == 40_000 * 1024
    assert peaks[1] - peaks[0] < 5_000_000, peaks
