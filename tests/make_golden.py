"""Record the vectors of the original models in ``tests/data/golden.npz``: ``make golden``. Needs torch.

The test run installs no torch; it compares with these.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import oracle
from tests.golden_texts import TEXTS

GOLDEN = Path(__file__).parent / "data" / "golden.npz"


def smollm2_ids() -> list[list[int]]:
    """llama.cpp's token ids of the texts: SmolLM2's original tokenizer is published on a hub only."""
    from edge_embed import Embedder

    with Embedder(oracle.smollm2_file(), pooling="last") as embedder:
        return [embedder.tokenize(text).token_ids.tolist() for text in TEXTS]


def main() -> None:
    """Run every model and write the file."""
    arrays = {name: model(TEXTS) for name, model in oracle.MODELS.items()}
    ids = smollm2_ids()
    arrays["smollm2"] = oracle.smollm2(ids)
    arrays["smollm2_ids"] = np.array([token for row in ids for token in row], dtype=np.int32)
    arrays["smollm2_lengths"] = np.array([len(row) for row in ids], dtype=np.int32)
    np.savez_compressed(GOLDEN, **arrays)
    for name, array in arrays.items():
        print(f"{name}: {array.shape} {array.dtype}")


if __name__ == "__main__":
    main()
