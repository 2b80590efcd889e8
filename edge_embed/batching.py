"""Which texts share a call of the engine: pure arithmetic over token ids, no model, no I/O.

A batch holds whole sequences one after another, without padding. Tokens of different sequences do not see
each other, but an attention kernel pays for the pairs all the same, so a batch is kept near ``n_batch`` tokens
and holds texts of similar length. Longest first: memory grows at once, not half-way through.

Where the engine can compute a beginning once for all texts that have it (an instruction, a title, the query of a
reranker), texts are put in the order of their ids instead: those that begin alike are then neighbours, and what
neighbours have in common is found by comparing each with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from edge_embed.errors import InvalidOptionError
from edge_embed.types import Batch, BoolArray, Encoding, Int32Array, Shared

# Fewer tokens in common than this are not worth the bookkeeping.
WORTH_SHARING: Final = 4


def pack(encodings: Sequence[Encoding], *, n_batch: int, n_seq_max: int, share: bool = False) -> Iterator[Batch]:
    """Pack encodings into batches: longest first, or, to share what they begin with, in the order of their ids.

    Args:
        encodings: the texts' tokens, none of them empty.
        n_batch: most tokens of a batch that holds more than one text; a longer text gets a batch of its own. What the
            batch before has computed of a beginning is not counted again.
        n_seq_max: most texts of a batch.
        share: whether beginnings are computed once. Only for models whose tokens look back alone.

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
    if share:
        yield from _pack_sharing(encodings, n_batch, n_seq_max)
        return
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


def n_common(a: Int32Array, b: Int32Array) -> int:
    """How many ids two sequences begin with alike."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


class _Stretches:
    """What the sequences of one batch have in common, found while they are added in the order of their ids.

    Those that are still open enclose each other, the widest first: the classical walk over the intervals of equal
    common prefixes in a sorted list (Abouelhoda, Kurtz and Ohlebusch, "Replacing suffix trees with enhanced suffix
    arrays", 2004).
    """

    def __init__(self) -> None:
        self.open: list[tuple[int, int]] = []  # (depth where it ends, its first sequence)
        self.closed: list[tuple[int, int, int]] = []  # (first, depth, end)
        self.n = 0

    def depth(self, common: int) -> int:
        """How many of the tokens that the next sequence has in common with the last one will be shared."""
        enclosing = max((depth for depth, _ in self.open if depth <= common), default=0)
        return common if common - enclosing >= WORTH_SHARING else enclosing

    def add(self, common: int) -> None:
        """The next sequence has ``common`` tokens in common with the one before."""
        depth, first = self.depth(common), self.n - 1
        while self.open and self.open[-1][0] > depth:
            ended, first = self.open.pop()
            self.closed.append((first, ended, self.n))
        if depth > (self.open[-1][0] if self.open else 0):
            self.open.append((depth, first))
        self.n += 1

    def deepest(self) -> int:
        """Shared tokens of the last sequence."""
        return self.open[-1][0] if self.open else 0

    def all(self) -> list[tuple[int, int, int]]:
        """``(first, depth, end)`` of each, those that enclose others before these."""
        still_open = [(first, depth, self.n) for depth, first in self.open]
        return sorted([*self.closed, *still_open], key=lambda s: (s[0], s[1]))


def _pack_sharing(encodings: Sequence[Encoding], n_batch: int, n_seq_max: int) -> Iterator[Batch]:
    # big-endian, so that the order of the bytes is that of the ids
    ids = [encoding.token_ids.astype(np.int32, copy=False) for encoding in encodings]
    order = sorted(range(len(ids)), key=lambda i: ids[i].astype(">u4").tobytes())
    members: list[int] = []
    stretches = _Stretches()
    n_tokens = 0
    previous = -1
    for index in order:
        # A sequence keeps at least its last token to itself: that is the one whose vector is asked for.
        common = 0 if previous < 0 else min(n_common(ids[previous], ids[index]), len(ids[index]) - 1)
        if previous >= 0:
            common = min(common, len(ids[previous]) - 1)
        if members:
            cost = len(ids[index]) - stretches.depth(common)
            if n_tokens + cost > n_batch or len(members) == n_seq_max:
                yield _sharing_batch(encodings, ids, members, stretches)
                computed = min(common, stretches.deepest() if len(members) > 1 else common)
                members, stretches, n_tokens = [], _Stretches(), 0
                cost = len(ids[index]) - computed
        else:
            cost = len(ids[index])
        stretches.add(common if members else 0)
        members.append(index)
        n_tokens += cost
        previous = index
    if members:
        yield _sharing_batch(encodings, ids, members, stretches)


def _sharing_batch(
    encodings: Sequence[Encoding], ids: Sequence[Int32Array], members: Sequence[int], stretches: _Stretches
) -> Batch:
    starts = [0] * len(members)
    shared = []
    for first, depth, end in stretches.all():
        shared.append(Shared(ids[members[first]][starts[first] : depth], first, end))
        starts[first:end] = [depth] * (end - first)
    own = [ids[index][start:] for index, start in zip(members, starts, strict=True)]
    pairs = any(encodings[index].n_first for index in members)
    second = [_second(encodings[index])[start:] for index, start in zip(members, starts, strict=True)]
    return Batch(
        token_ids=np.concatenate(own),
        lengths=np.array([len(tokens) for tokens in own], dtype=np.int32),
        indices=tuple(members),
        second=np.concatenate(second) if pairs else None,
        shared=tuple(shared),
    )


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


def sequences(batch: Batch) -> list[Int32Array]:
    """All tokens of each sequence, the shared ones with its own."""
    own = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
    if not batch.shared:
        return own
    parts: list[list[Int32Array]] = [[] for _ in own]
    for stretch in batch.shared:
        for seq in range(stretch.first, stretch.end):
            parts[seq].append(stretch.token_ids)
    return [np.concatenate([*before, tokens]) for before, tokens in zip(parts, own, strict=True)]


def alone(batch: Batch) -> Iterator[Batch]:
    """Each member of a batch as a batch of its own, in order."""
    seconds = None if batch.second is None else np.split(batch.second, np.cumsum(batch.lengths)[:-1])
    for seq, token_ids in enumerate(sequences(batch)):
        yield Batch(
            token_ids=token_ids,
            lengths=np.array([len(token_ids)], dtype=np.int32),
            indices=(batch.indices[seq],),
            second=None if seconds is None else seconds[seq],
        )
