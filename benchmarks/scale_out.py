"""What dealing blocks out costs; needs Ray: ``python -m benchmarks.scale_out --data DIR --work DIR``.

The same table of real sentences, embedded in turns by one engine in one call, by one engine over blocks, and by Ray
with one worker that has all threads and with two that share them. Of each: texts a second, from the first block that is
done, so that the start of workers is a figure of its own; what reading and writing a text takes; and how long workers
waited for the next block. Figures are medians of rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.datasets import stsb
from benchmarks.machine import machine_line, rss_bytes
from edge_embed import Embedder
from edge_embed.bulk.cluster import Cluster
from edge_embed.bulk.examine import job_of
from edge_embed.bulk.job import Done, Request
from edge_embed.bulk.running import Engine, Run
from edge_embed.bulk.worker import in_this_process
from edge_embed.engine.devices import default_threads


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        start: seconds until the first block was done, less what that block took.
        rate: texts a second behind the first block.
        handled: microseconds a text of reading and writing.
        waited: microseconds a text of workers' time between blocks.
        memory: of the worker that took most, in MB.
    """

    start: float
    rate: float
    handled: float
    waited: float
    memory: float


def measure(engine: Engine, table: Path, out: Path, workers: int, rows: int) -> Measured:
    """A run, whose output is left for a comparison."""
    shutil.rmtree(out, ignore_errors=True)
    run = Run(job_of(Request((str(table),), str(out), block_rows=rows)), engine)
    begun = time.perf_counter()
    done: list[tuple[float, Done]] = []
    memory = 0
    for one in run.steps():
        done.append((time.perf_counter() - begun, one))
        memory = max(memory, rss_bytes(one.process))
    (first, leading), (last, _) = done[0], done[-1]
    later = [one for _, one in done[1:]]
    n = sum(one.n_rows for one in later)
    return Measured(
        start=first - leading.seconds,
        rate=n / (last - first),
        handled=1e6 * sum(one.seconds - one.embedding for _, one in done) / run.job.n_rows,
        waited=1e6 * max(0.0, workers * (last - first) - sum(one.seconds for one in later)) / n,
        memory=memory / 1e6,
    )


def vectors(out: Path) -> Any:
    """What a run wrote, float32 ``[n, d]``."""
    return np.stack(pq.read_table(out).column("embedding").to_numpy())


def one_call(texts: list[str]) -> tuple[float, Any]:
    """Texts a second of the library itself, the model's start aside, and the vectors."""
    with Embedder() as embedder:
        embedder.encode(texts[:64])
        begun = time.perf_counter()
        found = embedder.encode(texts)
        return len(texts) / (time.perf_counter() - begun), found


def ways(threads: int) -> Iterator[tuple[str, Engine, int]]:
    """Engines by what they are called, and how many workers each has."""
    yield "one engine over blocks", in_this_process, 1
    yield f"Ray, 1 worker of {threads} threads", Cluster(workers=1), 1
    if threads > 1:
        yield f"Ray, 2 workers of {threads // 2} threads", Cluster(workers=2), 2


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=16_384)
    parser.add_argument("--block-rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of Ray about itself
    print(machine_line())
    first, second, _ = stsb(arguments.data)
    sentences = list(dict.fromkeys([*first, *second]))
    texts = [f"{sentences[i % len(sentences)]} {i // len(sentences)}" for i in range(arguments.texts)]
    arguments.work.mkdir(parents=True, exist_ok=True)
    table = arguments.work / "texts.parquet"
    pq.write_table(pa.table({"text": texts}), table)

    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: beside other work it would be that which counts
    import ray

    threads = default_threads()
    begun = time.perf_counter()
    ray.init(num_cpus=threads, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    started = time.perf_counter() - begun
    print(
        f"{len(texts)} texts, {arguments.block_rows} a block, {arguments.rounds} rounds; Ray starts in {started:.1f} s"
    )
    single: list[float] = []
    found: dict[str, list[Measured]] = {}
    for _ in range(arguments.rounds):
        rate, expected = one_call(texts)
        single.append(rate)
        for name, engine, workers in ways(threads):
            out = arguments.work / "out"
            found.setdefault(name, []).append(measure(engine, table, out, workers, arguments.block_rows))
            print(f"  {name}: {found[name][-1]}; the same vectors: {np.array_equal(vectors(out), expected)}")
    print(f"| one call of the library | {median(single):.0f} | | | | |")
    for name, runs in found.items():
        middle = {field.name: median(getattr(run, field.name) for run in runs) for field in fields(Measured)}
        print(
            f"| {name} | {middle['rate']:.0f} | {middle['start']:.1f} | {middle['handled']:.0f} | "
            f"{middle['waited']:.0f} | {middle['memory']:.0f} |"
        )
    print(machine_line())


if __name__ == "__main__":
    main()
