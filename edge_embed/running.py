"""What embedding and reranking share: a model opened with its tokenizer, and encodings through its engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from edge_embed.batching import pack
from edge_embed.cache import Lookup, ModelCache
from edge_embed.cancellation import Cancellation
from edge_embed.errors import InvalidOptionError
from edge_embed.gguf_header import GgufHeader
from edge_embed.progress import Progress
from edge_embed.together import decode_all, packed
from edge_embed.tokenizer import Tokenizer, tokenizer_of
from edge_embed.types import Encoding, Engine, Float32Array, KvType, Lora, ModelInfo


class EngineOptions(TypedDict, total=False):
    """How a model is run; see ``engine.llama.LlamaEngine``."""

    n_threads: int | None
    n_batch: int | None
    device: str | None
    gpu_layers: int | None
    low_memory: bool
    lora: Lora | None
    kv_type: KvType
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Backend:
    """What computes a row of numbers for each encoding: raw pooled vectors, or the logits of pairs.

    Attributes:
        engine: the model.
        width: values of a row.
        cache: rows that were computed before, or None.
    """

    engine: Engine
    width: int
    cache: ModelCache | None = None

    @property
    def device(self) -> str:
        """Where it is computed: ``cpu``, ``cuda:0``, ..."""
        return str(getattr(self.engine, "device", "cpu"))

    def close(self) -> None:
        """Free the model, and write what the cache has to write."""
        self.engine.close()
        if self.cache is not None:
            self.cache.close()


def adapter_of(path: str | Path | None, scale: float) -> Lora | None:
    """The adapter that a caller names, if any.

    Raises:
        InvalidOptionError: a scale of no adapter.
    """
    if path is not None:
        return Lora(str(path), scale)
    if scale != 1.0:
        raise InvalidOptionError(f"lora_scale is {scale!r}, and there is no lora", hint="name the adapter's file")
    return None


def open_model(header: GgufHeader, info: ModelInfo, options: EngineOptions) -> tuple[Engine, Tokenizer]:
    """The engine and the tokenizer of a file. The caller closes the engine.

    Raises:
        ModelFileError: the engine refuses the file, or its vocabulary cannot be used.
        EngineUnavailableError, EngineMemoryError: the machine.
        InvalidOptionError: an option outside its range.
    """
    from edge_embed.engine import bindings, placement, tune
    from edge_embed.engine.llama import LlamaEngine
    from edge_embed.engine.probe import probe

    arguments = tune.arguments(info, options)
    library = bindings.load().library
    asked = placement.wanted(arguments.get("device"), arguments.get("gpu_layers"), placement.here())
    found = probe(info, library, device=asked.device, low_memory=arguments.get("low_memory", False))
    if found.device_problem:
        placement.say(f"{placement.give_up(asked, info, found.device_problem).note}: the CPU does")
        arguments.update(device=placement.CPU, gpu_layers=None)
    repacks = found.use_extra_bufts and arguments.get("use_extra_bufts", True)
    engine = LlamaEngine(info, **{**arguments, "use_extra_bufts": repacks})
    try:
        return engine, tokenizer_of(info, header.metadata, engine.tokenize)
    except BaseException:
        engine.close()
        raise


def compute(
    backend: Backend, encodings: Sequence[Encoding], progress: Progress, stop: Cancellation | None = None
) -> Lookup:
    """Rows for encodings, float32 ``[n, width]``, in their order; those that the cache has are not run."""
    engine = backend.engine
    found = Lookup(backend.cache, encodings, backend.width)
    progress.advance(found.n_cached)
    missing = [encodings[i] for i in found.missing]
    for batch, rows in decode_all(engine, packed(missing, engine.limits), stop):
        found.keep([found.missing[i] for i in batch.indices], rows)
        progress.advance(batch.n_seqs)
    return found


def compute_tokens(
    engine: Engine, encodings: Sequence[Encoding], progress: Progress, stop: Cancellation | None = None
) -> list[Float32Array]:
    """The engine's vectors of every token, float32 ``[n_tokens, n_embd]`` for each encoding, in their order."""
    limits = engine.limits
    found: list[Float32Array] = [np.empty((0, engine.n_embd), dtype=np.float32)] * len(encodings)
    for batch in pack(encodings, n_batch=limits.n_batch, n_seq_max=limits.n_seq_max):
        rows = np.split(engine.decode_tokens(batch, stop), np.cumsum(batch.lengths)[:-1])
        for index, vectors in zip(batch.indices, rows, strict=True):
            found[index] = vectors
        progress.advance(batch.n_seqs)
    return found
