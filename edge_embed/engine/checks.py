"""The limits of a batch, checked before any C call: llama.cpp ends the process where one is broken."""

from __future__ import annotations

import numpy as np

from edge_embed.errors import InvalidOptionError
from edge_embed.types import Batch, EngineLimits


def check_batch(batch: Batch, limits: EngineLimits, *, takes_shared: bool) -> None:
    """That an engine can compute a batch.

    Args:
        batch: what it was given.
        limits: the engine's.
        takes_shared: whether texts of a batch may share what they begin with.

    Raises:
        InvalidOptionError: a limit is broken, or the batch's arrays do not fit together.
    """
    lengths, ids = batch.lengths, batch.token_ids
    if ids.dtype != np.int32 or lengths.dtype != np.int32 or ids.ndim != 1 or lengths.ndim != 1:
        raise InvalidOptionError("token_ids and lengths must be int32 vectors")
    if batch.second is not None and (batch.second.dtype != np.bool_ or batch.second.shape != ids.shape):
        raise InvalidOptionError("second must be a bool for each token")
    if not 1 <= batch.n_seqs <= limits.n_seq_max:
        raise InvalidOptionError(f"a batch of {batch.n_seqs} texts, expected 1 to {limits.n_seq_max}")
    if lengths.min() < 1 or int(lengths.sum(dtype=np.int64)) != len(ids) or len(batch.indices) != len(lengths):
        raise InvalidOptionError("the lengths of a batch do not add up to its tokens")
    if batch.shared:
        if not takes_shared:
            raise InvalidOptionError("this model's texts cannot share what they begin with")
        _check_shared(batch)
    longest = int((batch.starts + lengths).max())
    if longest > limits.n_ctx_max:
        raise InvalidOptionError(f"a text of {longest} tokens, the model holds {limits.n_ctx_max}")
    if batch.n_seqs > 1 and batch.n_tokens > limits.n_batch + longest:
        raise InvalidOptionError(f"a batch of {batch.n_tokens} tokens, expected at most {limits.n_batch} and one text")
    for given in (ids, *(stretch.token_ids for stretch in batch.shared)):
        if given.min() < 0 or given.max() >= limits.n_vocab:
            raise InvalidOptionError(f"a token id outside 0 to {limits.n_vocab - 1}")


def _check_shared(batch: Batch) -> None:
    enclosing: list[int] = []  # where the stretches end that are open
    before = 0
    for stretch in batch.shared:
        ids = stretch.token_ids
        while enclosing and enclosing[-1] <= stretch.first:
            enclosing.pop()
        outer = enclosing[-1] if enclosing else batch.n_seqs
        sound = ids.dtype == np.int32 and ids.ndim == 1 and len(ids)
        if not sound or not before <= stretch.first < stretch.end <= outer:
            raise InvalidOptionError("a stretch of shared tokens is empty, out of order or crosses another")
        enclosing.append(stretch.end)
        before = stretch.first
