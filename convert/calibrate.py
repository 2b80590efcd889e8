"""A model run over texts, framed as it will see them: to measure an importance matrix, or what other types cost.

The converter's way to the running model; it crosses to the engine inside functions. Each text is computed as a query
and as a document, with the model's own prompts, tokenizer and EDS token; once where the model does not tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array

from .calibration_texts import TEXTS
from .imatrix import Columns, ImportanceMatrix, write_imatrix

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.engine.observe import Observer

_AT_ONCE = 32  # texts between two reports of progress

Framing = Literal["query", "document"]
Tick = Callable[[int, int], None]
"""Called with (texts done, texts in all)."""


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What a calibration did.

    Attributes:
        path: the importance matrix.
        name: the model's name.
        n_texts: texts computed, each counted once for each framing.
        n_tokens: tokens computed.
        framings: how they were framed, e.g. ``("query", "document")``.
        n_matrices: weight matrices that were measured.
    """

    path: Path
    name: str
    n_texts: int
    n_tokens: int
    framings: tuple[str, ...]
    n_matrices: int


class ObservedModel:
    """A model with an observer in its graph; ``close()`` (or ``with``) frees it."""

    def __init__(self, model: Path, observer: Observer, *, mmap: bool = True, threads: int | None = None) -> None:
        """Load it.

        Raises:
            ModelError, EngineError: as ``Embedder`` does.
        """
        from edge_embed.embedder import Embedder
        from edge_embed.engine.llama import LlamaEngine
        from edge_embed.gguf_header import read_header
        from edge_embed.model_info import read_model_info, require_embeddings
        from edge_embed.tokenizer import tokenizer_of

        header = read_header(model)
        info = read_model_info(header)
        require_embeddings(info)
        self._observer = observer
        # The weights must lie where the callback finds them, in the layout of their type: on the CPU, not repacked.
        engine = LlamaEngine(info, n_threads=threads, use_extra_bufts=False, gpu_layers=0, observer=observer, mmap=mmap)
        try:
            self.embedder = Embedder.from_parts(info, engine, tokenizer_of(info, header.metadata, engine.tokenize))
        except BaseException:
            engine.close()
            raise
        self.framings = framings(self.embedder)

    def vectors(self, texts: Sequence[str], tick: Tick | None = None) -> tuple[Float32Array, int]:
        """Unit vectors of the texts in every framing, ``[n_framings * n, d]``, and the tokens computed."""
        parts, n_tokens, done = [], 0, 0
        for framing in self.framings:
            for start in range(0, len(texts), _AT_ONCE):
                some = texts[start : start + _AT_ONCE]
                result = framed(self.embedder, some, framing)
                self._observer.raise_if_failed()
                parts.append(result.vectors)
                n_tokens += result.usage.n_tokens
                done += len(some)
                if tick is not None:
                    tick(done, len(texts) * len(self.framings))
        return np.concatenate(parts), n_tokens

    def close(self) -> None:
        self.embedder.close()

    def __enter__(self) -> ObservedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def framings(embedder: Embedder) -> tuple[Framing, ...]:
    """The prompts under which the model sees texts: ``query`` and ``document`` where it tells them apart."""
    return ("document",) if embedder.prompt_of("query") == embedder.prompt_of("document") else ("query", "document")


def framed(embedder: Embedder, texts: Sequence[str], framing: Framing) -> Any:
    """The EmbedResult of texts as queries or as documents, as ``encode_query`` and ``encode_document`` frame them."""
    return embedder.embed(texts, role=framing, normalize=True)


def texts_or_default(texts: Iterable[str] | None) -> list[str]:
    """The distinct texts that are not blank, in order; the built-in ones for None.

    Raises:
        InvalidOptionError: there are none.
    """
    found = list(TEXTS) if texts is None else list(dict.fromkeys(text for text in texts if text.strip()))
    if not found:
        raise InvalidOptionError("there are no texts to calibrate with", hint="a few hundred of your own are best")
    return found


def calibrate(
    model: Path | str,
    texts: Iterable[str] | None,
    output: Path | str,
    *,
    dataset: str = "built-in",
    threads: int | None = None,
    tick: Tick | None = None,
) -> CalibrationReport:
    """Measure an importance matrix and write it.

    Args:
        model: a GGUF; F32, F16 or BF16 measures the model itself, a quantized one its approximation.
        texts: such as the model will see; identical and blank ones are left out. The built-in ones for None.
        output: the file to write, whole or not at all.
        dataset: what the texts are called in it.
        threads: CPU threads; the usable physical cores by default.
        tick: called as texts are done.

    Raises:
        ModelError, EngineError: the model cannot be run.
        InvalidOptionError: there are no texts.
        OutputFileError: the file cannot be written.
    """
    from edge_embed.engine.observe import InputObserver

    chosen = texts_or_default(texts)
    observer = InputObserver()
    with ObservedModel(Path(model), observer, threads=threads) as observed:
        _, n_tokens = observed.vectors(chosen, tick)
        name, used = observed.embedder.info.name, observed.framings
    n_texts = len(chosen) * len(used)
    columns = {
        name: Columns(inputs.sums.astype(np.float32), float(inputs.count))
        for name, inputs in sorted(observer.inputs.items())
    }
    # llama.cpp cuts its text into chunks of equal length; ours are whole texts, so the length is their mean.
    matrix = ImportanceMatrix(Path(output).name, columns, (dataset,), n_texts, max(1, round(n_tokens / n_texts)))
    write_imatrix(Path(output), matrix)
    return CalibrationReport(Path(output), name, n_texts, n_tokens, used, len(columns))
