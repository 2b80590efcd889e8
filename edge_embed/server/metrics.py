"""What a server counts, for Prometheus. One registry of its own for each server, none of the process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from edge_embed import __version__
from edge_embed.registry import Loaded, Registry
from edge_embed.scheduler import BatchReport
from edge_embed.types import Usage

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768)


class Metrics:
    """Counters of one server. Methods may be called on any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._requests = Counter(
            "edge_embed_requests", "Requests that were answered.", ["route", "method", "status"], registry=r
        )
        self._errors = Counter(
            "edge_embed_errors",
            "Requests that were answered with an error, by its kind.",
            ["route", "kind"],
            registry=r,
        )
        self._seconds = Histogram(
            "edge_embed_request_seconds", "From the last byte of a body to the first of the answer.", ["route"],
            buckets=_SECONDS, registry=r,
        )  # fmt: skip
        self._under_way = Gauge("edge_embed_requests_under_way", "Requests being answered.", registry=r)
        self._connections = Gauge("edge_embed_connections", "Connections that are open.", registry=r)
        self._ended = Counter(
            "edge_embed_connections_ended", "Connections that the server ended, by the reason.", ["reason"], registry=r
        )
        Info("edge_embed_build", "The program.", registry=r).info({"version": __version__})
        ProcessCollector(registry=r)  # resident memory, processor time, open files
        self._tokenization = _histogram("tokenization_seconds", "Texts to token ids, of a request.", _SECONDS, r)
        self._queue = _histogram("queue_seconds", "Waiting for the model, of a request.", _SECONDS, r)
        self._inference = _histogram(
            "inference_seconds", "From first to last text computed, of a request.", _SECONDS, r
        )
        self._batch_seconds = _histogram("batch_seconds", "Computing one batch.", _SECONDS, r)
        self._batch_tokens = _histogram("batch_tokens", "Tokens of a batch.", _COUNTS, r)
        self._batch_texts = _histogram("batch_texts", "Texts of a batch.", _COUNTS, r)
        self._texts = _counter("texts", "Texts that were answered.", r)
        self._tokens = _counter("tokens", "Tokens of the texts that were answered.", r)
        self._computed_tokens = _counter("computed_tokens", "Tokens that the model ran on.", r)
        self._shared_tokens = _counter("shared_tokens", "Tokens that were computed for another text already.", r)
        self._cached = _counter("cached_texts", "Texts whose vectors the cache had.", r)
        self._truncated = _counter("truncated_texts", "Texts that lost tokens.", r)

    # What is looked at when somebody asks

    def count_models(self, registry: Registry) -> None:
        """Say what is in memory and what waits there, as it is when somebody asks."""
        self.registry.register(_Models(registry))

    def count_connections(self, connections: Collection[Any]) -> None:
        """Say how many there are."""
        self._connections.set_function(lambda: len(connections))

    # What happens

    def connection_ended(self, reason: str) -> None:
        """The server closed a connection that waited too long, or was one too many."""
        self._ended.labels(reason).inc()

    def began(self) -> None:
        """A request is accepted."""
        self._under_way.inc()

    def ended(self) -> None:
        """A request is over, in whatever way."""
        self._under_way.dec()

    def replied(self, route: str, method: str, status: int, seconds: float, kind: str | None) -> None:
        """An answer was sent; ``kind`` is the error's class, None for a good one."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if kind is not None:
            self._errors.labels(route, kind).inc()

    def tokenized(self, model: str, seconds: float) -> None:
        """A request's texts have become ids."""
        self._tokenization.labels(model).observe(seconds)

    def computed(self, model: str, queue_seconds: float, inference_seconds: float) -> None:
        """A request's rows are there."""
        self._queue.labels(model).observe(queue_seconds)
        self._inference.labels(model).observe(inference_seconds)

    def answered(self, model: str, usage: Usage) -> None:
        """A request's result is there."""
        self._texts.labels(model).inc(usage.n_texts)
        self._tokens.labels(model).inc(usage.n_tokens)
        self._cached.labels(model).inc(usage.n_cached)
        self._truncated.labels(model).inc(usage.n_truncated)

    def batch(self, model: str, report: BatchReport) -> None:
        """A batch was computed."""
        self._batch_seconds.labels(model).observe(report.seconds)
        self._batch_tokens.labels(model).observe(report.n_computed)
        self._batch_texts.labels(model).observe(report.n_texts)
        self._computed_tokens.labels(model).inc(report.n_computed)
        self._shared_tokens.labels(model).inc(report.n_tokens - report.n_computed)

    def totals(self) -> tuple[int, int]:
        """Texts and tokens so far: those that went through models, batch by batch, and those that the cache had."""
        texts = _sum(self._batch_texts, "_sum") + _sum(self._cached, "_total")
        tokens = _sum(self._computed_tokens, "_total") + _sum(self._shared_tokens, "_total")
        return int(texts), int(tokens)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class _Models(Collector):
    """Figures of a registry, none of them kept twice."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        registry = self._registry
        loaded = registry.loaded()
        yield _gauge("models_loaded", "Models in memory.", [((), len(loaded))])
        yield _gauge(
            "model_memory_bytes", "What a model takes by plan.", [((_name(one),), one.memory_bytes) for one in loaded]
        )
        for what in ("requests", "texts", "tokens"):
            depths = [((_name(one),), getattr(one.scheduler.depth, what)) for one in loaded]
            yield _gauge(f"queued_{what}", f"{what.capitalize()} that wait for a model.", depths)
        if registry.memory_limit is not None:
            limit = [((), registry.memory_limit)]
            yield _gauge("memory_limit_bytes", "What loaded models may take together.", limit)
        loads = CounterMetricFamily("edge_embed_model_loads", "Times that a model was loaded.")
        loads.add_metric((), registry.loads)
        yield loads
        evictions = CounterMetricFamily("edge_embed_model_evictions", "Times that one had to make room for another.")
        evictions.add_metric((), registry.evictions)
        yield evictions


def _name(loaded: Loaded) -> str:
    return loaded.served.name


def _gauge(name: str, text: str, values: Sequence[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    labels = ["model"] if name not in ("models_loaded", "memory_limit_bytes") else []
    family = GaugeMetricFamily(f"edge_embed_{name}", text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family


def _counter(name: str, text: str, registry: CollectorRegistry) -> Counter:
    return Counter(f"edge_embed_{name}", text, ["model"], registry=registry)


def _histogram(name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"edge_embed_{name}", text, ["model"], buckets=buckets, registry=registry)


def _sum(metric: Counter | Histogram, suffix: str) -> float:
    """A counter's total, or a histogram's sum, over all models."""
    return sum(sample.value for family in metric.collect() for sample in family.samples if sample.name.endswith(suffix))
