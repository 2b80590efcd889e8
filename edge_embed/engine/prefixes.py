"""Beginnings of texts that stay in the context's memory from one batch to the next.

What a model computes for a token depends on the tokens before it alone, if it looks back. So the keys and values of an
instruction, of a title or of a reranker's query serve every text that begins with it. Each is held by a sequence of its
own, beside those of the batch; copying a sequence copies no data, only whose the cells are.

This module knows which ids lie where. It calls nothing of the library.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from edge_embed.batching import WORTH_SHARING, n_common
from edge_embed.types import Batch, Int32Array

# Sequences that hold beginnings, and the tokens that they keep at most in all, unless a single one is longer.
RESIDENTS: Final = 4
KEPT_TOKENS: Final = 512


@dataclass
class Resident:
    """A beginning in memory.

    Attributes:
        seq: the sequence that holds it.
        token_ids: int32 ``[n]``.
        proven: whether a text has begun with it since; others are given up first.
        used: when it was used last, as a running number.
    """

    seq: int
    token_ids: Int32Array
    proven: bool = False
    used: int = 0


@dataclass
class Residents:
    """The beginnings in memory, at most ``RESIDENTS``.

    Attributes:
        first_seq: the first of the sequences that hold them.
    """

    first_seq: int
    held: list[Resident] = field(default_factory=list)
    _clock: count[int] = field(default_factory=count)

    @property
    def n_tokens(self) -> int:
        """Cells that they take at most; what two have in common is counted twice."""
        return sum(len(resident.token_ids) for resident in self.held)

    def match(self, token_ids: Int32Array) -> tuple[Resident | None, int]:
        """What holds most of the beginning of a text, and how many tokens; never the text's last one."""
        best, most = None, WORTH_SHARING - 1
        for resident in self.held:
            common = min(n_common(resident.token_ids, token_ids), len(token_ids) - 1)
            if common > most:
                best, most = resident, common
        if best is None:
            return None, 0
        best.proven, best.used = True, next(self._clock)
        return best, most

    def weakest(self, *, spare: Set[int] = frozenset()) -> Resident | None:
        """The one to give up first: never used again since it came, else the one that was used least recently.

        Args:
            spare: sequences of those that are not given up.
        """
        others = (resident for resident in self.held if resident.seq not in spare)
        return min(others, key=lambda resident: (resident.proven, resident.used), default=None)

    def replaced_by(self, token_ids: Int32Array) -> Resident | None:
        """One that is the beginning of ``token_ids``, or that these are the beginning of."""
        for resident in self.held:
            if n_common(resident.token_ids, token_ids) == min(len(resident.token_ids), len(token_ids)):
                return resident
        return None

    def add(self, token_ids: Int32Array, *, proven: bool) -> Resident:
        """A new one; there must be a free sequence."""
        taken = {resident.seq for resident in self.held}
        seq = next(s for s in range(self.first_seq, self.first_seq + RESIDENTS) if s not in taken)
        resident = Resident(seq, token_ids, proven, next(self._clock))
        self.held.append(resident)
        return resident


def worth_keeping(batch: Batch, texts: Sequence[Int32Array]) -> list[tuple[int, int, bool]]:
    """Which beginnings of a batch are kept: ``(sequence, tokens, proven)``.

    Args:
        batch: what was computed.
        texts: all ids of each of its sequences.

    Of several texts what they have in common: the outermost stretches, and the innermost that the last one ends, where
    the next batch goes on. Of a single text its beginning, in case that the next one has it, too.
    """
    if batch.n_seqs == 1:
        length = min(len(texts[0]) - 1, KEPT_TOKENS)
        return [(0, length, False)] if length >= WORTH_SHARING else []
    kept: list[tuple[int, int, bool]] = []
    reached = 0
    for stretch in batch.shared:
        if stretch.first >= reached:
            kept.append((stretch.first, len(stretch.token_ids), True))
            reached = stretch.end
    innermost = int(batch.starts[-1])
    if innermost > 0 and (not kept or kept[-1][1] != innermost or reached != batch.n_seqs):
        kept.append((batch.n_seqs - 1, innermost, True))
    return kept[-RESIDENTS:]
