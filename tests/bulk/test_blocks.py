"""The arithmetic of blocks, of their names and of workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_embed.bulk.blocks import (
    Block,
    Table,
    cut,
    done_blocks,
    is_part,
    part_name,
    room_for_workers,
    threads_of_workers,
)
from edge_embed.bulk.cluster import Pool, pool_of
from edge_embed.errors import EngineMemoryError, InvalidOptionError

DIGEST = "0123456789abcdef" * 4


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 20))
def test_every_row_is_in_one_block(sizes: list[int], rows: int) -> None:
    blocks = list(cut([Table(str(i), n, "") for i, n in enumerate(sizes)], rows))
    covered = [(block.table, row) for block in blocks for row in range(block.start, block.stop)]
    assert covered == [(i, row) for i, n in enumerate(sizes) for row in range(n)]
    assert [block.number for block in blocks] == list(range(len(blocks)))
    assert [block.first for block in blocks] == [sum(b.n_rows for b in blocks[:i]) for i in range(len(blocks))]
    assert all(0 < block.n_rows <= rows for block in blocks)


def test_lines_of_json_are_found_by_their_bytes() -> None:
    table = Table("a.jsonl", 5, "", (3, 40, 90, 100))
    assert [Block(0, 0, 0, 2, 0, 3, 40), Block(1, 0, 2, 4, 2, 40, 90), Block(2, 0, 4, 5, 4, 90, 100)] == list(
        cut([table], 2)
    )


def test_names_tell_jobs_apart_and_sort_as_blocks_do() -> None:
    names = [part_name(number, DIGEST, "parquet") for number in (0, 9, 10, 99_999_999)]
    assert names == sorted(names)
    assert names[0] == "part-00000000-0123456789ab.parquet"
    others = [
        part_name(1, "f" * 64, "parquet"),
        part_name(2, DIGEST, "jsonl"),
        "_unfinished-ab-" + names[0],
        "x.parquet",
    ]
    assert done_blocks([*names, *others], DIGEST, "parquet") == {0, 9, 10, 99_999_999}
    assert [is_part(name) for name in others] == [True, True, False, False]
    assert done_blocks([part_name(10**9, DIGEST, "jsonl")], DIGEST, "jsonl") == {10**9}


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [([2], 1, 2), ([2], 2, 1), ([8], 3, 2), ([4, 4], 2, 4), ([16, 4], 2, 8), ([16, 4], 5, 4), ([2], 3, 0), ([], 1, 0)],
)
def test_no_core_is_shared_and_none_left_over_that_a_worker_could_have(
    cores: list[int], workers: int, threads: int
) -> None:
    assert threads_of_workers(cores, workers) == threads


def test_a_worker_needs_cores_and_memory_of_one_machine() -> None:
    assert room_for_workers([8, 8], [10, 3], 2, 4) == 2
    assert room_for_workers([8, 8], [100, 100], 2, 4) == 8


def test_a_pool_is_one_engine_a_machine_unless_more_are_asked_for() -> None:
    assert pool_of([8, 8], [100, 100], need=10) == Pool(2, 8, 10)
    assert pool_of([8, 8], [100, 100], need=10, workers=8) == Pool(8, 2, 10)
    assert pool_of([8, 8], [100, 100], need=10, workers=3, threads=1) == Pool(3, 1, 10)


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(InvalidOptionError, match=r"3 workers need more cores than the cluster has: 2"):
        pool_of([2], [100], need=10, workers=3)
    with pytest.raises(InvalidOptionError, match="2 workers of 2 threads need more cores"):
        pool_of([2], [100], need=10, workers=2, threads=2)
    with pytest.raises(InvalidOptionError, match="has: none"):
        pool_of([], [], need=10)
    with pytest.raises(
        EngineMemoryError, match=r"a worker needs 3.0 GB, and of 2 the cluster has room for 1"
    ) as caught:
        pool_of([8], [5 * 10**9], need=3 * 10**9, workers=2)
    assert caught.value.hint == "--workers 1"
