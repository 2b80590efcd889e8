"""The workflow that builds wheels: what it names is here, and what it uses cannot change under it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_embed.cli import main
from edge_embed.engine import build

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
JOBS: dict[str, Any] = yaml.safe_load(TEXT)["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]


def test_jobs_wait_for_those_that_are_there_and_a_tag_publishes_what_was_tried() -> None:
    for job in JOBS.values():
        assert set(job.get("needs", [])) <= set(JOBS)
    assert JOBS["publish"]["needs"] == ["try"]
    assert set(JOBS["try"]["needs"]) == {"python", "engine"}
    assert "tag" in JOBS["publish"]["if"]
    assert yaml.safe_load(TEXT)[True]["push"] == {"tags": ["v*"]}  # YAML reads `on` as a truth value


@pytest.mark.parametrize("used", [step["uses"] for step in STEPS if "uses" in step])
def test_actions_are_pinned_to_commits(used: str) -> None:
    assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", used)


def test_tools_are_pinned() -> None:
    installed = [word for step in STEPS for word in step.get("run", "").split() if "==" in word]
    assert {word.strip('"').split("==")[0] for word in installed} == {
        "build",
        "cibuildwheel",
        "llama-cpp-python",
        "twine",
    }


def test_every_platform_is_built_and_tried() -> None:
    built = {entry["runner"]: entry["preset"] for entry in JOBS["engine"]["strategy"]["matrix"]["include"]}
    assert set(built) == set(JOBS["try"]["strategy"]["matrix"]["runner"])
    assert set(built.values()) <= set(build.presets())
    for system in ("ubuntu-24.04", "ubuntu-24.04-arm", "macos", "windows"):
        assert any(runner.startswith(system) for runner in built)


def test_the_ends_of_supported_pythons_are_tried() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lowest, above = re.findall(r"\d\.(\d+)", re.search(r'requires-python = "(.*)"', project)[1])  # type: ignore[index]
    assert JOBS["try"]["strategy"]["matrix"]["python"] == [f"3.{lowest}", f"3.{int(above) - 1}"]


def test_the_pinned_archive_is_read_from_where_it_stands() -> None:
    """The shell's sed finds what Python has."""
    script = (ROOT / "edge_embed" / "engine" / "build.py").read_text(encoding="utf-8")
    for name in ("LLAMA_CPP_PYTHON", "ARCHIVE_SHA256"):
        assert f"$(name {name})" in TEXT
        assert re.findall(rf'^{name} = "([^"]*)"', script, re.MULTILINE) == [getattr(build, name)]


@pytest.mark.parametrize(
    "line", [line for step in STEPS for line in step.get("run", "").splitlines() if line.startswith("edge-embed ")]
)
def test_the_commands_are_understood(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command = main.get_command(main.make_context("edge-embed", [name]), name)
    assert command is not None
    command.make_context(name, arguments)
