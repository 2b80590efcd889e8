"""How far a vector moves with what else is in the call, per type of the weights; and what certainty costs.

    python -m benchmarks.noise --data DIR [--keep FOLDER] [--model FILE ...] [--rows NAME ...]

The same texts alone, all in one call, and in shuffled calls of 17; decoders with an instruction before every text,
with that prefix shared and not, and kept from one call to the next. Rows: all-MiniLM-L6-v2 (an encoder: nothing to
share) and SmolLM2-135M (a decoder, published in Q4_1) in several types made from the same weights, and each
``--model``. Below the table: ``deterministic=True``, its number of vectors that are the same bit for bit in all calls,
and its time beside that of the default.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.datasets import beir, stsb, tatoeba
from benchmarks.machine import machine_line
from benchmarks.parity_cases import EMBED_TEMPLATE, INSTRUCTIONS
from edge_embed import Embedder
from edge_embed.catalogue import resolve
from edge_embed.convert import convert
from edge_embed.convert.quantize import quantize
from edge_embed.engine import bindings
from edge_embed.engine.devices import default_threads
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.probe import probe
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.tokenizer import tokenizer_of
from edge_embed.types import Float32Array
from tests.oracle import minilm_folder, smollm2_file

TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q4_k_m", "q4_0")
PROMPT = EMBED_TEMPLATE.format(instruction=INSTRUCTIONS[0])
Run = Callable[[list[str]], Float32Array]


def main() -> None:
    """Make the files, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="folder that the files are made in, and taken from")
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="more files")
    parser.add_argument("--rows", nargs="*", help="only these rows")
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3, help="of timing deterministic=True")
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    texts = texts_of(options.data, options.texts)
    print(f"{machine_line(options.threads)}\n{len(texts)} texts; cosines, lowest and mean\n")
    print("| model | compared | min | mean | below 0.9999 |\n|---|---|---|---|---|", flush=True)
    costs = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, path in files(options.keep or Path(temporary), options.model):
            if options.rows and name not in options.rows:
                continue
            for label, cosine in compared(path, texts, options.threads):
                below = int((cosine < 0.9999).sum())
                print(f"| {name} | {label} | {cosine.min():.6f} | {cosine.mean():.6f} | {below} |", flush=True)
            costs.append((name, deterministic(path, texts, options.threads, options.rounds)))
    print("\n| model | same bits alone, together, shuffled | default | deterministic=True takes |\n|---|---|---|---|")
    for name, (same, usual, factor) in costs:
        print(f"| {name} | {same} of {len(texts)} | {usual} of {len(texts)} | {factor:.2f} times as long |")


