"""A model run over texts, framed as it will see them: to measure an importance matrix, or what other types cost.

The converter's way to the running model; it crosses to the engine inside functions. Each text is computed as a query
and as a document, with the model's own prompts, tokenizer and EDS token; once where the model does not tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array

from .texts import TEXTS

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.engine.observe import Observer

_AT_ONCE = 32  # texts between two reports of progress

Framing = Literal["query", "document"]
Tick = Callable[[int, int], None]
"""Called with (texts done, texts in all)."""


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

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the texts have in every framing; nothing is computed."""
        prefixes = [self.embedder.prompt_of(framing) for framing in self.framings]
        return sum(len(self.embedder.tokenize(prefix + text).token_ids) for prefix in prefixes for text in texts)

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
