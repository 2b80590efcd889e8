"""Too much at once, too slow, too silent: others do not notice."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from edge_embed.cancellation import Cancellation
from edge_embed.server import connections
from edge_embed.testing import FakeEngine
from edge_embed.types import Batch, Float32Array
from tests.serving import QUIET, Running, fake_server

EMBED = "/v1/embeddings"


class GatedEngine(FakeEngine):
    """Computes only while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.begun = threading.Event()

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        self.begun.set()
        while not self.gate.wait(0.01):
            if stop is not None:
                stop.check()
        return super().decode(batch, stop)


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    found = GatedEngine()
    yield found
    found.gate.set()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.05)


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as found:
        yield found


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def is_closed(connection: socket.socket) -> bytes:
    """What still came, once the server has closed the connection."""
    found = b""
    try:
        while chunk := connection.recv(65536):
            found += chunk
    except ConnectionResetError:
        pass
    return found


def ended(server: Running, reason: str) -> float:
    value = server.gate.metrics.registry.get_sample_value("edge_embed_connections_ended_total", {"reason": reason})
    return value or 0.0


def answers(server: Running) -> None:
    assert httpx.post(server.url + EMBED, json={"input": "a"}, timeout=20).status_code == 200


# Too much at once


def test_a_full_queue_is_429_with_a_time(engine: GatedEngine) -> None:
    settings = replace(QUIET, max_queued_texts=4, max_texts=4)
    with fake_server(settings=settings, engine=engine) as server, ThreadPoolExecutor(8) as pool:
        running = pool.submit(httpx.post, server.url + EMBED, json={"input": "first"}, timeout=30)
        assert engine.begun.wait(10)
        waiting = [
            pool.submit(httpx.post, server.url + EMBED, json={"input": [f"{i}a", f"{i}b"]}, timeout=30) for i in (1, 2)
        ]
        scheduler = server.registry.loaded()[0].scheduler
        until(lambda: scheduler.depth.texts == 4)
        refused = httpx.post(server.url + EMBED, json={"input": "one more"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        ollama = httpx.post(server.url + "/api/embed", json={"model": "fake-embed", "input": "x"})
        assert ollama.status_code == 503
        assert int(ollama.headers["retry-after"]) >= 1
        engine.gate.set()
        assert [200] * 3 == [one.result().status_code for one in (running, *waiting)]
        answers(server)


def test_too_many_requests_at_once_are_429(engine: GatedEngine) -> None:
    with fake_server(settings=replace(QUIET, max_requests=3), engine=engine) as server, ThreadPoolExecutor(4) as pool:
        running = [pool.submit(httpx.post, server.url + EMBED, json={"input": str(i)}, timeout=30) for i in range(3)]
        until(lambda: server.gate.under_way == 3)
        refused = httpx.post(server.url + EMBED, json={"input": "x"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert httpx.get(server.url + "/health").status_code == 200  # whatever else is asked
        assert "edge_embed_requests_under_way 3.0" in httpx.get(server.url + "/metrics").text
        engine.gate.set()
        assert [200] * 3 == [one.result().status_code for one in running]
        assert server.gate.under_way == 0


@pytest.mark.parametrize(
    ("settings", "body"),
    [
        (replace(QUIET, max_body_bytes=1000), {"input": "a" * 1000}),
        (replace(QUIET, max_texts=3), {"input": ["a"] * 4}),
        (replace(QUIET, max_request_tokens=10), {"input": ["abcd", "efgh"]}),
    ],
)
def test_too_large_a_request_is_413(settings: object, body: dict[str, object]) -> None:
    with fake_server(settings=settings) as server:  # type: ignore[arg-type]
        refused = httpx.post(server.url + EMBED, json=body)
        assert refused.status_code == 413
        assert "limit" in refused.text or "more than" in refused.text
        answers(server)


def test_many_large_bodies_have_bounded_room(engine: GatedEngine) -> None:
    """Bodies on their way hold memory before their requests are accepted; that, too, has an end."""
    with fake_server(settings=replace(QUIET, max_body_bytes=1000), engine=engine) as server:
        engine.gate.set()
        waiting = []
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        for _ in range(8):
            connection = connected(server)
            waiting.append(connection)
            connection.__enter__().sendall(head + b" " * 999)
        until(lambda: server.gate.room.taken == 8 * 999)
        refused = httpx.post(server.url + EMBED, json={"input": "a" * 100})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        for connection in waiting:
            connection.__exit__(None, None, None)
        until(lambda: server.gate.room.taken == 0)
        answers(server)


def test_a_deadline_is_504_and_frees_its_place(engine: GatedEngine) -> None:
    with fake_server(settings=replace(QUIET, timeout=0.2), engine=engine) as server:
        late = httpx.post(server.url + EMBED, json={"input": "x"}, timeout=30)
        assert late.status_code == 504
        engine.gate.set()
        answers(server)
        assert server.registry.loaded()[0].scheduler.depth.texts == 0


def test_a_client_that_leaves_makes_room(engine: GatedEngine) -> None:
    with fake_server(engine=engine) as server:
        with connected(server) as connection:
            body = b'{"input": ["a", "b"]}'
            connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                               % (EMBED.encode(), len(body), body))  # fmt: skip
            until(lambda: server.gate.under_way == 1)
        until(lambda: server.gate.under_way == 0)
        left = {"route": EMBED, "kind": "ClientLeft"}
        assert server.gate.metrics.registry.get_sample_value("edge_embed_errors_total", left) == 1
        engine.gate.set()
        answers(server)


# Too slow, too silent


def test_a_connection_that_says_nothing_is_closed() -> None:
    with fake_server(settings=replace(QUIET, header_timeout=0.3)) as server, connected(server) as silent:
        assert is_closed(silent) == b""
        assert ended(server, "no head") == 1
        answers(server)


def test_half_a_head_is_closed_and_drops_do_not_help() -> None:
    with fake_server(settings=replace(QUIET, header_timeout=0.4)) as server, connected(server) as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(1000):
            try:
                slow.sendall(b"X")
            except OSError:  # reset, or a broken pipe
                break
            time.sleep(0.02)
        assert ended(server, "no head") == 1
        answers(server)


def test_half_a_second_head_on_a_kept_connection_is_closed_as_well() -> None:
    with fake_server(settings=replace(QUIET, header_timeout=0.3)) as server, connected(server) as kept:
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)  # idle is no crime
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET /hea")
        is_closed(kept)
        assert ended(server, "no head") == 1


def test_an_idle_connection_is_closed_after_its_time() -> None:
    with fake_server(settings=replace(QUIET, idle_timeout=0.3)) as server, connected(server) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert is_closed(idle).startswith(b"HTTP/1.1 200")
        assert ended(server, "idle") == 1


def test_a_body_that_trickles_is_408() -> None:
    with fake_server(settings=replace(QUIET, body_timeout=0.4)) as server, connected(server) as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n")
        for _ in range(100):
            slow.sendall(b" ")
            time.sleep(0.02)
            slow.settimeout(0.001)
            try:
                answer = slow.recv(4096)
                break
            except TimeoutError:
                slow.settimeout(20)
        assert answer.startswith(b"HTTP/1.1 408")
        assert server.gate.room.taken == 0
        answers(server)


def test_the_rest_of_a_refused_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_REST_SECONDS", 0.3)
    with fake_server(settings=replace(QUIET, max_body_bytes=1000)) as server, connected(server) as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert is_closed(slow).startswith(b"HTTP/1.1 413")
        assert ended(server, "rest of a body") == 1


def test_a_large_refused_body_can_be_sent_whole_and_the_answer_is_read() -> None:
    """The connection is not cut under a client that writes before it reads, and serves the next request."""
    with fake_server(settings=replace(QUIET, max_body_bytes=1000)) as server, httpx.Client() as client:
        assert client.post(server.url + EMBED, content=b"a" * 5_000_000).status_code == 413
        assert client.post(server.url + EMBED, json={"input": "a"}).status_code == 200
        assert server.gate.metrics.registry.get_sample_value("edge_embed_connections") == 1


def test_a_client_that_never_reads_is_ended() -> None:
    """Its answers lie in memory until then, and no request of its own holds a place."""
    settings = replace(QUIET, idle_timeout=0.5)
    with fake_server(settings=settings, engine=FakeEngine(n_embd=2048)) as server, connected(server) as deaf:
        body = json.dumps({"input": ["a" * 20] * 2000}).encode()  # 16 MB of zeros, more than the system keeps
        request = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        deaf.sendall(request + body)
        until(lambda: ended(server, "does not read") == 1)
        until(lambda: server.gate.under_way == 0)
        answers(server)


def test_a_connection_too_many_takes_the_place_of_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_OLD_SECONDS", 0.0)
    with fake_server(settings=replace(QUIET, max_connections=3)) as server:
        silent = [connected(server) for _ in range(3)]
        open_ones = [one.__enter__() for one in silent]
        until(lambda: server.gate.metrics.registry.get_sample_value("edge_embed_connections") == 3)
        answers(server)
        assert is_closed(open_ones[0]) == b""
        assert ended(server, "crowded out") == 1
        for one in silent:
            one.__exit__(None, None, None)


def test_a_connection_too_many_is_503_where_all_are_busy(engine: GatedEngine) -> None:
    with fake_server(settings=replace(QUIET, max_connections=2), engine=engine) as server, ThreadPoolExecutor() as pool:
        running = [pool.submit(httpx.post, server.url + EMBED, json={"input": str(i)}, timeout=30) for i in range(2)]
        until(lambda: server.gate.under_way == 2)
        refused = httpx.get(server.url + "/health")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["type"] == "service_unavailable_error"
        engine.gate.set()
        assert [200] * 2 == [one.result().status_code for one in running]


def test_a_hundred_silent_connections_do_not_slow_anybody() -> None:
    with fake_server(settings=replace(QUIET, header_timeout=5)) as server:
        silent = [connected(server) for _ in range(100)]
        for i, one in enumerate(silent):
            one.__enter__().sendall(
                [b"", b"POST /v1/emb", b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"][i % 3]
            )
        for _ in range(5):
            answers(server)
        assert server.gate.under_way == 0
        for one in silent:
            one.__exit__(None, None, None)
