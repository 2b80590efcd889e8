"""What every type costs: plain, with an importance matrix, and chosen by measurement.

    python -m benchmarks.quantization --data DIR --checkpoint DIR --record FILE [--set scifact] [--rows NAME...]

Against the original model in float32 on STS-B (test): size, lowest and mean cosine, Spearman. With ``--set`` the rows
named by ``--rows`` are also scored by nDCG@10 on that BEIR set, which takes minutes a file. The importance matrix and
the recipes see the built-in calibration texts, none of the evaluation's. ``--record`` keeps the original's vectors, so
that a second run needs no torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.datasets import stsb
from benchmarks.metrics import original_vectors, retrieval, sts_spearman
from edge_embed import Embedder
from edge_embed.convert import FTYPES, convert
from edge_embed.convert.calibrate import calibrate
from edge_embed.convert.calibrate.texts import TEXTS
from edge_embed.convert.quantize import quantize
from edge_embed.convert.recipe import Measuring, Target, quantize_to_targets

SIZES = ("q4_0", "q4_k_m", "q5_k_m", "q8_0")  # whose sizes the recipes get
COSINES = (0.99, 0.999)


def main() -> None:
    """Make the files, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--set", help="a BEIR set for nDCG@10, e.g. scifact")
    parser.add_argument("--rows", nargs="*", default=None, help="the rows that get nDCG@10; all by default")
    parser.add_argument("--texts", type=int, default=len(TEXTS), help="calibration texts to use, evenly chosen")
    parser.add_argument("--keep", type=Path, help="folder that the files are made in, and taken from")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    first, second, scores = stsb(options.data)
    sentences = [*first, *second]
    original = original_vectors(options.checkpoint, sentences, options.record).astype(np.float64)
    print(f"{len(first)} pairs of STS-B; original's Spearman {sts_spearman(original.astype(np.float32), scores):.4f}")
    texts = [TEXTS[i] for i in np.linspace(0, len(TEXTS) - 1, options.texts).round().astype(int)]
    with tempfile.TemporaryDirectory() as temporary:
        files = _files(options.checkpoint, options.keep or Path(temporary), texts, options.threads)
        print(
            "| types | MB | min cosine | mean cosine | below 0.99 | Spearman | nDCG@10 |\n|---|---|---|---|---|---|---|"
        )
        for name, path in files.items():
            with Embedder(path, n_threads=options.threads) as embedder:
                vectors = embedder.encode(sentences)
                cosine = (vectors.astype(np.float64) * original).sum(axis=1)
                asked = options.set and (options.rows is None or name in options.rows)
                ndcg = f"{retrieval(embedder, options.data / options.set)[0]:.4f}" if asked else ""
            print(
                f"| {name} | {path.stat().st_size / 1e6:.2f} | {cosine.min():.5f} | {cosine.mean():.5f} | "
                f"{int((cosine < 0.99).sum())} | {sts_spearman(vectors, scores):.4f} | {ndcg} |",
                flush=True,
            )


def _files(checkpoint: Path, folder: Path, texts: list[str], threads: int) -> dict[str, Path]:
    """Every file of the table by its row's name; those that are there already are not made again."""
    exact, imatrix = folder / "f32.gguf", folder / "imatrix.gguf"
    if not exact.exists():
        convert(checkpoint, exact, ftype="f32", name="model")
    if not imatrix.exists():
        calibrate(exact, texts, imatrix, threads=threads)
    files = {}
    for ftype in FTYPES:
        matrices = {ftype: None}
        if not ftype.endswith(("32", "16")) and ftype != "q8_0":
            matrices[f"{ftype}, imatrix"] = imatrix
        for name, matrix in matrices.items():
            files[name] = folder / f"{name.replace(', ', '-')}.gguf"
            if not files[name].exists():
                quantize(exact, files[name], ftype=ftype, imatrix=matrix)
    targets: dict[str, Target] = {
        f"recipe, size of {ftype}": Target(max_bytes=files[ftype].stat().st_size) for ftype in SIZES
    }
    targets |= {f"recipe, min cosine {cosine}": Target(min_cosine=cosine) for cosine in COSINES}
    for suffix, matrix in (("", None), (", imatrix", imatrix)):
        made = {
            name + suffix: folder / f"{target.label}{suffix.replace(', ', '-')}.gguf"
            for name, target in targets.items()
        }
        if suffix:  # sizes only: the matrix changes a lowest cosine's size, not what it keeps
            made = {name: path for name, path in made.items() if "size" in name}
        missing = [(path, targets[name.removesuffix(suffix)]) for name, path in made.items() if not path.exists()]
        if missing:
            how = Measuring(texts, imatrix=matrix, threads=threads, log=lambda s: print(s, file=sys.stderr))
            quantize_to_targets(exact, missing, how)
        files |= made
    return files


if __name__ == "__main__":
    main()
