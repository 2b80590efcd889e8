"""``edge-embed engine``: builds of llama.cpp's libraries beside each other, and which of them is used."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_embed.cli.options import AT_LEAST_1
from edge_embed.cli.terminal import note, say_json, size, table, terminable

if TYPE_CHECKING:
    from edge_embed.engine.builds import Build


@click.group(
    epilog="""\b
Examples:
  edge-embed engine presets
  edge-embed engine build cpu-portable
  edge-embed engine use cpu-portable
  edge-embed engine list
  EDGE_EMBED_ENGINE=packaged edge-embed embed "a text"
  edge-embed engine flags vulkan
"""
)
def engine() -> None:
    """Build llama.cpp's libraries for this or another machine, and say which are used.

    They are compiled from the sources of the pinned llama-cpp-python, with edge-embed's kernels. Several may lie beside
    each other; `packaged` are those that llama-cpp-python itself brought. $EDGE_EMBED_ENGINE, a name or a folder, comes
    before what `use` has chosen.
    """


@engine.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def list_engines(as_json: bool) -> None:
    """Show the builds that are here, and which one is used."""
    from edge_embed.engine import builds
    from edge_embed.errors import EngineUnavailableError

    chosen, found = builds.choice(), builds.installed()
    try:
        folder, problem = builds.folder_of(chosen), ""
    except EngineUnavailableError as error:
        folder, problem = None, error.message
    if as_json:
        used = {"name": chosen.name, "reason": chosen.reason, "problem": problem}
        say_json({"chosen": used, "folder": str(folder or ""), "engines": [builds.describe(build) for build in found]})
        return
    rows = [("packaged", "", "", "", "", "what llama-cpp-python brought")]
    for build in found:
        if isinstance(build, builds.Broken):
            rows.append((build.name, "", "", "", "", build.problem))
        else:
            machine = f"{build.system} {build.machine}"
            rows.append((build.name, build.preset, machine, build.installed[:10], size(build.n_bytes), build.unfit()))
    marked = [("*" if row[0] == chosen.name else "", *row) for row in rows]
    for line in table(marked, ("", "engine", "preset", "for", "built", "size", ""), right=(5,)):
        click.echo(line)
    if problem:
        note(f"{chosen.name!r}, {chosen.said}, cannot be used, so the packaged libraries are: {problem}")
    elif chosen.reason in ("environment", "llama-cpp-python"):
        note(f"{chosen.name!r} is used, {chosen.said}")


@engine.command()
@click.argument("name")
def use(name: str) -> None:
    """Use the build NAME from now on, or `packaged`; it is tried in a child process first."""
    from edge_embed.engine import builder

    said = builder.use(name)
    note(f"{name} is used from now on" + (f": {said}" if said else ""))


@engine.command()
@click.argument("preset")
@click.option("--name", default="", help="What it will be called; the preset's name if not given.")
@click.option("-j", "--jobs", type=AT_LEAST_1, help="Compilers at a time; what cores and memory allow if not given.")
@click.option("--use", "then_use", is_flag=True, help="Use it from now on.")
@click.pass_context
def build(ctx: click.Context, preset: str, name: str, jobs: int | None, then_use: bool) -> None:
    """Build PRESET (see `presets`); it takes some minutes. Needs a C++ compiler and CMake."""
    from edge_embed.engine import builder, builds

    with terminable():
        made = builder.build(preset, name=name, jobs=jobs or 0)
    _say_made(made)
    if then_use:
        ctx.invoke(use, name=made.name)
    elif (made.system, made.machine) == builds.here():
        note(f"use it from now on: edge-embed engine use {made.name}")


@engine.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", default="", help="What it will be called; the preset's name if not given.")
def add(folder: Path, name: str) -> None:
    """Take a copy of what `cmake --build --preset NAME` has made: FOLDER is build/NAME/bin."""
    from edge_embed.engine import builder

    _say_made(builder.add(folder, name=name))


def _say_made(made: Build) -> None:
    note(f"{made.name}: {size(made.n_bytes)} for {made.system} on {made.machine} in {made.folder}")


@engine.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the build NAME; if it was used, the packaged libraries are again."""
    from edge_embed.engine import builder

    builder.remove(name)
    note(f"{name} was removed")


@engine.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def presets(as_json: bool) -> None:
    """Show what can be built."""
    from edge_embed.engine import build as pip_build

    known = pip_build.presets()
    if as_json:
        flags = {name: pip_build.preset_flags(name) for name in known}
        say_json([{"name": n, "description": p["description"], "flags": flags[n]} for n, p in known.items()])
        return
    for line in table([(name, preset["description"]) for name, preset in known.items()]):
        click.echo(line)


@engine.command()
@click.argument("preset", required=False)
def flags(preset: str | None) -> None:
    """Print PRESET's flags as one line for CMAKE_ARGS, with which pip builds the same into llama-cpp-python."""
    from edge_embed.engine import build as pip_build
    from edge_embed.errors import InvalidOptionError

    try:
        click.echo(shlex.join(pip_build.cmake_args(preset or "")))
    except pip_build.BuildError as error:
        raise InvalidOptionError(str(error)) from None
