"""The README is executed: its Python blocks and its shell blocks. Indented commands need the hub or much time.

Blocks that ask the server's address are given that of a server which the tests start, on another port.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from edge_embed.server.settings import DEFAULT_PORT
from tests.checkpoints import build_tiny_bert
from tests.serving import real_server

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ADDRESS = f"http://127.0.0.1:{DEFAULT_PORT}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """What ``edge-embed serve`` serves where nothing was pulled: the bundled model."""
    with real_server() as server:
        yield server.url


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)


def python_blocks(*, ask: bool) -> list[ParameterSet]:
    """Those that ask the server, or those that do not; what needs a library of its own is marked as its tests are."""
    return [
        pytest.param(block, marks=[pytest.mark.chroma] if "import chromadb" in block else [])
        for block in blocks("python")
        if (ADDRESS in block) == ask
    ]


def prints_what_it_says(block: str, folder: Path) -> None:
    """The block runs, and prints what the comments behind its ``print`` say; the first one, a matrix."""
    done = run([sys.executable, "-c", block], folder)
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"^print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
    assert done.stdout.splitlines() == expected or (not expected and "[[" in done.stdout)


@pytest.mark.parametrize("block", python_blocks(ask=False))
def test_every_python_example_runs(block: str, tmp_path: Path) -> None:
    prints_what_it_says(block, tmp_path)


@pytest.mark.parametrize("block", python_blocks(ask=True))
def test_every_client_of_the_server_runs(block: str, tmp_path: Path, url: str) -> None:
    prints_what_it_says(block.replace(ADDRESS, url), tmp_path)


@pytest.mark.parametrize("block", blocks("sh"))
def test_every_shell_example_runs(block: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The commands of a block one after another: later ones read what earlier ones wrote."""
    (tmp_path / "texts.csv").write_text("id,body\n1,some text\n2,another\n")
    build_tiny_bert(tmp_path / "checkpoint")
    bash = shutil.which("bash") or "sh"
    if ADDRESS in block:
        block = block.replace(ADDRESS, request.getfixturevalue("url"))
    for line in block.splitlines():
        before = set(tmp_path.iterdir())
        command = line.split("  #")[0].strip()
        done = run([bash, "-ec", f'PATH="{Path(sys.executable).parent}:$PATH"; {command}'], tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout or set(tmp_path.iterdir()) - before, command


def test_every_command_is_in_the_readme() -> None:
    done = run([str(Path(sys.executable).with_name("edge-embed")), "--help"], Path.cwd())
    known = re.findall(r"^  (\w+) ", done.stdout.split("Commands:")[1].split("\n\n")[0], flags=re.MULTILINE)
    assert known
    assert [name for name in known if f"edge-embed {name}" not in README] == []
