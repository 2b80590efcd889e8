"""docs/platforms: tables that are what the planner says, commands and presets that exist, pages that can be found."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest

from benchmarks.platforms import PAGES, PLATFORMS, Machine, cell, models, planned, written
from edge_embed import catalogue
from edge_embed.cli import main
from edge_embed.engine import build
from edge_embed.engine.plan import Room

ROOT = Path(__file__).parents[1]
PAGE_FILES = sorted(PAGES.glob("*.md"))
GB = 10**9


@pytest.mark.parametrize("page", PAGE_FILES, ids=lambda page: page.name)
def test_a_pages_tables_are_what_the_planner_says(page: Path) -> None:
    """`python -m benchmarks.platforms` rewrites them."""
    text = page.read_text(encoding="utf-8")
    assert text == written(text)


def test_every_platform_has_a_page_with_both_tables() -> None:
    assert {page.stem for page in PAGE_FILES} == {"README", *PLATFORMS}
    for name in PLATFORMS:
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert [f"<!-- {kind}: {name} -->" in text for kind in ("fits", "bounds")] == [True, True]
        assert "*Computed*" in text
        for heading in ("## What fits", "## No faster than", "## Heat and power"):
            assert heading in text


def test_pages_are_linked() -> None:
    assert "docs/platforms/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (PAGES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.name for page in PAGE_FILES if page.stem != "README")


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Pages and the arguments of a program in their indented lines."""
    found = []
    for page in PAGE_FILES:
        for line in page.read_text(encoding="utf-8").splitlines():
            words = shlex.split(line) if line.startswith(f"    {program} ") else []
            if words:
                found.append((page.name, words[1:]))
    return found


@pytest.mark.parametrize(("page", "arguments"), commands("edge-embed"), ids=lambda value: str(value))
def test_every_command_is_understood(page: str, arguments: list[str]) -> None:
    command: click.Command = main
    context = main.make_context("edge-embed", list(arguments))
    rest = list(arguments)
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, f"{page}: {rest[0]}"
        command, name, rest = found, rest[0], rest[1:]
        context = (
            command.make_context(name, list(rest), parent=context) if not isinstance(command, click.Group) else context
        )
    models_named = [value for value in arguments if value.startswith("qwen3-")]
    assert all(catalogue.find(catalogue.split_type(name)[0]) for name in models_named)


def test_there_are_commands_on_every_page() -> None:
    assert {page for page, _ in commands("edge-embed")} == {page.name for page in PAGE_FILES}


def test_every_preset_that_is_named_exists() -> None:
    known = set(build.presets())
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGE_FILES)
    named = {arguments[2] for _, arguments in commands("edge-embed") if arguments[:2] == ["engine", "build"]}
    named |= set(re.findall(r"--preset ([\w-]+)", text))
    assert named
    assert named <= known
    assert {"rpi4", "rpi5", "jetson-orin", "cuda-rtx30", "metal", "vulkan", "openvino"} <= named


def test_a_cell_says_what_had_to_be_given_up() -> None:
    small = next(info for info in models() if info.name == "qwen3-embedding-0.6b:q8_0")
    large = next(info for info in models() if info.name == "qwen3-embedding-8b:q8_0")
    pi, card = PLATFORMS["raspberry-pi"][0], PLATFORMS["rtx-3060"][0]
    assert cell(small, pi).endswith(", low")
    assert cell(large, pi) == "no"
    assert cell(small, replace(pi, room=Room(32 * GB))) == "32,768"
    assert re.fullmatch(r"[\d,]+, \d+/36 on the GPU", cell(large, card))
    tight = Machine("tight", replace(card.room, vram=200 * 10**6), card.bandwidth)
    assert cell(small, tight).endswith(", CPU")


def test_the_low_memory_mode_is_taken_only_where_it_helps() -> None:
    info = next(models())
    roomy = planned(info, Room(8 * GB))
    assert roomy is not None
    assert not roomy[1]
    assert planned(info, Room(10**8)) is None
