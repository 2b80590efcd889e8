"""A device beside this machine's processor: the same vectors, and the memory that was planned, also where it is short.

    python -m benchmarks.devices MODEL... --data DIR [--device cuda:0] [--free 12 6 3] [--tokens 2048]

Each row is a model in a process of its own that may use the device and, where its memory does not suffice, the
processor, as `--device cuda:0,cpu` does. It embeds abstracts of SciFact in one call and one by one, some instructed
queries that share the instruction's keys and values, and one text of so many tokens. A column each:

* layers: how many the planner gave to the device;
* planned: what it says that they take there, with that text's context, and what the libraries take beside;
* measured: how much less of the device's memory was free at the worst moment, watched from another process every few
  milliseconds, so that everything counts that the first one brought about. Where the device's memory is the machine's,
  other programs count as well. A first run is not measured: one more process tries the model in it, see ``probe.py``;
* to the processor, alone: the smallest cosine of a row to the same row on the processor, and to the text alone.

``--free`` repeats the rows with so much memory left, in GB: a process allocates the others first. That is how a card
of 12 GB is had on a larger one; a device that has the machine's memory has none to take. What fails is a row that says
so. Speed beside llama-server: ``python -m benchmarks.qwen3 --device cuda:0``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import random
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import beir
from benchmarks.machine import machine_line
from benchmarks.qwen3 import INSTRUCTION
from edge_embed import Embedder
from edge_embed.engine import backends, placement
from edge_embed.engine.memory_model import gpu_need
from edge_embed.engine.plan import room_of
from edge_embed.engine.shape import context_shape, has_memory, sizes
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info

WATCH = 0.005  # seconds between two looks at the device's free memory
PIECE = 2**30  # bytes of a buffer that only takes memory away
TAKEN = "taken"  # what a process says that has taken the device's memory


class JobError(Exception):
    """A process that embeds has ended without an answer, as ggml's CUDA ends it where its memory does not suffice."""


