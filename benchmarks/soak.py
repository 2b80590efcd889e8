"""Whether memory stays flat: 20,000 different texts, resident memory sampled; the exit code is 1 where it grew.

    python -m benchmarks.soak --data DIR [--model FILE] [--texts 20000] [--limit-mb 50] [--no-cli]

Through the Python API: calls of 1 to 256 texts whose lengths go from a word to a page and change from call to call,
with prompts and without, and now and then a call that is refused. The warm-up (``--warm-up``, a tenth) contains the
longest text, since a context grows to the longest text seen and stays. Then the command line: ``edge-embed embed -f``
of a file of all texts, watched from outside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.datasets import beir, mbpp, stsb, tatoeba
from benchmarks.machine import machine_line, rss_bytes
from edge_embed import Embedder
from edge_embed.catalogue import resolve
from edge_embed.engine.devices import default_threads
from edge_embed.errors import TextTooLongError

MB = 1e6


def main() -> int:
    """Run both, print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=resolve(None))
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--longest", type=int, default=250, help="most words of a text")
    parser.add_argument("--warm-up", type=float, default=0.1, help="share of the texts")
    parser.add_argument("--limit-mb", type=float, default=50)
    parser.add_argument("--no-cli", action="store_true")
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    texts = texts_of(options.data, options.texts, options.longest)
    print(f"{machine_line(options.threads)}\n{options.model.name}, {len(texts)} different texts\n")
    print("| way | texts | seconds | MB before, after warm-up, at the end | lowest to highest after warm-up | |")
    print("|---|---|---|---|---|---|", flush=True)
    flat = through_api(texts, options)
    if not options.no_cli:
        flat &= through_cli(texts, options)
    return 0 if flat else 1


def texts_of(data: Path, n: int, longest: int) -> list[str]:
    """Different texts of 1 to ``longest`` words, made of the words of real ones; the first is the longest."""
    first, second, _ = stsb(data)
    abstracts, _, _ = beir(data / "scifact")
    words = " ".join([*first, *second, *tatoeba(data), *abstracts.values(), *mbpp(data)]).split()
    chance = random.Random(0)
    found: dict[str, None] = {" ".join(words[:longest]): None}
    while len(found) < n:
        length = round(longest ** chance.random())  # as many short texts as long ones, by their logarithm
        start = chance.randrange(len(words) - length)
        found[" ".join([*words[start : start + length], str(len(found))])] = None
    return list(found)


def calls(texts: list[str]) -> Iterator[list[str]]:
    """The texts in calls of changing size."""
    chance = random.Random(2)
    start = 0
    while start < len(texts):
        size = round(256 ** chance.random())
        yield texts[start : start + size]
        start += size


def through_api(texts: list[str], options: argparse.Namespace) -> bool:
    """Embed them, sampling after every call."""
    before = rss_bytes() / MB
    samples: list[float] = []
    started, done = time.monotonic(), 0
    n_warm = int(len(texts) * options.warm_up)
    after_warm_up = 0.0
    with Embedder(options.model, n_threads=options.threads) as embedder:
        for number, call in enumerate(calls(texts)):
            embedder.encode(call, prompt="a prompt of this call: " if number % 3 == 0 else None)
            if number % 50 == 0:
                with contextlib.suppress(TextTooLongError):
                    embedder.encode([texts[0] * 400], truncate="error")
            done += len(call)
            if done >= n_warm:
                samples.append(rss_bytes() / MB)
                after_warm_up = after_warm_up or samples[0]
                _progress("API", done, len(texts), samples[-1])
    return _report("Python API", len(texts), started, (before, after_warm_up), samples, options.limit_mb)


def through_cli(texts: list[str], options: argparse.Namespace) -> bool:
    """Let the command embed a file, and watch its process from the end of the warm-up on."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        command = [
            Path(sys.executable).with_name("edge-embed"),
            "embed",
            "-f",
            file,
            "-m",
            options.model,
            "--output-format",
            "jsonl",
        ]
        started, samples = time.monotonic(), []
        process = subprocess.Popen(
            [*map(str, command), "--threads", str(options.threads)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        before = rss_bytes(process.pid) / MB
        rows, n_warm = 0, int(len(texts) * options.warm_up)
        for _ in process.stdout:  # a vector a line
            rows += 1
            # The last rows are read when the process has given its model back.
            if n_warm <= rows <= len(texts) - 100 and rows % 50 == 0:
                with contextlib.suppress(OSError, IndexError):  # it is ending
                    samples.append(rss_bytes(process.pid) / MB)
                    _progress("command line", rows, len(texts), samples[-1])
        complaints = process.stderr.read().decode(errors="replace")
        if process.wait() or rows != len(texts) or not samples:
            print(f"| edge-embed embed | failed: {process.returncode}, {rows} rows, {complaints[-300:]!r} | | | | |")
            return False
    return _report("edge-embed embed -f", rows, started, (before, samples[0]), samples, options.limit_mb)


def _report(way: str, n: int, started: float, firsts: tuple[float, float], samples: list[float], limit: float) -> bool:
    spread = max(samples) - min(samples)
    flat = spread <= limit
    print(
        f"| {way} | {n} | {time.monotonic() - started:.0f} | {firsts[0]:.0f}, {firsts[1]:.0f}, {samples[-1]:.0f} | "
        f"{min(samples):.0f} to {max(samples):.0f} | {'flat' if flat else 'GREW'} within {limit:.0f} MB |",
        flush=True,
    )
    return flat


def _progress(way: str, done: int, n: int, mb: float) -> None:
    if done % 2000 < 50:
        print(f"{way}: {done} of {n}, {mb:.0f} MB", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
