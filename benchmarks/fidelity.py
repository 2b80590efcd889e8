"""How close a GGUF is to its original: ids, vectors, STS-B.

    python -m benchmarks.fidelity --data DIR --checkpoint DIR [--model FILE]... [--record FILE]

* ids: every text of ``tokstress`` against the checkpoint's own ``tokenizer.json``, id for id;
* vectors: cosine to the original for all 2,758 sentences of STS-B (test), with the original's Spearman beside ours.

The original is run by transformers in float32 where torch is installed; ``--record`` keeps its vectors in a file, and
takes them from there where the file exists, so that the comparison itself needs no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.datasets import stsb, tokenizer_stress
from benchmarks.metrics import original_vectors, sts_spearman
from edge_embed import Embedder
from edge_embed.catalogue import resolve


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--model", action="append", type=Path)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    models = options.model or [resolve(None)]

    tokenizer = Tokenizer.from_file(str(options.checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    stress = tokenizer_stress(options.data)
    expected_ids = [encoding.ids for encoding in tokenizer.encode_batch(stress)]

    first, second, scores = stsb(options.data)
    original = original_vectors(options.checkpoint, [*first, *second], options.record)
    spearman_then = sts_spearman(original, scores)
    print(f"{len(stress)} texts for ids; {len(first)} pairs of STS-B; original's Spearman {spearman_then:.4f}")
    print("| file | MB | equal ids | min cosine | mean cosine | below 0.999 | Spearman | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for path in models:
        with Embedder(path) as embedder:
            equal = sum(_same(embedder, text, ids) for text, ids in zip(stress, expected_ids, strict=True))
            vectors = embedder.encode([*first, *second])
        cosine = (vectors.astype(np.float64) * original).sum(axis=1)
        spearman = sts_spearman(vectors, scores)
        print(
            f"| {path.name} | {path.stat().st_size / 1e6:.1f} | {equal}/{len(stress)} | {cosine.min():.6f} | "
            f"{cosine.mean():.6f} | {int((cosine < 0.999).sum())} | {spearman:.4f} | "
            f"{spearman - spearman_then:+.4f} |"
        )


def _same(embedder: Embedder, text: str, expected: list[int]) -> bool:
    """Ids equal as far as the model reads; the original's closing token stays last in a longer text."""
    found = embedder.tokenize(text)
    if found.truncated:
        expected = [*expected[: found.n_tokens - 1], expected[-1]] if len(expected) == found.n_original else []
    return found.token_ids.tolist() == expected


if __name__ == "__main__":
    main()
