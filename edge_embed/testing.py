"""A deterministic engine without a model, so that programs over edge-embed can be tested in milliseconds.

``fake_embedder()`` is an Embedder whose vectors can be read: value ``i`` of a vector counts how often a token id that
is ``i`` modulo the size occurs in the text. Tokens are the text's UTF-8 bytes between ``[1]`` and ``[2]``.
``fake_reranker()`` is a Reranker whose score of a pair is its number of tokens.
"""

from __future__ import annotations

import numpy as np

from edge_embed.cancellation import Cancellation
from edge_embed.embedder import Embedder
from edge_embed.errors import EngineClosedError
from edge_embed.reranker import Reranker
from edge_embed.tokenizer import Tokenizer
from edge_embed.types import Batch, EngineLimits, Float32Array, ModelInfo, RerankInfo


class FakeEngine:
    """Counts tokens instead of computing; remembers the batches it was given.

    Args:
        n_embd: size of the vectors.
        n_batch: tokens per batch.
        n_seq_max: texts per batch.
        poison: a token id that makes a text's vector NaN.
        lanes: batches that are computed at the same time.
    """

    def __init__(
        self, *, n_embd: int = 16, n_batch: int = 64, n_seq_max: int = 8, poison: int | None = None, lanes: int = 1
    ) -> None:
        self.batches: list[Batch] = []
        self._closed = False
        self._n_embd, self._poison = n_embd, poison
        self._limits = EngineLimits(n_batch=n_batch, n_seq_max=n_seq_max, n_ctx_max=512, n_vocab=259, lanes=lanes)

    @property
    def limits(self) -> EngineLimits:
        """What one batch may carry."""
        return self._limits

    @property
    def n_embd(self) -> int:
        """Size of the vectors."""
        return self._n_embd

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self._closed

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """Token counts modulo ``n_embd``, float32 ``[n_seqs, n_embd]``."""
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if stop is not None:
            stop.check()
        self.batches.append(batch)
        rows = np.zeros((batch.n_seqs, self._n_embd), dtype=np.float32)
        for row, ids in zip(rows, np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1]), strict=True):
            np.add.at(row, ids % self._n_embd, 1.0)
            if self._poison is not None and self._poison in ids:
                row[:] = np.nan
        return rows

    def decode_tokens(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """A one for each token, at its id modulo ``n_embd``, float32 ``[n_tokens, n_embd]``."""
        self.decode(batch, stop)
        rows: Float32Array = np.eye(self._n_embd, dtype=np.float32)[batch.token_ids % self._n_embd]
        return rows

    def forget(self) -> None:
        """There is nothing to forget."""

    def close(self) -> None:
        """Later calls of ``decode`` raise EngineClosedError."""
        self._closed = True


def fake_embedder(engine: FakeEngine | None = None, *, max_tokens: int = 512) -> Embedder:
    """An Embedder over a FakeEngine, with the prompts ``query`` and ``document`` and an instruction template."""
    engine = engine or FakeEngine()
    info = ModelInfo(
        path="fake",
        architecture="fake",
        name="fake",
        n_embd=engine.n_embd,
        n_ctx_train=512,
        n_layer=0,
        n_vocab=engine.limits.n_vocab,
        pooling="mean",
        pooling_source="caller",
        causal=False,
        max_tokens=max_tokens,
        normalize=True,
        prompts={"query": "query: ", "document": "passage: "},
        instruction_template="Instruct: {instruction}\nQuery:",
    )
    tokenizer = Tokenizer(lambda text: [3 + byte for byte in text.encode()], (1,), (2,), max_tokens)
    return Embedder.from_parts(info, engine, tokenizer)


def fake_reranker(engine: FakeEngine | None = None, *, max_tokens: int = 512) -> Reranker:
    """A Reranker over a FakeEngine of one output: the longer the document, the better it scores."""
    engine = engine or FakeEngine(n_embd=1)
    info = ModelInfo(
        path="fake",
        architecture="fake",
        name="fake",
        n_embd=1,
        n_ctx_train=512,
        n_layer=0,
        n_vocab=engine.limits.n_vocab,
        pooling="rank",
        pooling_source="file",
        causal=False,
        max_tokens=max_tokens,
        normalize=False,
        rerank=RerankInfo(("score",), "identity", None, None, "F32", 0),
    )
    tokenizer = Tokenizer(lambda text: [3 + byte for byte in text.encode()], (1,), (2,), max_tokens, separator=(2,))
    return Reranker.from_parts(info, engine, tokenizer)
