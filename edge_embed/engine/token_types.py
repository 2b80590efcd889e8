"""Token embeddings of pairs, with the type that BERT gives to the second text's tokens.

llama.cpp adds the embedding of type 0 to every token. It also takes embeddings in the place of token ids, so a pair
is handed over as embeddings: each token's own, and for the second text's tokens the difference of the two types on top.
What the model then computes is what the original does, with stock llama.cpp.
"""

from __future__ import annotations

import numpy as np

from edge_embed.errors import ModelFileError
from edge_embed.types import BoolArray, Float32Array, Int32Array, ModelInfo, TokenTypes


class PairEmbeddings:
    """The embeddings of one model, read from its file as they are needed.

    Args:
        info: the model.
        types: where they lie.

    Raises:
        ModelFileError: the file has shrunk since its header was read, or the types are not finite.
    """

    def __init__(self, info: ModelInfo, types: TokenTypes) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        self._kind = GGMLQuantizationType[types.token_type_name]
        block, size = GGML_QUANT_SIZES[self._kind]
        shape = (info.n_vocab, info.n_hidden // block * size)
        try:
            self._rows = np.memmap(info.path, np.uint8, "r", types.token_offset, shape)
            both = np.fromfile(info.path, "<f4", 2 * info.n_hidden, offset=types.types_offset)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{info.path}: its token embeddings cannot be read: {error}") from error
        if both.size != 2 * info.n_hidden or not np.isfinite(both).all():
            raise ModelFileError(f"{info.path}: its token types end early or are not finite")
        self._difference = both[info.n_hidden :] - both[: info.n_hidden]

    def __call__(self, token_ids: Int32Array, second: BoolArray) -> Float32Array:
        """float32 ``[n_tokens, n_embd]``."""
        from gguf.quants import dequantize

        ids, places = np.unique(token_ids, return_inverse=True)
        rows = dequantize(np.ascontiguousarray(self._rows[ids]), self._kind).astype(np.float32, copy=False)
        embeddings = np.ascontiguousarray(rows.reshape(len(ids), -1)[places])
        embeddings[second] += self._difference
        return embeddings
