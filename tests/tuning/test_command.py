"""``edge-embed tune``, with real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_embed.cli import tune as tune_command
from edge_embed.engine import trial, tune, tuner
from edge_embed.engine.search import Found, Measured, Search
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import ModelInfo
from tests.commands import run
from tests.tuning.choices import REFERENCE, chosen


@pytest.fixture
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "BATCHES", {False: (384, 512), True: (512,)})
    monkeypatch.setattr(tuner, "UBATCHES", (512,))
    monkeypatch.setattr(tuner, "default_threads", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def test_a_model_is_tuned_and_the_choice_is_used(bert_path: Path, info: ModelInfo, few_batches: None) -> None:
    result = run("tune", bert_path, "--json", "--budget", "120")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (True, True) == (report["complete"], report["kept"])
    assert ["reference"] == [m["verdict"] for m in report["measured"] if not m["changed"]]
    tried = {name for measured in report["measured"] for name in measured["changed"]}
    assert {"use_extra_bufts", "n_batch"} <= tried
    assert all(m["deviation"] <= report["allowed_deviation"] for m in report["measured"] if m["changed"])
    assert min(report["tokens"].values()) > 0
    assert all(f"{name} " in result.stderr for name in tried)
    known = tune.choice(info)
    assert known is not None
    assert report["settings"] == dataclasses.asdict(known.settings)
    assert "forgotten" in run("tune", bert_path, "--forget").stdout
    assert "nothing was chosen" in run("tune", bert_path, "--forget").stdout
    assert None is tune.choice(info)


def test_the_table_says_what_was_tried_and_chosen(monkeypatch: pytest.MonkeyPatch, bert_path: Path) -> None:
    best = dataclasses.replace(REFERENCE, n_batch=512)
    rates = {"documents": 1234.0}
    found = Found(
        best, 1.25, False, False, 1e-3,
        (
            Measured({}, REFERENCE, "reference", tokens_per_second=rates),
            Measured({"n_batch": 512}, best, "faster", "", 1.3, rates, 2e-5),
            Measured({"use_extra_bufts": False}, REFERENCE, "failed", "it died of SIGILL"),
            Measured({"n_threads": 1}, dataclasses.replace(best, n_threads=1), "faster", "", 1.1, rates, 0.0),
        ),
    )  # fmt: skip
    planned = tuner.plan(read_model_info(read_header(bert_path)), "documents")
    outcome = tuner.Outcome(planned, found, {"documents": 9}, {"documents": 999}, True, True)
    monkeypatch.setattr(tuner, "tune", lambda *_, **__: outcome)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert "busy" not in run("tune", bert_path).stderr
    monkeypatch.setattr(os, "getloadavg", lambda: (96.5, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    result = run("tune", bert_path, "--profile", "documents")
    assert "a load of 96.5 on 64 CPUs" in result.stderr
    lines = result.stdout.splitlines()
    assert ["n_batch", "512", "1,234", "1.30", "2.0e-05", "chosen"] == lines[2].split()
    assert lines[3].endswith("failed: it died of SIGILL")
    assert lines[4].endswith("faster, but not in the end")
    assert "1.25 times as fast as untuned" in result.stdout
    assert "not everything was tried" in result.stderr


def test_where_the_time_was_too_short_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, bert_path: Path, info: ModelInfo, few_batches: None
) -> None:
    monkeypatch.setattr(tuner, "Search", lambda start, judge, _, say: Search(start, judge, 0.0, say))
    result = run("tune", bert_path)
    assert result.exit_code == 0, result.stderr
    assert "nothing was decided, and nothing kept" in result.stdout
    assert "give more time with --budget" in result.stderr
    assert None is tune.choice(info)


def test_a_dry_run_starts_nothing(bert_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(trial, "Child", refuse)
    monkeypatch.setattr("edge_embed.engine.probe.Child", refuse)
    result = run("tune", bert_path, "--dry-run")
    assert (0, "") == (result.exit_code, result.stderr)
    assert "try:  use_extra_bufts off" in result.stdout
    plan = json.loads(run("tune", bert_path, "--dry-run", "--json").stdout)
    assert [True, False] == plan["coordinates"]["use_extra_bufts"]
    assert not empty_cache.exists()


def test_show_and_doctor_say_whether_a_model_is_tuned(bert_path: Path, info: ModelInfo) -> None:
    assert "tuned" not in run("show", bert_path).stdout
    assert json.loads(run("show", bert_path, "--json").stdout)["tuned"] is None
    assert "untuned; `edge-embed tune`" in run("doctor", bert_path).stdout
    tune.keep(info, chosen(n_batch=100))
    said = "for mixed, 1.50 times as fast as untuned: use_extra_bufts on, n_threads 2, n_batch 100, n_ubatch 512"
    assert said in run("show", bert_path).stdout
    assert said in json.loads(run("show", bert_path, "--json").stdout)["tuned"]
    assert f"settings   tuned {said}" in run("doctor", bert_path).stdout


def test_options_of_a_file_need_one(bert_path: Path) -> None:
    assert 2 == run("tune", bert_path, "--field", "body").exit_code


def test_the_command_knows_the_profiles() -> None:
    assert tune.PROFILES == tune_command.PROFILES


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to a process there")
def test_an_interrupt_ends_it_and_its_children(bert_path: Path, empty_cache: Path) -> None:
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from edge_embed.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "tune", str(bert_path)],
        env={**os.environ, "EDGE_EMBED_CACHE": str(empty_cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        try:
            said = iter(process.stderr.readline, "")
            assert any(line.startswith("untuned: ") for line in said)  # a busy machine is said before
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            mine = children.read_text().split() if children.exists() else []
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert 130 == process.returncode
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    if (empty_cache / "tune.json").exists():
        assert json.loads((empty_cache / "tune.json").read_text())
    assert [] == [path.name for path in empty_cache.glob("tune.json?*")]
