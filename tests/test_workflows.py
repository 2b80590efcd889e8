"""The workflow that builds wheels: what it names is here, and what it uses cannot change under it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
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
ENGINE: dict[str, str] = next(step["env"] for step in JOBS["engine"]["steps"] if "env" in step)


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


@pytest.mark.parametrize("system", ["LINUX", "MACOS", "WINDOWS"])
def test_the_flags_are_found_from_the_folder_of_the_build(system: str, tmp_path: Path) -> None:
    """They are asked for in the unpacked archive, not in the checkout; the container has the host below /host."""
    preset = {"LINUX": "cpu-arm64", "MACOS": "metal", "WINDOWS": "cpu-portable"}[system]
    value = ENGINE[f"CIBW_ENVIRONMENT_{system}"].replace("${{ matrix.preset }}", preset)
    value = value.replace("/host${{ github.workspace }}", '"$GITHUB_WORKSPACE"')
    assert "${{" not in value  # on Windows it would bring backslashes, which the shell takes away
    environment = {"GITHUB_WORKSPACE": str(ROOT), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    answer = subprocess.run(
        ["bash", "-ec", f"{value}; printf '%s' \"$CMAKE_ARGS\""],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    flags = shlex.split(answer.stdout)
    assert flags[: len(build.cmake_args(preset))] == build.cmake_args(preset)


def test_a_wheel_for_macos_promises_what_it_was_built_for() -> None:
    """A Mac older than the libraries gets no wheel, and none gets instructions that only the builder has."""
    value = ENGINE["CIBW_ENVIRONMENT_MACOS"]
    (built,) = re.findall(r"MACOSX_DEPLOYMENT_TARGET=(\S+)", value)
    assert re.findall(r"_PYTHON_HOST_PLATFORM=(\S+)", value) == [f"macosx-{built}-arm64"]
    assert re.search(r'\) .*-DGGML_NATIVE=OFF.*"', value)  # after the preset's flags: the last one wins
    runner = next(name for name in JOBS["try"]["strategy"]["matrix"]["runner"] if name.startswith("macos-"))
    assert int(runner.removeprefix("macos-")) >= int(built.partition(".")[0])


def test_the_engines_wheel_has_the_licences_of_what_is_in_it() -> None:
    """llama-cpp-python packs its own alone, and that of the libraries has to go with them."""
    name, _, files = ENGINE["CIBW_CONFIG_SETTINGS"].partition("=")
    assert name == "wheel.license-files"
    assert files.split(";") == ["LICENSE.md", "vendor/llama.cpp/LICENSE"]


def test_the_release_gets_the_files_that_were_tried() -> None:
    """The step that publishes leaves files of its own in dist/."""
    words = shlex.split(JOBS["publish"]["steps"][-1]["run"])
    assert [word for word in words if "*" in word] == ["dist/*.tar.gz", "dist/*.whl", "engine/*.whl"]


@pytest.mark.parametrize(
    "line", [line for step in STEPS for line in step.get("run", "").splitlines() if line.startswith("edge-embed ")]
)
def test_the_commands_are_understood(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command = main.get_command(main.make_context("edge-embed", [name]), name)
    assert command is not None
    command.make_context(name, arguments)
