"""A plugin for the command ``llm``: ``llm embed -m edge-embed``, found through the entry point of that name.

``edge-embed`` is the bundled model; every model that was pulled is ``edge-embed/NAME``. ``llm`` embeds what is stored
and what is looked for in the same way, so texts get the model's default prompt, where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edge_embed.integrations import extra

with extra("llm"):
    from llm import hookimpl
    from llm.models import EmbeddingModel

NAME = "edge-embed"
BATCH = 256  # texts that llm hands over, and stores, at once


class EdgeEmbeddingModel(EmbeddingModel):
    """One model of ``llm``; it is opened when it is first used.

    Args:
        model: a name from ``edge-embed list``, or None for the bundled one.
    """

    supports_text = True
    supports_binary = False
    batch_size = BATCH

    def __init__(self, model: str | None = None) -> None:
        self.model_id = NAME if model is None else f"{NAME}/{model}"
        self._model = model

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:  # noqa: ARG002
        """Vectors of texts, in order. ``llm`` refuses bytes before; there is no key."""
        from edge_embed.integrations.base import open_embedder  # here: llm imports its plugins for every command

        vectors = open_embedder(self._model).embed([str(item) for item in items]).vectors
        yield from vectors.tolist()


@hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """The bundled model, and those that are on this machine."""
    from edge_embed.store import stored

    register(EdgeEmbeddingModel())
    for name in sorted({model.name for model in stored()}):
        register(EdgeEmbeddingModel(name))
