"""Counters say what clients saw."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Running, fake_server

EMBED = "/v1/embeddings"


class Scraped:
    """One look at ``/metrics``."""

    def __init__(self, server: Running) -> None:
        response = httpx.get(f"{server.url}/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series that have these labels."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"edge_embed_{name}" and labels.items() <= sample.labels.items()
        ]
        assert found, name
        return sum(found)


def test_counters_are_equal_to_what_clients_saw_after_a_mixed_run() -> None:
    seen: Counter[int] = Counter()
    texts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for turn in range(10):
                name = f"{number} {turn}"
                kind = (number + turn) % 6
                if kind == 0:
                    answer = client.post(EMBED, content=b"{")
                elif kind == 1:
                    answer = client.post(EMBED, json={"input": name, "model": "no-such-model"})
                elif kind == 2:
                    answer = client.get(f"/nothing/{turn}")
                elif kind == 3:
                    answer = client.post(
                        "/v1/rerank", json={"query": name, "documents": [f"{name} {i}" for i in (1, 2)]}
                    )
                else:
                    answer = client.post(EMBED, json={"input": [f"{name} {i}" for i in range(1 + turn)]})
                remember(answer, kind)

    def remember(answer: httpx.Response, kind: int) -> None:
        with lock:
            seen[answer.status_code] += 1
            if kind > 2:
                model = "fake-reranker" if kind == 3 else "fake-embed"
                tokens[model] += answer.json()["usage"]["total_tokens"]
                texts[model] += len(answer.json()["results" if kind == 3 else "data"])

    lock = threading.Lock()
    with fake_server() as server:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        scraped = Scraped(server)
    for status, n in seen.items():
        assert scraped.sum("requests_total", status=str(status)) == n
    n_errors = seen[400] + seen[404]
    assert {200, 400, 404} == set(seen)
    assert scraped.sum("errors_total") == n_errors
    assert scraped.sum("errors_total", kind="RequestShapeError") == seen[400]
    assert scraped.sum("request_seconds_count") == sum(seen.values())
    for model in ("fake-embed", "fake-reranker"):
        assert scraped.sum("texts_total", model=model) == texts[model]
        assert scraped.sum("tokens_total", model=model) == tokens[model]
        computed = scraped.sum("computed_tokens_total", model=model) + scraped.sum("shared_tokens_total", model=model)
        assert computed == tokens[model]
        assert scraped.sum("batch_tokens_sum", model=model) == scraped.sum("computed_tokens_total", model=model)
        assert scraped.sum("batch_texts_sum", model=model) == texts[model]
        assert scraped.sum("queue_seconds_count", model=model) == scraped.sum("tokenization_seconds_count", model=model)
        assert scraped.sum("inference_seconds_count", model=model) == scraped.sum("queue_seconds_count", model=model)
        assert scraped.sum("queued_requests", model=model) == scraped.sum("queued_tokens", model=model) == 0
    assert scraped.sum("requests_under_way") == 0


def test_models_and_memory_are_looked_at_when_asked() -> None:
    with fake_server(["one-embed", "two-embed", "three-embed"], memory_limit=200, keep_alive=600) as server:
        for name in ("one-embed", "two-embed", "three-embed", "one-embed"):
            assert httpx.post(server.url + EMBED, json={"input": "x", "model": name}).status_code == 200
        scraped = Scraped(server)
    assert scraped.sum("models_loaded") == 2
    assert scraped.sum("model_memory_bytes") == 200
    assert scraped.sum("memory_limit_bytes") == 200
    assert scraped.sum("model_loads_total") == 4
    assert scraped.sum("model_evictions_total") == 2
    assert scraped.sum("build_info") == 1
    resident = [sample.value for sample in scraped.samples if sample.name == "process_resident_memory_bytes"]
    assert resident[0] > 10_000_000


def test_nobody_fills_the_counters_with_names_of_their_own() -> None:
    with fake_server() as server, httpx.Client(base_url=server.url) as client:
        for i in range(50):
            client.get(f"/path/{i}")
            client.request(f"METHOD{i}" if i % 2 else "PROPFIND", "/v1/embeddings")
            client.post(EMBED, json={"input": "x", "model": f"model-{i}"})
        client.get("/v1/models/some/name")
        scraped = Scraped(server)
    routes = {sample.labels["route"] for sample in scraped.samples if "route" in sample.labels}
    assert routes <= {"other", EMBED, "/v1/models/{model:path}", "/metrics"}
    assert len(scraped.samples) < 200
