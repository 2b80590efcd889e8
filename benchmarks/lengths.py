"""What a text's length costs: tokens per second and peak memory from 32 to 32,768 tokens.

    python -m benchmarks.lengths --data DIR --model FILE --checkpoint DIR [--lengths 32 128 512 2048 8192 32768]

Texts are stretches of plays and speeches. Each length has a process of its own, so that its peak memory is its own,
and the lengths take turns; from 8,192 tokens on there are fewer rounds. ``GFLOP/s`` is arithmetic over time (products
of the weights, and attention to what stands before, which grows with the length): where it falls, the time is lost
elsewhere. ``--checkpoint`` has the ``tokenizer.json`` that texts are cut with.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.datasets import long_documents, stretches
from benchmarks.machine import machine_line
from benchmarks.peers import OURS, Engine, Peer, Variant
from edge_embed.engine.devices import default_threads
from edge_embed.gguf_header import GgufHeader, read_header

LENGTHS = (32, 128, 512, 2048, 8192, 32768)
CALL = 4096  # tokens of a call with several texts


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.checkpoint / "tokenizer.json"))
    book = "\n".join(long_documents(options.data).values())
    pieces = {n: stretches(tokenizer, book, n - 1) for n in options.lengths}  # the closing token is one more
    engine = Engine(OURS, "edge-embed", sys.executable, options.model)
    peers = {n: Peer(engine, Variant(""), options.threads) for n in options.lengths}
    many: dict[int, list[float]] = {n: [] for n in options.lengths}
    alone: dict[int, list[float]] = {n: [] for n in options.lengths}
    peaks: dict[int, float] = {}
    try:
        for peer in peers.values():
            peer.wait_until_ready()
        for turn in range(options.rounds):
            for n in options.lengths:
                if turn >= _rounds(n, options.rounds):
                    continue
                size = _texts(n)
                texts = [pieces[n][(turn * (size + 1) + i) % len(pieces[n])] for i in range(size + 1)]
                found = peers[n].ask({"job": "embed", "texts": texts[:size]})
                many[n].append(found["seconds"])
                if size > 1:
                    found = peers[n].ask({"job": "embed", "texts": texts[size:]})
                alone[n].append(found["seconds"])
                peaks[n] = found["peak_mb"]
                print(f"{n} tokens: {many[n][-1]:.1f} s, alone {alone[n][-1]:.2f} s", file=sys.stderr, flush=True)
    finally:
        for peer in peers.values():
            peer.close()
    print(f"{machine_line(options.threads)}\n{Path(options.model).name}; medians\n")
    print("| tokens of a text | texts in a call | tokens/s | GFLOP/s | tokens/s, one text in a call | ms | peak MB |")
    print("|---|---|---|---|---|---|---|")
    header = read_header(options.model)
    for n in options.lengths:
        seconds, single = statistics.median(many[n]), statistics.median(alone[n])
        speed = n * _texts(n) / seconds
        print(
            f"| {n} | {_texts(n)} | {speed:.0f} | {speed * flop_per_token(header, n) / 1e9:.0f} | "
            f"{n / single:.0f} | {1000 * single:.0f} | {peaks[n]:.0f} |"
        )


def flop_per_token(header: GgufHeader, n_tokens: int) -> float:
    """Multiplications and additions for a token of a causal text: two for each weight of a matrix of the layers, and
    four for each value of the queries and each token that it looks back to, of which there are half as many as there
    are tokens on average."""
    arch = str(header.metadata["general.architecture"])
    weights = sum(
        tensor.shape[0] * tensor.shape[1]
        for name, tensor in header.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) == 2
    )
    layers, heads = int(header.metadata[f"{arch}.block_count"]), int(header.metadata[f"{arch}.attention.head_count"])
    width = int(
        header.metadata.get(f"{arch}.attention.key_length", header.metadata[f"{arch}.embedding_length"] // heads)
    )
    return 2 * weights + 4 * layers * heads * width * n_tokens / 2


def _texts(n_tokens: int) -> int:
    return max(1, CALL // n_tokens)


def _rounds(n_tokens: int, most: int) -> int:
    return most if n_tokens <= 2048 else 1 if n_tokens > 8192 else min(2, most)


if __name__ == "__main__":
    main()
