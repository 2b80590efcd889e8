"""Record what the original models compute, in ``tests/data``: ``make golden``. Needs torch.

The test run installs no torch; it compares with these files: ``golden.npz`` of the models of ``tests/oracle.py``, and
``golden_<NAME>.npz`` of each family of ``tests/families``. Names as arguments record only those families.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import families, oracle
from tests.golden_texts import TEXTS

GOLDEN = Path(__file__).parent / "data" / "golden.npz"


def smollm2_ids() -> list[list[int]]:
    """llama.cpp's token ids of the texts: SmolLM2's original tokenizer is published on a hub only."""
    from edge_embed import Embedder

    with Embedder(oracle.smollm2_file(), pooling="last") as embedder:
        return [embedder.tokenize(text).token_ids.tolist() for text in TEXTS]


def record_models() -> None:
    """Run every model of ``tests/oracle.py`` and write the one file of them."""
    arrays = {name: model(TEXTS) for name, model in oracle.MODELS.items()}
    ids = smollm2_ids()
    arrays["smollm2"] = oracle.smollm2(ids)
    arrays["smollm2_ids"] = np.array([token for row in ids for token in row], dtype=np.int32)
    arrays["smollm2_lengths"] = np.array([len(row) for row in ids], dtype=np.int32)
    _write(GOLDEN, arrays)


def _write(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size:,} bytes")
    for name, array in arrays.items():
        print(f"  {name}: {array.shape} {array.dtype}")


def main(names: Sequence[str]) -> None:
    """Record the families of these names, or everything where there are none."""
    known = families.modules()
    unknown = sorted(set(names) - known.keys())
    if unknown:
        sys.exit(f"no family is called {', '.join(unknown)}; there are {', '.join(sorted(known)) or 'none'}")
    if not names:
        record_models()
    for name in names or sorted(known):
        _write(families.golden_path(name), known[name].record())


if __name__ == "__main__":
    main(sys.argv[1:])