def texts_of(data: Path, n: int) -> list[str]:
    """Sentences, translations and abstracts, shuffled, all different."""
    chance = random.Random(0)
    first, _, _ = stsb(data)
    abstracts, _, _ = beir(data / "scifact")
    parts = [sorted(set(part)) for part in (first, tatoeba(data), abstracts.values())]
    texts = [text for part, share in zip(parts, (2, 1, 1), strict=True) for text in chance.sample(part, n * share // 4)]
    chance.shuffle(texts)
    return texts


def files(folder: Path, more: list[Path]) -> Iterator[tuple[str, Path]]:
    """Rows and their files, made as they are asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    yield "MiniLM, bundled", resolve(None)
    for ftype in TYPES:
        path = folder / f"minilm-{ftype}.gguf"
        if not path.exists():
            convert(minilm_folder(), path, ftype=ftype, name="model")
        yield f"MiniLM {ftype}", path
    yield "SmolLM2 q4_1, as published", smollm2_file()
    exact = folder / "smollm2-f16.gguf"
    if not exact.exists():
        from tests.test_parity import dequantized

        dequantized(smollm2_file(), exact)
    for ftype in TYPES[1:]:
        path = folder / f"smollm2-{ftype}.gguf"
        if not path.exists():
            quantize(exact, path, ftype=ftype)
        yield f"SmolLM2 {ftype}", path
    for path in more:
        yield path.stem, path


def compared(path: Path, texts: list[str], threads: int) -> Iterator[tuple[str, Float32Array]]:
    """What is compared, and the cosine of each text."""
    with unshared(path, threads) as run:
        base, together, shuffled = alone(run, texts), run(texts), in_calls(run, texts)
    yield "alone, all in one call", cosines(base, together)
    yield "alone, in shuffled calls", cosines(base, shuffled)
    yield "all in one call, in shuffled calls", cosines(together, shuffled)
    with embedder(path, threads) as ours:
        if not ours.info.causal:
            return
        run = encoder(ours)
        kept, shared, in_shuffled = alone(run, texts), run(texts), in_calls(run, texts)
    yield "**prefix not shared, shared**: all in one call", cosines(together, shared)
    yield "**prefix not shared, shared**: shuffled calls", cosines(shuffled, in_shuffled)
    yield "**prefix not shared, kept**: alone", cosines(base, kept)
    yield "shared: alone, all in one call", cosines(kept, shared)


def deterministic(path: Path, texts: list[str], threads: int, rounds: int) -> tuple[int, int, float]:
    """Texts whose bits are the same in all calls with ``deterministic=True`` and by default; the times' ratio."""
    with embedder(path, threads) as usual, embedder(path, threads, deterministic=True) as certain:
        same = []
        for one in (certain, usual):
            run = encoder(one)
            a, b, c = alone(run, texts), run(texts), in_calls(run, texts)
            same.append(int(((a == b) & (b == c)).all(axis=1).sum()))
        ratios = []
        for _ in range(rounds):
            seconds = []
            for one in (usual, certain):
                start = time.perf_counter()
                encoder(one)(texts)
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[1] / seconds[0])
    return same[0], same[1], statistics.median(ratios)


def embedder(path: Path, threads: int, *, deterministic: bool = False) -> Embedder:
    """As a user makes it; SmolLM2's file does not say how it is pooled."""
    pooling = "last" if read_header(path).metadata["general.architecture"] == "llama" else None
    return Embedder(path, pooling=pooling, n_threads=threads, deterministic=deterministic)


@contextmanager
def unshared(path: Path, threads: int) -> Iterator[Run]:
    """The same without sharing, which users cannot switch off alone."""
    header = read_header(path)
    pooling = "last" if header.metadata["general.architecture"] == "llama" else None
    info = read_model_info(header, pooling=pooling)
    usable = probe(info, bindings.load().library)
    engine = LlamaEngine(info, n_threads=threads, use_extra_bufts=usable.use_extra_bufts, share_prefixes=False)
    with Embedder.from_parts(info, engine, tokenizer_of(info, header.metadata, engine.tokenize)) as found:
        yield encoder(found)


def encoder(embedder: Embedder) -> Run:
    """Unit vectors, an instruction before every text of a decoder."""
    prompt = PROMPT if embedder.info.causal else None
    return lambda texts: embedder.encode(texts, prompt=prompt, normalize=True)


def alone(run: Run, texts: list[str]) -> Float32Array:
    """A call for each text."""
    return np.concatenate([run([text]) for text in texts])


def in_calls(run: Run, texts: list[str], size: int = 17) -> Float32Array:
    """Calls of ``size`` texts, in another order."""
    order = random.Random(1).sample(range(len(texts)), len(texts))
    rows = np.concatenate([run([texts[i] for i in order[a : a + size]]) for a in range(0, len(order), size)])
    found = np.empty_like(rows)
    found[order] = rows
    return found


def cosines(a: Float32Array, b: Float32Array) -> Float32Array:
    """Of the rows of unit vectors."""
    found: Float32Array = (a.astype(np.float64) * b).sum(axis=1)
    return found


if __name__ == "__main__":
    main()
