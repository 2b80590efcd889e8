"""The tables of docs/platforms, computed by the planner: what fits on each board, and what no board can be faster than.

    python -m benchmarks.platforms            rewrite the tables in docs/platforms/*.md
    python -m benchmarks.platforms --check    exit 1 where one of them is not what is computed now

A page holds its tables between ``<!-- fits: NAME -->`` or ``<!-- bounds: NAME -->`` and ``<!-- end -->``. Nothing here
was measured: sizes come of the models' published numbers (``models/*.toml``) and the planner's sums, bandwidths of the
makers' data sheets, and what a system keeps for itself is an assumption that the pages state.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edge_embed import catalogue
from edge_embed.engine.memory_model import DEVICES
from edge_embed.engine.plan import MemoryPlan, Room, make_plan
from edge_embed.errors import EngineMemoryError
from edge_embed.planning import known_model
from edge_embed.types import ModelInfo

PAGES: Final = Path(__file__).parents[1] / "docs" / "platforms"
GB: Final = 10**9
GIB: Final = 1 << 30
MODELS: Final = (
    ("qwen3-embedding-0.6b", ("q4_k_m", "q8_0", "f16")),
    ("qwen3-embedding-4b", ("q4_k_m", "q8_0", "f16")),
    ("qwen3-embedding-8b", ("q4_k_m", "q8_0")),
)
_BLOCK: Final = re.compile(r"<!-- (fits|bounds): ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Machine:
    """One column of a table.

    Attributes:
        name: what it is called there.
        room: what a model may take.
        bandwidth: of its memory, or its GPU's, in bytes a second; the maker's figure.
    """

    name: str
    room: Room
    bandwidth: float


def _board(name: str, gib: float, gb_a_second: float) -> Machine:
    """A board under Linux without a desktop: 0.3 GB are the system's, 0.15 of a GB without one."""
    return Machine(name, Room(round(gib * GIB - 0.3 * GB)), gb_a_second * GB)


def _jetson(name: str, gib: float, gb_a_second: float) -> Machine:
    """CPU and GPU share the memory; 1 GB is the system's and the display's."""
    free = round(gib * GIB - GB)
    return Machine(name, Room(free, free, replace(DEVICES["CUDA"], shares_memory=True)), gb_a_second * GB)


def _card(name: str, gib: float, gb_a_second: float) -> Machine:
    """A card in a PC with 12 GB of main memory free; 0.5 GB of its memory are the desktop's."""
    return Machine(name, Room(12 * GB, round(gib * GIB - 0.5 * GB), DEVICES["CUDA"]), gb_a_second * GB)


def _mac(name: str, gib: float, gb_a_second: float) -> Machine:
    """macOS lets the GPU have two thirds of the memory, three quarters above 36 GB; 3 GB are the system's."""
    share = 3 / 4 if gib > 36 else 2 / 3
    room = Room(round(gib * GIB - 3 * GB), round(share * gib * GIB), DEVICES["Metal"])
    return Machine(name, room, gb_a_second * GB)


def _pc(name: str, gib: float, gb_a_second: float) -> Machine:
    """Computed by the CPU, with 4 GB for Windows or a Linux desktop."""
    return Machine(name, Room(round(gib * GIB - 4 * GB)), gb_a_second * GB)


PLATFORMS: Final[dict[str, tuple[Machine, ...]]] = {
    "raspberry-pi": (
        _board("Pi 4 or 5, 1 GB", 1, 12.8),
        _board("Pi 4 or 5, 2 GB", 2, 12.8),
        _board("Pi 4 or 5, 4 GB", 4, 12.8),
        _board("Pi 4 or 5, 8 GB", 8, 12.8),
        _board("Pi 5, 16 GB", 16, 17.1),
    ),
    "jetson": (
        _jetson("Orin Nano 4 GB", 4, 34),
        _jetson("Orin Nano 8 GB", 8, 68),
        _jetson("Orin NX 16 GB", 16, 102.4),
        _jetson("AGX Orin 64 GB", 64, 204.8),
    ),
    "rtx-3060": (_card("RTX 3060 Laptop, 6 GB", 6, 336), _card("RTX 3060, 12 GB", 12, 360)),
    "apple-silicon": (
        _mac("M1, 8 GB", 8, 68.25),
        _mac("M2 or M3, 16 GB", 16, 100),
        _mac("M4, 24 GB", 24, 120),
        _mac("M4 Max, 64 GB", 64, 546),
    ),
    "intel-ai-pc": (_pc("Core Ultra 155H, 16 GB", 16, 119.5), _pc("Core Ultra 258V, 32 GB", 32, 136.5)),
}