def main() -> None:
    """Print a table; two arguments are for the processes that it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--free", nargs="*", type=float, default=[], metavar="GB")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=2048, help="of the long text")
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--occupy", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(**json.load(sys.stdin))))
    elif options.occupy is not None:
        occupy(options.device, options.occupy)
    else:
        if not options.models or options.data is None:
            parser.error("MODEL... and --data are needed")
        table(options)


def table(options: argparse.Namespace) -> None:
    """Every model with all of the device's memory, then with less."""
    gpu = _gpu(options.device)
    if options.free and gpu.shares_memory:
        sys.exit(f"{gpu.device} has the machine's memory, of which nothing is taken away: leave --free out")
    print(f"{machine_line()}\n{gpu.device}: {gpu.description}, {gpu.total / 1e9:.1f} GB\n")
    print("| model | free | layers | planned | measured | off by | to the processor | alone | notes |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    documents, queries, _ = beir(options.data / "scifact")
    texts, asked = list(documents.values()), [INSTRUCTION + query for query in queries.values()]
    random.Random(0).shuffle(texts)
    work = {
        "texts": texts[: options.documents],
        "queries": asked[: options.queries],
        "long": " ".join(texts[options.documents :])[: 16 * options.tokens],
        "tokens": options.tokens,
    }
    with tempfile.TemporaryDirectory() as folder:
        expected: dict[Path, dict[str, Any]] = {}
        for path in options.models:
            with failures_said(path):
                expected[path] = _run(path, "cpu", work, Path(folder))[1]
                _run(path, f"{options.device},cpu", work, Path(folder))
        for limit in (None, *options.free):
            with left_with(options.device, limit):
                for path in expected:
                    with failures_said(path):
                        row(path, options.device, work, Path(folder), expected[path])


@contextlib.contextmanager
def failures_said(path: Path) -> Iterator[None]:
    """A job that fails is a row, and the others are measured all the same."""
    try:
        yield
    except JobError as error:
        print(f"| {path.stem} |{' |' * 7} failed: {str(error).replace('|', '/')} |", flush=True)


def row(path: Path, device: str, work: dict[str, Any], folder: Path, expected: dict[str, Any]) -> None:
    """A line of the table."""
    before = _gpu(device).free
    with watched(device) as least:
        found, rows = _run(path, f"{device},cpu", work, folder)
    measured = before - min(least)
    planned = _planned(path, device, found["gpu_layers"], work["tokens"])
    cells = [
        path.stem,
        f"{before / 1e9:.2f} GB",
        str(found["gpu_layers"]),
        f"{planned / 1e6:,.0f} MB",
        f"{measured / 1e6:,.0f} MB",
        f"{100 * (planned / measured - 1):+.1f} %" if planned and measured > 0 else "",
        f"{min(cosine(rows[name], expected[name]) for name in expected):.6f}",
        f"{cosine(rows['texts'], rows['each']):.6f}",
        "; ".join(found["notes"]).replace("|", "/"),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def cosine(one: Any, other: Any) -> float:
    """The smallest between rows of two arrays of unit vectors."""
    return float((one * other).sum(axis=1).min())


def _run(path: Path, device: str, work: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a process says of a model on a device, and the vectors."""
    out = folder / "rows.npz"
    request = json.dumps({"path": str(path), "device": device, "out": str(out), **work})
    command = [sys.executable, "-m", "benchmarks.devices", "--job"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(f"exit code {done.returncode} on {device}: {' '.join(done.stderr.split())[-500:]}")
    with np.load(out) as rows:
        return json.loads(done.stdout.splitlines()[-1]), dict(rows)


def job(
    path: str, device: str, out: str, texts: list[str], queries: list[str], long: str, tokens: int
) -> dict[str, Any]:
    """The process that embeds."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Embedder(path, device=device) as model:
            np.savez(
                out,
                texts=model.encode(texts),
                each=np.array([model.encode(text) for text in texts]),
                queries=model.encode(queries),
                long=model.encode([long], max_tokens=min(tokens, model.tokenizer.max_tokens)),
            )
            layers = getattr(model.backend.engine, "gpu_layers", 0)
            return {"gpu_layers": layers, "notes": [str(one.message) for one in caught]}


def _planned(path: Path, device: str, gpu_layers: int, tokens: int) -> int:
    """Bytes on the device, as the planner counts them where so long a text is asked for."""
    info = read_model_info(read_header(path))
    room = room_of([_gpu(device)])
    if info.shape is None or room.device is None or not gpu_layers:
        return 0
    cached, usual = has_memory(info), sizes(info)
    n_tokens = max(min(tokens, info.max_tokens), usual.n_batch)
    context = context_shape(info, n_tokens=n_tokens, n_seq_max=usual.n_seq_max, hidden=cached)
    layers = info.shape.n_layer + 1 if gpu_layers < 0 else gpu_layers
    return gpu_need(info.shape, context, cached=cached, gpu_layers=layers, device=room.device).total


def _gpu(device: str) -> Any:
    found = {gpu.device: gpu for gpu in placement.here()}
    if device not in found:
        sys.exit(
            f"there is no {device} that the engine's libraries can use, only {', '.join(found) or 'the processor'}"
        )
    return found[device]


@contextlib.contextmanager
def watched(device: str) -> Iterator[list[int]]:
    """Looks at the device's free memory all the while; the list holds the least."""
    least, done = [_gpu(device).free], threading.Event()

    def watch() -> None:
        while not done.wait(WATCH):
            least[0] = min(least[0], _gpu(device).free)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield least
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def left_with(device: str, free_gb: float | None) -> Iterator[None]:
    """So much of the device's memory is free; all of it for None."""
    if free_gb is None:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.devices", "--device", device, "--occupy", str(int(free_gb * 1e9))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != TAKEN:
            sys.exit(f"{device} could not be left with {free_gb} GB")
        yield
    finally:
        process.stdin.close()
        process.wait()


def occupy(device: str, free: int) -> None:
    """Take the device's memory until so many bytes are free, and keep it until stdin ends."""
    ggml = backends.registry()
    for name, result, arguments in (
        ("ggml_backend_dev_buffer_type", ctypes.c_void_p, [ctypes.c_void_p]),
        ("ggml_backend_buft_alloc_buffer", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]),
        ("ggml_backend_buffer_clear", None, [ctypes.c_void_p, ctypes.c_uint8]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    kind = ggml.ggml_backend_dev_buffer_type(ggml.ggml_backend_dev_by_name(_gpu(device).name.encode()))
    left = _gpu(device).free
    while (more := _gpu(device).free - free) > 0:
        if left <= 0:
            sys.exit(f"{device} does not say what of its memory is free")
        left -= min(more, PIECE)
        buffer = ggml.ggml_backend_buft_alloc_buffer(kind, min(more, PIECE))
        if not buffer:
            sys.exit(f"{device} gives no {min(more, PIECE):,} bytes more")
        ggml.ggml_backend_buffer_clear(buffer, 0)  # memory that nobody has written to may not be there yet
    print(TAKEN, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
