"""How a served model is brought into memory: the model, and the scheduler that keeps it busy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_embed.embedder import Embedder
from edge_embed.progress import Progress
from edge_embed.registry import Model, Served
from edge_embed.reranker import Reranker
from edge_embed.running import Backend, compute
from edge_embed.scheduler import Scheduler
from edge_embed.server.metrics import Metrics
from edge_embed.server.settings import ModelOptions, ServerSettings


@dataclass(frozen=True, slots=True)
class ModelOpener:
    """Opens models one after another, each in the same way."""

    options: ModelOptions
    settings: ServerSettings
    metrics: Metrics

    def __call__(self, served: Served) -> tuple[Model, Scheduler]:
        """The model in memory and its scheduler. Raises as ``Embedder``."""
        model = opened(served, self.options)
        try:
            warm_up(model)
            return model, self.scheduler(served, model)
        except BaseException:
            model.close()
            raise

    def scheduler(self, served: Served, model: Model) -> Scheduler:
        """A scheduler for a model, whose batches are counted."""
        return Scheduler(
            model.backend,
            max_texts=self.settings.max_queued_texts,
            max_tokens=self.settings.max_queued_tokens,
            report=lambda report: self.metrics.batch(served.name, report),
            name=f"edge-embed {served.name}"[:60],
        )


def opened(served: Served, options: ModelOptions) -> Model:
    """The model in memory. Raises as ``Embedder``."""
    both: dict[str, Any] = {
        "n_threads": options.n_threads,
        "n_batch": options.n_batch,
        "device": options.device,
        "gpu_layers": options.gpu_layers,
        "low_memory": options.low_memory,
        "max_tokens": options.max_tokens,
        "cache": options.cache,
    }
    if served.kind == "reranker":
        return Reranker(served.path, **both)
    return Embedder(served.path, **both, kv_type=options.kv_type, deterministic=options.deterministic)


def warm_up(model: Model) -> None:
    """Run a model once, so that the first client does not wait for what a first run sets up.

    That is the first lane; others are set up by the first batches that they compute. Nothing is counted, nothing kept.
    """
    job = model.prepare([("warm", "up")]) if isinstance(model, Reranker) else model.prepare(["warm up"])
    engine = model.backend.engine
    compute(Backend(engine, model.backend.width), job.encodings, Progress("", None, "", enabled=False))
    engine.forget()  # beginnings that it holds would move the last digits of the first answers
