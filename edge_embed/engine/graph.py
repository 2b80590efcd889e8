"""What goes into llama.cpp's graph and what is taken out of it: a batch as C sees it, and the last hidden states."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edge_embed.engine import bindings
from edge_embed.errors import CallCancelledError, ComputeError, EngineMemoryError
from edge_embed.types import Batch, Float32Array, Int32Array

# The hidden states behind the final norm: the second where every token is an output and nothing is pooled.
_HIDDEN_NAMES: Final = (b"result_norm", b"result_embd_pooled")


class HiddenRows:
    """Collects the rows of the last hidden states as the graph produces them, and ends the graph there."""

    def __init__(self, lib: bindings.Bindings, n_embd: int) -> None:
        self._chunks: list[Float32Array] = []
        self._n_embd = n_embd
        chunks, ggml = self._chunks, lib.ggml

        def observe(tensor: int, ask: bool, _: Any) -> bool:
            if ask:
                return ggml.ggml_get_name(tensor) in _HIDDEN_NAMES
            n_bytes = ggml.ggml_nbytes(tensor)
            rows = np.empty((n_bytes // (4 * n_embd), n_embd), dtype=np.float32)
            if rows.nbytes == n_bytes:
                ggml.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, n_bytes)
                chunks.append(rows)
            return False

        self.observe = observe
        self.callback = lib.c.ggml_backend_sched_eval_callback(observe)

    def clear(self) -> None:
        """Forget what was copied."""
        self._chunks.clear()

    def take(self) -> Float32Array:
        """What was copied since the last time, float32 ``[n_outputs, n_embd]``; no rows where nothing was."""
        rows = np.concatenate(self._chunks) if self._chunks else np.empty((0, self._n_embd), dtype=np.float32)
        self._chunks.clear()
        return rows


class CBatch:
    """A ``llama_batch`` whose arrays are NumPy's; keep it alive during the call.

    Args:
        c: the bindings.
        batch: what is computed.
        warm: for each sequence, how many of its tokens the context's memory holds already.
        embeddings: float32 ``[n_tokens, n_embd]`` in the place of the ids; only where nothing is shared or warm.
        last_only: whether only the last token of each sequence is an output, or every token.
    """

    def __init__(
        self, c: Any, batch: Batch, warm: Sequence[int], embeddings: Float32Array | None, *, last_only: bool
    ) -> None:
        pieces: list[tuple[Int32Array, int, int, int]] = []  # (ids, position of the first, first sequence, sequences)
        own = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
        starts = [0] * batch.n_seqs
        stretches = iter([*batch.shared, None])
        stretch = next(stretches)
        last: list[int] = []  # behind the last token of each sequence
        n = 0
        for seq, tokens in enumerate(own):
            while stretch is not None and stretch.first == seq:
                start, size = starts[seq], len(stretch.token_ids)
                known = min(max(warm[seq] - start, 0), size)
                pieces.append((stretch.token_ids[known:], start + known, seq, stretch.end - seq))
                starts[seq : stretch.end] = [start + size] * (stretch.end - seq)
                n += size - known
                stretch = next(stretches)
            known = max(warm[seq] - starts[seq], 0)
            pieces.append((tokens[known:], starts[seq] + known, seq, 1))
            n += len(tokens) - known
            last.append(n)
        sizes = np.array([len(ids) for ids, _, _, _ in pieces])
        firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        ids = np.concatenate([ids for ids, _, _, _ in pieces])
        self.n_tokens = n
        self.input = np.ascontiguousarray(ids, dtype=np.int32) if embeddings is None else embeddings
        self.pos = (np.arange(n) - firsts + np.repeat([p for _, p, _, _ in pieces], sizes)).astype(np.int32)
        self.n_seq_id = np.repeat([count for _, _, _, count in pieces], sizes).astype(np.int32)
        self.names = np.arange(batch.n_seqs, dtype=np.int32)
        sequence = np.repeat([seq for _, _, seq, _ in pieces], sizes)
        self.seq_id = (self.names.ctypes.data + 4 * sequence).astype(np.uintp)  # a pointer to its names for each token
        self.output = np.zeros(n, dtype=np.int8)
        self.output[np.array(last) - 1 if last_only else slice(None)] = 1
        self.struct = c.llama_batch()
        self.struct.n_tokens = n
        for name, array in (
            ("token" if embeddings is None else "embd", self.input),
            ("pos", self.pos),
            ("n_seq_id", self.n_seq_id),
            ("seq_id", self.seq_id),
            ("logits", self.output),
        ):
            kind = dict(c.llama_batch._fields_)[name]
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kind))


def run(lib: bindings.Bindings, context: Any, packed: CBatch) -> None:
    """Compute a batch in a context.

    Raises:
        CallCancelledError: the context's abort callback ended it.
        EngineMemoryError, ComputeError: the library failed.
    """
    bindings.last_complaint()
    code = lib.c.llama_decode(context, packed.struct)
    if code == 0:
        return
    if code == 2:
        raise CallCancelledError("the call was stopped")
    if code in (1, -2):
        raise EngineMemoryError(
            f"no memory for a batch of {packed.n_tokens} tokens: {bindings.last_complaint() or f'code {code}'}",
            hint="lower n_batch or max_tokens",
        )
    raise ComputeError(
        f"the engine returned code {code}: {bindings.last_complaint() or 'no reason given'}",
        hint="if a GPU or OpenVINO computes this model, --device cpu does without it",
    )


def output_rows(lib: bindings.Bindings, context: Any, n_tokens: int, n_embd: int) -> Float32Array:
    """The last hidden states of a batch's first tokens, float32 ``[n_tokens, n_embd]``; none where there are none."""
    pointer = lib.c.llama_get_embeddings(context)
    rows = np.empty((n_tokens if pointer else 0, n_embd), dtype=np.float32)
    if pointer:
        ctypes.memmove(rows.ctypes.data, pointer, rows.nbytes)
    return rows
