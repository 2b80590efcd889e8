"""The memory planner beside what is measured: the peak resident memory of a process that loads a model and embeds.

    python -m benchmarks.memory MODEL... [--tokens 512 2048 8192]

Each row is a process of its own: it opens the model with ``Embedder``, embeds 99 short texts and then one text of so
many tokens, and says what the system reports as its peak. Pages of the mapped file count there, so the
prediction is the plan's ``host.total``. The processes use the CPU. A long text may take long: ``--timeout`` stops it.
Its context, with all keys and values, is written before the first token is computed, and then all intermediate results
but the mask, which grows with the tokens read: such rows are marked. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from edge_embed.engine.devices import default_threads
from edge_embed.engine.lane_plan import plan_lanes
from edge_embed.engine.memory_model import host_need
from edge_embed.engine.plan import repacked_share
from edge_embed.engine.shape import BATCH_CAUSAL, BATCH_ENCODER, SEQ_MAX, context_shape, has_memory
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info

# The child knows nothing of the planner. Its texts are letters of many scripts, at least one token each.
_CHILD = """
import json, random, sys
from edge_embed import Embedder
from edge_embed.engine.devices import peak_rss_bytes
from edge_embed.errors import DeadlineExceededError
path, n, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
done = True
with Embedder(path, gpu_layers=0) as embedder:
    embedder.embed([f"the {i}th of some short texts that fill more than one batch together" for i in range(99)])
    try:
        scripts = [(0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x400, 0x45F), (0x621, 0x64A), (0x905, 0x939), (0xE01, 0xE2E)]
        draw = random.Random(0)
        letters = [chr(draw.randint(*draw.choice(scripts))) + " " * draw.randint(0, 1) for _ in range(2 * n)]
        embedder.embed(["".join(letters)], max_tokens=n, timeout=timeout)
    except DeadlineExceededError:
        done = False
    sys.stdout.write(json.dumps({"done": done, "peak": peak_rss_bytes()}))
"""


def main() -> None:
    """Measure every model at every length, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for the long text")
    arguments = parser.parse_args()
    print("| model | tokens | predicted | measured | off by | of that pages of the file | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for path in arguments.models:
        for n in arguments.tokens:
            row(path, n, arguments.timeout)


def row(path: Path, n: int, timeout: float) -> None:
    """One line of the table; nothing where the model holds fewer tokens."""
    info = read_model_info(read_header(path))
    if n > info.max_tokens and info.max_tokens < min(n, info.n_ctx_train):
        n = info.max_tokens
    if n > info.n_ctx_train or info.shape is None:
        return
    cached = has_memory(info)
    least = BATCH_CAUSAL if info.causal else BATCH_ENCODER
    context = context_shape(info, n_tokens=max(n, least), n_seq_max=SEQ_MAX, hidden=cached)
    need = host_need(info.shape, context, cached=cached, repacked=repacked_share(info.shape), n_tokens=max(n, least))
    need = plan_lanes(info, n_threads=default_threads(), n_batch=least).beside(need)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), str(n), str(timeout)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "EDGE_EMBED_NO_MEMORY_CHECK": "1"},
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    peak = measured["peak"]
    cells = [
        path.stem,
        f"{n:,}" if measured["done"] else f"{n:,} (stopped)",
        f"{need.total / 1e6:,.0f} MB",
        f"{peak / 1e6:,.0f} MB",
        f"{100 * (need.total / peak - 1):+.1f} %",
        f"{need.reclaimable / 1e6:,.0f} MB",
        f"{time.monotonic() - started:.0f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
