"""What the plugs have in common: one model, opened once, asked for queries and for documents."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from edge_embed.embedder import Embedder
from edge_embed.errors import InvalidOptionError
from edge_embed.reranker import Reranker

_Model = TypeVar("_Model", Embedder, Reranker)
# Models that plugs were given by name, as long as one of them uses it: a pipeline's parts load their model once.
_EMBEDDERS: Final[WeakValueDictionary[str, Embedder]] = WeakValueDictionary()
_RERANKERS: Final[WeakValueDictionary[str, Reranker]] = WeakValueDictionary()
_OPENING: Final = threading.Lock()


def open_embedder(model: Embedder | str | Path | None) -> Embedder:
    """The embedder itself, or the one that is open under that name or file; errors as of ``Embedder``."""
    return model if isinstance(model, Embedder) else _opened(_EMBEDDERS, model, Embedder)


def open_reranker(model: Reranker | str | Path) -> Reranker:
    """Likewise; errors as of ``Reranker``."""
    return model if isinstance(model, Reranker) else _opened(_RERANKERS, model, Reranker)


def _opened(
    known: WeakValueDictionary[str, _Model], model: str | Path | None, opening: Callable[..., _Model]
) -> _Model:
    key = "" if model is None else str(model)
    with _OPENING:
        found = known.get(key)
        if found is None or found.backend.engine.closed:
            found = known[key] = opening(model)
        return found


def model_name(model: Embedder | Reranker | str | Path | None) -> str | None:
    """What to write down, so that the same model can be opened again: the name or file that was given.

    Raises:
        InvalidOptionError: a model that was opened by the caller, which may have settings that no name carries.
    """
    if isinstance(model, (Embedder, Reranker)):
        raise InvalidOptionError(
            f"{model!r} was opened by the program, and cannot be written down to be opened again",
            hint="give the model by its name or file",
        )
    return None if model is None else str(model)


class Vectors:
    """An embedding model as libraries ask for it: lists of numbers, for queries or for documents.

    A plug that takes these arguments and no others is a subclass, so that its signature shows them.

    Args:
        model: an open Embedder, a GGUF file or a name from ``edge-embed list``; the bundled model by default.
        instruction: what queries look for, for a model that takes instructions; its own prompt for queries by default.
        truncate_dim: values kept of each vector (MRL); all by default.

    Raises:
        EdgeEmbedError: what the model or these options are refused for, now and not at the first call.
    """

    def __init__(
        self,
        model: Embedder | str | Path | None = None,
        *,
        instruction: str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self.embedder = open_embedder(model)
        self._model, self._instruction, self._truncate_dim = model, instruction, truncate_dim
        self.embedder.prepare([], role="query", instruction=instruction, truncate_dim=truncate_dim)

    def settings(self) -> dict[str, Any]:
        """The arguments, to be written down; InvalidOptionError for a model that was opened by the program."""
        return {
            "model": model_name(self._model),
            "instruction": self._instruction,
            "truncate_dim": self._truncate_dim,
        }

    @property
    def dimensions(self) -> int:
        """Values of each vector."""
        return self._truncate_dim or self.embedder.truncate_dim or self.embedder.info.n_embd

    def queries(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of what is looked for, in order."""
        found = self.embedder.embed(
            texts, role="query", instruction=self._instruction, truncate_dim=self._truncate_dim
        ).vectors
        return list(found.tolist())

    def query(self, text: str) -> list[float]:
        """The vector of one query."""
        return self.queries([text])[0]

    def documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Vectors of what is to be found, in order."""
        return list(self.embedder.embed(texts, role="document", truncate_dim=self._truncate_dim).vectors.tolist())
