"""A GGUF of Qwen3-Embedding-4B's shape, out of the 0.6B shape's, in seconds and without a checkpoint.

    python -m benchmarks.shape4b Qwen3-0.6B-Q4_K_M.gguf Qwen3-4B-Q4_K_M.gguf

For memory and speed, which do not depend on what weights mean: metadata and vocabulary are the small file's, each
tensor's blocks are the small file's over and over, and types go by llama.cpp's recipe as in the small file, which is
Q4_K_M (the result has 2.5 GB) or of one type throughout, such as Q8_0 (4.3 GB).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import numpy.typing as npt

from edge_embed.planning import catalogue

# Qwen3-Embedding-4B's config.json, what the 0.6B's does not share.
_NUMBERS: Final = {
    "qwen3.block_count": 36,
    "qwen3.embedding_length": 2560,
    "qwen3.feed_forward_length": 9728,
    "qwen3.attention.head_count": 32,
}
Bytes = npt.NDArray[np.uint8]


def shapes(usual: str, more_bits: str) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Name, ``(rows, values of a row)`` and type of every matrix but the embeddings of tokens."""
    hidden, n_ff, layers = 2560, 9728, 36
    for layer in range(layers):
        # llama-quant.cpp, use_more_bits: the first and last eighth of the layers, and each third one between.
        eighth = layers // 8
        more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        wide = more_bits if more else usual
        for name, shape, kind in (
            ("attn_q", (4096, hidden), usual),
            ("attn_k", (1024, hidden), usual),
            ("attn_v", (1024, hidden), wide),
            ("attn_output", (hidden, 4096), usual),
            ("ffn_gate", (n_ff, hidden), usual),
            ("ffn_up", (n_ff, hidden), usual),
            ("ffn_down", (hidden, n_ff), wide),
        ):
            yield f"blk.{layer}.{name}.weight", shape, kind


def make(small: Path, out: Path) -> None:
    """Write the large file out of the small one."""
    reader = gguf.GGUFReader(small)
    writer = gguf.GGUFWriter(out, "qwen3")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, *rest = field.types
        value = _NUMBERS.get(name, field.contents())
        writer.add_key_value(name, value, kind, rest[-1] if rest else None)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kinds = [tensors[f"blk.0.{name}.weight"].tensor_type.name for name in ("attn_q", "ffn_down")]
    tile: dict[str, Bytes] = {
        kind: tensors[f"blk.0.{name}.weight"].data.reshape(-1).view(np.uint8)
        for kind, name in zip(kinds, ("attn_q", "ffn_down"), strict=True)
    }
    n_vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    matrices = [("token_embd.weight", (n_vocab, 2560), kinds[1]), *shapes(*kinds)]
    norms = [("output_norm.weight", 2560)]
    for layer in range(36):
        norms += [(f"blk.{layer}.{name}_norm.weight", 2560) for name in ("attn", "ffn")]
        norms += [(f"blk.{layer}.attn_{name}_norm.weight", 128) for name in ("q", "k")]
    for name, (rows, values), type_name in matrices:
        kind = gguf.GGMLQuantizationType[type_name]
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        width = values // block * n_bytes
        writer.add_tensor_info(name, (rows, width), np.dtype(np.uint8), rows * width, raw_dtype=kind)
    for name, size in norms:
        writer.add_tensor_info(name, (size,), np.dtype(np.float32), 4 * size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, (rows, values), type_name in matrices:
        block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
        data: Bytes = np.resize(tile[type_name], (rows, values // block * n_bytes))
        writer.write_tensor_data(data)
    for _, size in norms:
        writer.write_tensor_data(np.ones(size, dtype=np.float32))
    writer.close()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="A GGUF of the 4B shape out of the 0.6B's.")
    parser.add_argument("small", type=Path, help="Qwen3-0.6B-Q4_K_M.gguf of `python -m benchmarks.shape06`")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    make(options.small, options.out)
    entry = catalogue.find("qwen3-embedding-4b")
    assert entry is not None
    print(f"{options.out}: {options.out.stat().st_size / 1e9:.2f} GB; {entry.repository}'s shape")
    return 0


if __name__ == "__main__":
    sys.exit(main())
