"""From the last hidden states of a batch to a vector for each text, with the same bits whatever stands beside it.

llama.cpp takes the mean as one product with a matrix of all tokens by all texts, and the order of such a sum depends on
where in the batch a text stands. Here each text's rows are summed by themselves, in their order.

The rows have the same bits in any company too, where our kernels compute attention: a text's keys are walked from its
own first one on. What is left is that a library chooses its way by the size of a batch: ggml has its own for attention
of fewer than 4 queries, for products of float weights with a single token, and for those of quantized weights that we
have no kernel for (IQ4_XS, Q3_K) with fewer than 8. ``in_company`` keeps batches larger than that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_embed.engine.shape import LEAST_TOKENS
from edge_embed.types import Batch, Float32Array, Int32Array, Pooling


def in_company(batch: Batch) -> Batch:
    """A batch of ``LEAST_TOKENS`` at least: a smaller one gets one more sequence, of copies of its first token."""
    missing = LEAST_TOKENS - batch.n_tokens
    if missing <= 0:
        return batch
    return replace(
        batch,
        token_ids=np.append(batch.token_ids, np.full(missing, batch.token_ids[0])),
        lengths=np.append(batch.lengths, np.int32(missing)),
        indices=(*batch.indices, -1),
    )


def pooled(rows: Float32Array, lengths: Int32Array, pooling: Pooling) -> Float32Array:
    """One vector for each text.

    Args:
        rows: float32 ``[n_tokens, n_embd]``, the texts' tokens one behind the other.
        lengths: int32 ``[n_texts]``, tokens of each, none of them 0.
        pooling: ``mean`` (summed in float64), ``cls`` (the first row) or ``last``.

    Returns:
        float32 ``[n_texts, n_embd]``; what overflows is not finite, and the caller looks for it.
    """
    ends = np.cumsum(lengths)
    if pooling != "mean":
        chosen: Float32Array = rows[ends - lengths if pooling == "cls" else ends - 1]
        return chosen
    sums = np.empty((len(lengths), rows.shape[1]))
    with np.errstate(all="ignore"):
        for total, end, n in zip(sums, ends.tolist(), lengths.tolist(), strict=True):
            np.add.reduce(rows[end - n : end], axis=0, dtype=np.float64, out=total)
        means: Float32Array = (sums / lengths[:, None]).astype(np.float32)
    return means