def models() -> Iterator[ModelInfo]:
    """Every model in every type that the tables have."""
    for name, types in MODELS:
        entry = catalogue.find(name)
        assert entry is not None, name
        for ftype in types:
            yield known_model(entry, ftype)


def planned(info: ModelInfo, room: Room) -> tuple[MemoryPlan, bool] | None:
    """The plan for a room, and whether it is the low-memory mode's; None where not even that fits.

    That mode is taken where nothing else fits, or where the usual one has to give something up and holds less.
    """
    found: list[tuple[MemoryPlan, bool]] = []
    for low_memory in (False, True):
        with contextlib.suppress(EngineMemoryError):
            found.append((make_plan(info, room, low_memory=low_memory), low_memory))
    usual_is_whole = found and not (found[0][1] or found[0][0].notes)
    return found[0] if usual_is_whole else max(found, key=lambda one: one[0].max_tokens, default=None)


def cell(info: ModelInfo, machine: Machine) -> str:
    """What a table says: the longest text, and what had to be given up for it."""
    found = planned(info, machine.room)
    if found is None:
        return "no"
    plan, low_memory = found
    longest = f"{plan.max_tokens:,}"
    if low_memory:
        return f"{longest}, low"
    if machine.room.device is not None and plan.gpu_layers <= plan.n_layer:
        on_gpu = max(0, plan.gpu_layers - 1)
        return f"{longest}, {on_gpu}/{plan.n_layer} on the GPU" if on_gpu else f"{longest}, CPU"
    return f"{longest}, q8_0" if plan.kv_type == "q8_0" else longest


def fits(machines: tuple[Machine, ...]) -> list[str]:
    """The table of longest texts."""
    rows = [["model", "weights", *(machine.name for machine in machines)]]
    for info in models():
        assert info.shape is not None
        weights = f"{info.shape.weights_bytes / GB:.2f} GB"
        rows.append([f"`{info.name}`", weights, *(cell(info, machine) for machine in machines)])
    return _table(rows)


def bounds(machines: tuple[Machine, ...]) -> list[str]:
    """The table of least milliseconds: each weight of the layers is read once for a text, however short."""
    rows = [["model", "read for a text", *(machine.name for machine in machines)]]
    for info in models():
        assert info.shape is not None
        read = sum(info.shape.layer_bytes)
        times = [
            f"{1000 * read / machine.bandwidth:.{0 if read > machine.bandwidth / 100 else 1}f} ms"
            if planned(info, machine.room) is not None
            else ""
            for machine in machines
        ]
        rows.append([f"`{info.name}`", f"{read / GB:.2f} GB", *times])
    return _table(rows)


def _table(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    aligned = ["|---", *("|---:" for _ in head[1:])]
    return [f"| {' | '.join(head)} |", "".join(aligned) + "|", *(f"| {' | '.join(row)} |" for row in body)]


_TABLES: Final[dict[str, Callable[[tuple[Machine, ...]], list[str]]]] = {"fits": fits, "bounds": bounds}


def written(text: str) -> str:
    """A page with its tables as they are computed now. KeyError where it names no platform of ours."""

    def block(match: re.Match[str]) -> str:
        lines = _TABLES[match[1]](PLATFORMS[match[2]])
        return "\n".join([f"<!-- {match[1]}: {match[2]} -->", *lines, "<!-- end -->"])

    return _BLOCK.sub(block, text)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="The tables of docs/platforms.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of date")
    check = parser.parse_args().check
    old = []
    for path in sorted(PAGES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        now = written(text)
        if now != text:
            old.append(path.name)
            if not check:
                path.write_text(now, encoding="utf-8")
    print(f"{'out of date' if check else 'rewritten'}: {', '.join(old) or 'none'}")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main())
