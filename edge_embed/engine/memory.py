"""A context's memory: the keys and values of tokens that it has seen, and which of them the next batch may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_embed.engine.prefixes import KEPT_TOKENS, RESIDENTS, Resident, Residents, worth_keeping
from edge_embed.types import Batch, Int32Array


class Memory:
    """The memory of the context that is attached; encoders have none, and then nothing happens here.

    Args:
        c: the bindings.
        first_seq: the first of the ``RESIDENTS`` sequences that hold beginnings of texts; those before it belong to the
            texts of a batch.
    """

    def __init__(self, c: Any, first_seq: int) -> None:
        self._c = c
        self._memory: Any = None
        self._capacity = 0
        self.residents = Residents(first_seq)

    def attach(self, context: Any, capacity: int) -> None:
        """Look after a new context of so many cells."""
        self._memory, self._capacity = self._c.llama_get_memory(context), capacity

    def detach(self) -> None:
        """The context is gone, with all that it held."""
        self._memory, self._capacity = None, 0
        self.residents.held.clear()

    def clear(self, *, data: bool) -> None:
        """Forget everything; with ``data``, values that are not finite do not stay in its cells."""
        self.residents.held.clear()
        if self._memory:
            self._c.llama_memory_clear(self._memory, data)

    def warm(self, batch: Batch, texts: Sequence[Int32Array]) -> list[int]:
        """For each text of a batch, how many of its tokens are here already: its sequence then begins there.

        Args:
            batch: what will be computed.
            texts: all ids of each of its sequences.
        """
        if not self.residents.held:
            self.clear(data=False)
            return [0] * batch.n_seqs
        found = [self.residents.match(token_ids) for token_ids in texts]
        used = {resident.seq for resident, _ in found if resident is not None}
        while self.residents.n_tokens + batch.n_tokens > self._capacity:
            unused = self.residents.weakest(spare=used)
            if unused is None:
                self.clear(data=False)
                return [0] * batch.n_seqs
            self._drop(unused)
        for seq, (resident, n) in enumerate(found):
            if resident is not None:
                self._c.llama_memory_seq_cp(self._memory, resident.seq, seq, 0, n)
        return [n for _, n in found]

    def keep(self, batch: Batch, texts: Sequence[Int32Array]) -> None:
        """Keep what the texts of a batch that was computed begin with, and forget the rest of them."""
        for seq, n, proven in worth_keeping(batch, texts):
            token_ids = texts[seq][:n]
            known = self.residents.replaced_by(token_ids)
            if known is not None:
                if len(known.token_ids) >= n:
                    continue
                proven = proven or known.proven
                self._drop(known)
            self._make_room(n)
            resident = self.residents.add(token_ids.copy(), proven=proven)
            self._c.llama_memory_seq_cp(self._memory, seq, resident.seq, 0, n)
        for seq in range(batch.n_seqs):
            self._c.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def _make_room(self, n: int) -> None:
        residents = self.residents
        while len(residents.held) == RESIDENTS or (residents.held and residents.n_tokens + n > max(KEPT_TOKENS, n)):
            weakest = residents.weakest()
            assert weakest is not None
            self._drop(weakest)

    def _drop(self, resident: Resident) -> None:
        self._c.llama_memory_seq_rm(self._memory, resident.seq, -1, -1)
        self.residents.held.remove(resident)
