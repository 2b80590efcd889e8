"""Pure arithmetic of bulk jobs: which rows are whose, what a block's file is called, how many threads a worker gets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

DEFAULT_ROWS: Final = 2048
_DIGITS, _DIGEST = 8, 12
_NAME: Final = re.compile(rf"part-(\d{{{_DIGITS},}})-([0-9a-f]{{{_DIGEST}}})\.(\w+)")


@dataclass(frozen=True, slots=True)
class Table:
    """One file of the input.

    Attributes:
        path: where it is, a path or a URI.
        n_rows: its rows.
        identity: what tells it from the file that it may be next: size and time of change, or the version of a table.
        offsets: of lines of JSON, the byte at which each block begins, and behind them the file's end; else empty.
    """

    path: str
    n_rows: int
    identity: str
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring rows of one file.

    Attributes:
        number: its place among all blocks.
        table: which file of the input.
        start: its first row in that file.
        stop: one behind its last.
        first: how many rows of the whole input are before it.
        begin: of lines of JSON, the byte at which it begins.
        end: the byte behind it.
    """

    number: int
    table: int
    start: int
    stop: int
    first: int
    begin: int = 0
    end: int = 0

    @property
    def n_rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start


def cut(tables: Iterable[Table], rows: int) -> Iterator[Block]:
    """The blocks of some files, in order: of ``rows`` rows, the last one of a file of what is left."""
    number = first = 0
    for index, table in enumerate(tables):
        for place, start in enumerate(range(0, table.n_rows, rows)):
            stop = min(start + rows, table.n_rows)
            bytes_of = table.offsets[place : place + 2] or (0, 0)
            yield Block(number, index, start, stop, first, *bytes_of)
            number, first = number + 1, first + stop - start


def part_name(number: int, digest: str, extension: str) -> str:
    """What a block's file is called; names sort as the blocks do.

    Args:
        number: the block's.
        digest: of the job, hexadecimal.
        extension: of the format.
    """
    return f"part-{number:0{_DIGITS}d}-{digest[:_DIGEST]}.{extension}"


def done_blocks(names: Iterable[str], digest: str, extension: str) -> set[int]:
    """The numbers of a job's blocks among names of files."""
    found = (_NAME.fullmatch(name) for name in names)
    return {int(match[1]) for match in found if match and match.groups()[1:] == (digest[:_DIGEST], extension)}


def is_part(name: str) -> bool:
    """Whether a file is the block of some job."""
    return _NAME.fullmatch(name) is not None


def threads_of_workers(cores: Sequence[int], workers: int) -> int:
    """Most threads that each of ``workers`` engines can have, if none has to share a core; 0 if there are fewer cores.

    An engine lies on one machine, so a machine of c cores has room for c // threads of them.

    Args:
        cores: of each machine.
        workers: how many engines.
    """
    return next((t for t in range(max(cores, default=0), 0, -1) if sum(c // t for c in cores) >= workers), 0)


def room_for_workers(cores: Sequence[int], memory: Sequence[int], threads: int, need: int) -> int:
    """How many engines fit on some machines.

    Args:
        cores: of each machine.
        memory: of each machine, in bytes.
        threads: of one engine.
        need: memory of one engine, in bytes.
    """
    return sum(min(c // threads, m // max(need, 1)) for c, m in zip(cores, memory, strict=True))
