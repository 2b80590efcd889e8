"""Which texts share a call of the engine: pure arithmetic over token counts, no model, no I/O.

A batch holds whole sequences one after another, without padding. Tokens of different sequences do not see
each other, but an attention kernel pays for the pairs all the same, so a batch is kept near ``n_batch`` tokens
and holds texts of similar length. Longest first: memory grows at once, not half-way through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edge_embed.errors import InvalidOptionError
from edge_embed.types import Batch, BoolArray, Encoding


def pack(encodings: Sequence[Encoding], *, n_batch: int, n_seq_max: int) -> Iterator[Batch]:
    """Pack encodings into batches, longest first.

    Args:
        encodings: the texts' tokens, none of them empty.
        n_batch: most tokens of a batch that holds more than one text; a longer text gets a batch of its own.
        n_seq_max: most texts of a batch.

    Yields:
        Batches that hold each index of ``encodings`` exactly once.

    Raises:
        InvalidOptionError: a budget below 1, or an empty encoding.
    """
    if n_batch < 1 or n_seq_max < 1:
        raise InvalidOptionError(f"budgets must be at least 1, got n_batch={n_batch}, n_seq_max={n_seq_max}")
    lengths = [encoding.n_tokens for encoding in encodings]
    if 0 in lengths:
        raise InvalidOptionError(f"encoding {lengths.index(0)} has no tokens")
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)  # stable: input order within a length
    members: list[int] = []
    n_tokens = 0
    for index in order:
        if members and (n_tokens + lengths[index] > n_batch or len(members) == n_seq_max):
            yield _batch(encodings, members)
            members, n_tokens = [], 0
        members.append(index)
        n_tokens += lengths[index]
    if members:
        yield _batch(encodings, members)


def _batch(encodings: Sequence[Encoding], members: Sequence[int]) -> Batch:
    chosen = [encodings[index] for index in members]
    pairs = any(encoding.n_first for encoding in chosen)
    return Batch(
        token_ids=np.concatenate([encoding.token_ids for encoding in chosen]).astype(np.int32, copy=False),
        lengths=np.array([encoding.n_tokens for encoding in chosen], dtype=np.int32),
        indices=tuple(members),
        second=np.concatenate([_second(encoding) for encoding in chosen]) if pairs else None,
    )


def _second(encoding: Encoding) -> BoolArray:
    """Which tokens are the second text's."""
    return np.arange(encoding.n_tokens) >= (encoding.n_first or encoding.n_tokens)


def alone(batch: Batch) -> Iterator[Batch]:
    """Each member of a batch as a batch of its own, in order."""
    ends = np.cumsum(batch.lengths)
    for index, end, length in zip(batch.indices, ends.tolist(), batch.lengths.tolist(), strict=True):
        yield Batch(
            token_ids=batch.token_ids[end - length : end],
            lengths=np.array([length], dtype=np.int32),
            indices=(index,),
            second=None if batch.second is None else batch.second[end - length : end],
        )
