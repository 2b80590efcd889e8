"""One peer in a process and an environment of its own: reads lists of texts, answers with seconds and peak memory.

``python worker.py PEER MODEL THREADS``, then a JSON list of texts a line on stdin; a JSON object a line on stdout.
It imports nothing of this project but the package itself, so that any interpreter can run it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def edge_embed(model: str, threads: int) -> Callable[[list[str]], Any]:
    """This project."""
    from edge_embed import Embedder

    return Embedder(model, n_threads=threads).encode


def llama_cpp_python(model: str, threads: int) -> Callable[[list[str]], Any]:
    """llama-cpp-python's own embed(), with its defaults."""
    from llama_cpp import Llama

    llama = Llama(model, embedding=True, verbose=False, n_threads=threads, n_threads_batch=threads)
    return lambda texts: llama.embed(texts, normalize=True)


def sentence_transformers(model: str, threads: int, dtype: str = "float32") -> Callable[[list[str]], Any]:
    """sentence-transformers on the original checkpoint."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda texts: encoder.encode(texts, batch_size=32)


PEERS: dict[str, Callable[[str, int], Callable[[list[str]], Any]]] = {
    "edge-embed": edge_embed,
    "llama-cpp-python": llama_cpp_python,
    "llama-cpp-python-stock": llama_cpp_python,
    "sentence-transformers-f32": sentence_transformers,
    "sentence-transformers-bf16": lambda model, threads: sentence_transformers(model, threads, "bfloat16"),
}


def main() -> None:
    """Answer requests until stdin ends."""
    peer, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = sys.stdout
    sys.stdout = sys.stderr  # a library's chatter must not get between the answers
    embed = PEERS[peer](model, threads)
    embed(["warm up", "the first call allocates what later ones use again"])
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        texts = json.loads(line)
        start = time.perf_counter()
        embed(texts)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answers.write(json.dumps({"seconds": seconds, "peak_mb": peak}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
