"""The README is executed: its Python block, and every command of its shell block that needs no checkpoint."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    return [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_example_runs(block: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[[" in done.stdout


@pytest.mark.parametrize("command", commands())
def test_every_shell_example_runs(command: str, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("id,body\n1,some text\n2,another\n")
    if "./checkpoint" in command:
        from tests.checkpoints import build_tiny_bert

        build_tiny_bert(tmp_path / "checkpoint")
    bash = shutil.which("bash") or "sh"
    with_path = f'PATH="{Path(sys.executable).parent}:$PATH"; {command}'
    done = run([bash, "-ec", with_path], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout or list(tmp_path.glob("*.npy")) or list(tmp_path.glob("*.gguf"))


def test_every_command_is_in_the_readme() -> None:
    done = run([str(Path(sys.executable).with_name("edge-embed")), "--help"], Path.cwd())
    known = re.findall(r"^  (\w+) ", done.stdout.split("Commands:")[1].split("\n\n")[0], flags=re.MULTILINE)
    assert known
    assert [name for name in known if f"edge-embed {name}" not in README] == []
