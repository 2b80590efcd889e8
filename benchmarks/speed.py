"""Sentences per second and peak memory beside peers, in one run.

    python -m benchmarks.speed --data DIR --checkpoint DIR --peer-python PYTHON

``llama-cpp-python`` runs on the same library as edge-embed, so its row shows what packing is worth;
``llama-cpp-python-stock`` (``--stock-python``) is what ``pip install llama-cpp-python`` gives.

Every peer runs in a process of its own. The sentences of STS-B (test) are shuffled and cut into chunks, and each chunk
goes to every peer in turn before the next, so that a noisy neighbour disturbs all of them alike. Figures are ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.datasets import stsb
from edge_embed.catalogue import resolve
from edge_embed.engine.devices import cpu_name_and_flags, default_threads

_HERE = Path(__file__).parent
SETTLE = 0.3  # seconds between peers: the last one's threads still spin for a moment


class Peer:
    """A worker process."""

    def __init__(self, name: str, python: str, model: str, threads: int) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.peak_mb = 0.0
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [python, str(_HERE / "worker.py"), name, model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=_HERE,  # not the checkout: the worker imports the installed package
        )

    def wait_until_ready(self) -> None:
        """Until then it loads its model, on the cores that another is measured on."""
        self._answer()

    def run(self, texts: list[str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._answer())
        self.seconds.append(answer["seconds"])
        self.peak_mb = answer["peak_mb"]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}: run benchmarks/worker.py by hand")
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb/en-test.tsv")
    parser.add_argument("--model", default=str(resolve(None)), help="the GGUF that both llama.cpp peers run")
    parser.add_argument("--checkpoint", help="the original checkpoint, for sentence-transformers")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has sentence-transformers")
    parser.add_argument("--stock-python", help="interpreter with llama-cpp-python as plain pip builds it; one more row")
    parser.add_argument("--peers", default="llama-cpp-python,sentence-transformers-f32,sentence-transformers-bf16")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args()

    first, second, _ = stsb(options.data)
    texts = [*first, *second]
    random.Random(0).shuffle(texts)
    names = ["edge-embed", *(name for name in options.peers.split(",") if name)]
    if options.stock_python:
        names.append("llama-cpp-python-stock")
    peers = []
    for name in names:
        torch = name.startswith("sentence-transformers")
        if torch and not options.checkpoint:
            parser.error(f"{name} needs --checkpoint")
        python = options.peer_python if torch else sys.executable
        if name == "llama-cpp-python-stock":
            python = options.stock_python
        peers.append(Peer(name, python, options.checkpoint if torch else options.model, options.threads))
    for peer in peers:
        peer.wait_until_ready()
    size = -(-len(texts) // options.chunks)
    for start in range(0, len(texts), size):
        for turn in range(len(peers)):
            time.sleep(SETTLE)
            peers[(turn + start // size) % len(peers)].run(texts[start : start + size])
        print(f"{min(start + size, len(texts))}/{len(texts)} sentences", file=sys.stderr)
    for peer in peers:
        peer.close()

    ours = peers[0].seconds
    print(f"CPU: {cpu_name_and_flags()[0]}, {options.threads} threads; {len(texts)} sentences; {options.model}")
    print("| engine | sentences/s | edge-embed is faster by (total; median of chunks, range) | peak MB |")
    print("|---|---|---|---|")
    for peer in peers:
        ratios = [theirs / mine for theirs, mine in zip(peer.seconds, ours, strict=True)]
        print(
            f"| {peer.name} | {len(texts) / sum(peer.seconds):.0f} | {sum(peer.seconds) / sum(ours):.2f}; "
            f"{statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} | {peer.peak_mb:.0f} |"
        )


if __name__ == "__main__":
    main()
