"""The examples for operators: what they run, name and copy is here."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from edge_embed.cli import main
from edge_embed.cli.serve import serve
from edge_embed.engine.build import presets
from edge_embed.engine.placement import wanted
from edge_embed.server.settings import DEFAULT_PORT, ServerSettings
from tests.serving import fake_server

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
VARIABLES = {option.envvar for option in serve.params if isinstance(option, click.Option)}


def options_of(arguments: list[str]) -> dict[str, Any]:
    """What `edge-embed serve` understands of its arguments; click.UsageError where it does not."""
    assert arguments[0] == "serve"
    return serve.make_context("serve", arguments[1:], parent=main.make_context("edge-embed", arguments)).params


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(EXAMPLES / "edge-embed.service")
    return found


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's, with their arguments; continued lines are one."""
    text = (EXAMPLES / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, rest in lines]


def test_the_units_command_is_understood() -> None:
    program, *arguments = shlex.split(unit()["Service"]["ExecStart"])
    assert program.endswith("/bin/edge-embed")
    options = options_of(arguments)
    assert (options["host"], options["port"]) == ("127.0.0.1", DEFAULT_PORT)


def test_the_unit_waits_longer_than_the_server_drains() -> None:
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) > ServerSettings().drain_seconds
    assert service["Type"] == "notify"  # running.notify_systemd


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Where it is installed: with the program's path replaced by one that is there."""
    analyze = shutil.which("systemd-analyze")
    text = (EXAMPLES / "edge-embed.service").read_text()
    commands = re.findall(r"^ExecStart=(\S+)", text, flags=re.MULTILINE)
    assert len(commands) == 1
    if analyze is None:
        return
    copy = tmp_path / "edge-embed.service"
    copy.write_text(text.replace(commands[0], sys.executable))
    done = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_container_copies_what_is_here_and_runs_as_nobody_special() -> None:
    words = instructions()
    images = dict(rest.split("=", 1) for word, rest in words[: [word for word, _ in words].index("FROM")])
    assert [rest.split()[0] for word, rest in words if word == "FROM"] == [f"${{{name}}}" for name in images]
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+", image) for image in images.values())
    sources = [
        source for word, rest in words if word == "COPY" and "--from" not in rest for source in shlex.split(rest)[:-1]
    ]
    assert {"pyproject.toml", "edge_embed", "convert", "models"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert ("USER", "edge-embed") in words
    assert words.index(("USER", "edge-embed")) < [word for word, _ in words].index("CMD")


def test_the_containers_command_is_understood() -> None:
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"]) == ["edge-embed"]
    options = options_of(json.loads(found["CMD"]))
    assert (options["host"], options["port"], int(found["EXPOSE"])) == ("0.0.0.0", DEFAULT_PORT, DEFAULT_PORT)


def test_the_containers_health_check_tells_health_from_its_absence() -> None:
    _, _, command = dict(instructions())["HEALTHCHECK"].partition("CMD ")
    program, *arguments = json.loads(command)
    assert program == "python3"
    with fake_server() as server:
        asked = [argument.replace(f"http://127.0.0.1:{DEFAULT_PORT}", server.url) for argument in arguments]
        assert subprocess.run([sys.executable, *asked], timeout=60, check=False).returncode == 0
        server.gate.ending = True
        ended = subprocess.run([sys.executable, *asked], timeout=60, check=False, stderr=subprocess.DEVNULL)
        assert ended.returncode != 0
        server.gate.ending = False


def test_the_compose_file_names_what_is_here() -> None:
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
    ours, other = services["edge-embed"], services["open-webui"]
    build = ours["build"]
    assert (EXAMPLES / build["context"] / build["dockerfile"]).is_file()
    assert {name for name in ours["environment"] if name.startswith("EDGE_EMBED_SERVE")} <= VARIABLES
    assert other["environment"]["RAG_OPENAI_API_BASE_URL"] == f"http://edge-embed:{DEFAULT_PORT}/v1"
    assert all(port.startswith("127.0.0.1:") for port in other["ports"])


def test_the_container_is_built_with_cuda_out_of_what_it_takes() -> None:
    service = yaml.safe_load((EXAMPLES / "compose.cuda.yaml").read_text())["services"]["edge-embed"]
    build = service["build"]
    assert (EXAMPLES / build["context"] / build["dockerfile"]).is_file()
    taken = {rest.split("=", 1)[0] for word, rest in instructions() if word == "ARG"}
    assert set(build["args"]) == taken
    assert build["args"]["PRESET"] in presets()
    for name, kind in (("BUILD_IMAGE", "devel"), ("RUN_IMAGE", "runtime")):
        assert kind in build["args"][name].rpartition(":")[2]
    options = options_of(["serve", "--device", service["environment"]["EDGE_EMBED_SERVE_DEVICE"]])
    assert wanted(options["device"], None, []).note  # no such GPU here: the CPU would take its place, and that is said
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", ["edge-embed.service", "Containerfile", "compose.yaml", "compose.cuda.yaml"])
def test_variables_in_the_examples_exist(name: str) -> None:
    named = set(re.findall(r"EDGE_EMBED_SERVE_\w+", (EXAMPLES / name).read_text()))
    assert named
    assert named <= VARIABLES
