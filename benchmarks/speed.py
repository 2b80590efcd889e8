"""MiniLM: sentences per second and peak memory beside peers, in one run.

    python -m benchmarks.speed --data DIR --checkpoint DIR --peer-python PYTHON --llama-server PROGRAM

``llama-cpp-python`` runs on the same library as edge-embed, so its row shows what packing is worth;
``llama-cpp-python stock`` (``--stock-python``) is what ``pip install llama-cpp-python`` gives, and ``--llama-server``
the server of llama.cpp, tried with several settings and measured with its best.

The sentences of STS-B (test) are shuffled and cut into chunks; a chunk goes to every engine before the next does
(``peers.compare``). Figures are ratios.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

from benchmarks.datasets import stsb
from benchmarks.machine import machine_line
from benchmarks.peers import OURS, Engine, Variant, available, compare, table, versions
from edge_embed.catalogue import resolve
from edge_embed.engine.devices import default_threads

# Slots, tokens of a batch (a text must fit into one), clients.
_WAYS = ((4, 512, 1), (4, 512, 4), (16, 2048, 1), (16, 512, 1))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb/en-test.tsv")
    parser.add_argument("--model", default=str(resolve(None)), help="the GGUF that all llama.cpp engines run")
    parser.add_argument("--checkpoint", default="", help="the original checkpoint, for sentence-transformers")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has sentence-transformers")
    parser.add_argument("--stock-python", help="interpreter with llama-cpp-python as plain pip builds it; one more row")
    parser.add_argument("--llama-server", default="llama-server")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--sentences", type=int, help="fewer, for a quick look")
    options = parser.parse_args()

    first, second, _ = stsb(options.data)
    texts = [*first, *second]
    random.Random(0).shuffle(texts)
    texts = texts[: options.sentences]
    size = -(-len(texts) // options.chunks)
    rounds: list[dict[str, Any]] = [
        {"job": "embed", "texts": texts[start : start + size]} for start in range(0, len(texts), size)
    ]
    trial = {"job": "embed", "texts": texts[: max(size // 2, 8)]}
    rows = compare(
        engines(options), rounds, threads=options.threads, trial=trial, check={"job": "embed", "texts": texts[:8]}
    )
    print(f"{machine_line(options.threads)}\n{len(texts)} sentences of STS-B, {Path(options.model).name}\n")
    print(table(rows, [float(len(part["texts"])) for part in rounds], "sentences/s"))
    print(f"\n{versions(rows)}")


def engines(options: argparse.Namespace) -> list[Engine]:
    """The rows."""
    model, python = options.model, sys.executable
    rows = [Engine(OURS, "edge-embed", python, model), Engine("llama-cpp-python", "llama-cpp-python", python, model)]
    if options.stock_python:
        stock = Engine("llama-cpp-python stock", "llama-cpp-python", options.stock_python, model)
        rows.append(available(stock, "llama_cpp"))
    ways = []
    for slots, batch, clients in _WAYS:
        flags = ["-np", str(slots), "-c", str(512 * slots), "-b", str(batch), "-ub", str(batch)]
        label = f"{' '.join(flags)}{f', {clients} clients' if clients > 1 else ''}"
        own = {"program": options.llama_server, "flags": ["-fa", "on", "--cache-ram", "0", *flags], "clients": clients}
        ways.append(Variant(label, own))
    rows.append(available(Engine("llama-server", "llama-server", python, model, tuple(ways))))
    for dtype in ("float32", "bfloat16"):
        sizes = tuple(Variant(f"batch_size={n}", {"dtype": dtype, "batch_size": n}) for n in (16, 32, 64))
        engine = Engine(
            f"sentence-transformers {dtype}", "sentence-transformers", options.peer_python, options.checkpoint, sizes
        )
        rows.append(available(engine, "sentence_transformers"))
    return rows


if __name__ == "__main__":
    main()
