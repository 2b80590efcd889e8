"""Which rows of a call are known, and what stands for a row.

A key is a digest of everything that a raw vector follows from: the model file's bytes, the adapter's and its scale, the
pooling, and the token ids, which prompt, Unicode normalization and truncation have gone into already. The value is
the engine's row before it is cut, normalized or quantized, so one entry serves every size and precision. What is not in
the key: threads, kernels and the company in a batch. They move the last digits of a vector (more in a quantized
model, see the README), so a vector from the cache is as good as one computed now, and not always the same bits.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_embed.cache.file import OPEN_SECONDS
from edge_embed.cache.store import EmbeddingCache
from edge_embed.types import BoolArray, Encoding, Float32Array, Lora, ModelInfo

# Counted up when the engine computes something else for the same ids: older entries are then not found, and age out.
ROWS_VERSION: Final = 1


class ModelCache:
    """The cache as one model uses it: encodings to rows of float32.

    Args:
        store: where the rows are.
        settings: everything beside the token ids that a row follows from, as JSON can hold it.
        owned: whether closing this closes the store.
    """

    def __init__(self, store: EmbeddingCache, settings: dict[str, Any], *, owned: bool = False) -> None:
        self.store, self._owned, self._closed = store, owned, False
        text = json.dumps({"version": ROWS_VERSION, **settings}, sort_keys=True)
        self._digest = hashlib.blake2b(text.encode(), digest_size=32, person=b"edge-embed row")

    @classmethod
    def open(
        cls,
        cache: EmbeddingCache | str | Path | bool | None,
        info: ModelInfo,
        lora: Lora | None = None,
        **settings: Any,
    ) -> ModelCache | None:
        """What ``Embedder(cache=...)`` means: a store, its file, True for the default one; None and False are none.

        Reads the whole model file where its digest is not known yet.

        Raises:
            CacheFileError: the file is something else, or damaged.
            InvalidOptionError: another value.
            ModelFileError: the model cannot be read.
        """
        if cache is None or cache is False:
            return None
        store = cache if isinstance(cache, EmbeddingCache) else EmbeddingCache(None if cache is True else cache)
        try:
            found = {
                "model": store.digest_of(info.path),
                "lora": None if lora is None else [store.digest_of(lora.path), float(lora.scale)],
                "pooling": info.pooling,
                "causal": info.causal,
            }
        except BaseException:
            if store is not cache:
                store.close()
            raise
        return cls(store, {**found, **settings}, owned=store is not cache)

    def key(self, encoding: Encoding, width: int) -> bytes:
        """32 bytes that stand for a row of that many values."""
        digest = self._digest.copy()
        digest.update(struct.pack("<II", width, encoding.n_first))
        digest.update(encoding.token_ids.astype("<i4", copy=False).tobytes())
        return digest.digest()

    def lookup(self, encodings: Sequence[Encoding], width: int) -> Lookup:
        """What is known of those encodings."""
        return Lookup(self, encodings, width)

    def put(self, rows: dict[bytes, bytes]) -> None:
        """Keep rows, unless this was closed meanwhile: its store would be opened again, and nobody would close it."""
        if not self._closed:
            self.store.put(rows)

    def close(self) -> None:
        """Write what is left; closes the store if it was opened for this model."""
        if self._owned:
            self._closed = True
            self.store.close()
        else:
            self.store.flush(wait=OPEN_SECONDS)


class Lookup:
    """The rows of one call: some from the cache at once, the others as they are computed.

    Attributes:
        rows: float32 ``[n, width]``; those of ``missing`` hold nothing yet.
        missing: positions to compute.
    """

    def __init__(self, cache: ModelCache | None, encodings: Sequence[Encoding], width: int) -> None:
        self.rows: Float32Array = np.empty((len(encodings), width), dtype=np.float32)
        self.missing = list(range(len(encodings)))
        self._cache, self._keys = cache, [b""] * 0
        if cache is not None:
            self._keys = [cache.key(encoding, width) for encoding in encodings]
            found = cache.store.get(self._keys)
            known = {key: data for key, data in found.items() if len(data) == 4 * width}
            self.missing = [i for i, key in enumerate(self._keys) if key not in known]
            for i, key in enumerate(self._keys):
                if key in known:
                    self.rows[i] = np.frombuffer(known[key], dtype="<f4")

    @property
    def n_cached(self) -> int:
        """How many rows came from the cache."""
        return len(self.rows) - len(self.missing)

    @property
    def cached(self) -> BoolArray:
        """bool ``[n]``: which rows came from the cache."""
        found = np.ones(len(self.rows), dtype=np.bool_)
        found[self.missing] = False
        return found

    def keep(self, positions: Sequence[int], rows: Float32Array) -> None:
        """Take computed rows, ``[len(positions), width]``; those that are finite go into the cache."""
        self.rows[list(positions)] = rows
        if self._cache is not None:
            little = rows.astype("<f4", copy=False)
            finite: BoolArray = np.asarray(np.isfinite(rows).all(axis=1))
            self._cache.put(
                {self._keys[i]: row.tobytes() for i, row, ok in zip(positions, little, finite, strict=True) if ok}
            )
