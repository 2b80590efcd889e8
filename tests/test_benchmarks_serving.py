"""What the server's benchmarks rest on: clients that lose nothing, and checks that notice what is wrong."""

from __future__ import annotations

import argparse
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks import serve_load, serve_soak
from benchmarks.http_load import Driven, LoadError, drive, request
from benchmarks.serve_load import Row, Scenario
from edge_embed.testing import fake_embedder
from tests.serving import fake_server


def test_every_request_is_answered_with_its_own_body() -> None:
    texts = [f"text number {i}" for i in range(40)]
    requests = [request("/v1/embeddings", {"input": [text]}) for text in texts]
    with fake_server() as running, fake_embedder() as embedder:
        found = drive(int(running.url.rpartition(":")[2]), requests, 7, keep=True)
        expected = embedder.encode(texts)
    assert len(found.latencies) == 40
    assert min(found.latencies) > 0
    rows = [json.loads(body)["data"][0]["embedding"] for body in found.bodies]
    assert np.array_equal(np.array(rows, dtype=np.float32), expected)


def test_an_answer_that_is_an_error_ends_the_measurement() -> None:
    with fake_server() as running, pytest.raises(LoadError, match="not served here"):
        drive(int(running.url.rpartition(":")[2]), [request("/v1/embeddings", {"input": "x", "model": "no"})], 1)


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A server with an answer for each connection, which it closes then; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                with listening.accept()[0] as connection:
                    connection.recv(10_000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def test_a_connection_that_ends_is_made_again() -> None:
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
    with answering(last + b"{}", b"", last + b"[]") as port:
        found = drive(port, [request("/", {})] * 2, 1, keep=True)
    assert found.bodies == [b"{}", b"[]"]
    assert found.reconnects == 1, "the announced end is none"


def test_half_an_answer_is_none() -> None:
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf") as port,
        pytest.raises(LoadError, match="closed the connection"),
    ):
        drive(port, [request("/", {})], 1)


def test_percentiles_ratios_and_goals(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = Row("ours"), Row("theirs")
    for seconds, latencies in ((1.0, [0.001, 0.003]), (2.0, [0.002, 0.004])):
        ours.rounds.append(Driven(seconds, latencies))
        theirs.rounds.append(Driven(3 * seconds, [4 * one for one in latencies]))
    assert [ours.percentile(share) for share in (0.01, 0.5, 0.75, 0.99)] == [1.0, 2.0, 3.0, 4.0]
    assert serve_load._ratios(ours, theirs) == (3.0, 3.0, 3.0)
    assert serve_load._goals(Scenario("x", 1, 1, 2, faster=3.0, p50=1.0, p99=0.5), ours, theirs)
    assert not serve_load._goals(Scenario("x", 1, 1, 2, faster=3.1), ours, theirs)
    assert not serve_load._goals(Scenario("x", 1, 1, 2, p99=0.1), ours, theirs)
    assert capsys.readouterr().out.count("NOT MET") == 2
    assert "| theirs | 0 | **3.00**, 3.00 to 3.00 | 8.0 | 16.0 |" in serve_load._table(
        Scenario("x", 1, 1, 2), [ours, theirs]
    )


def test_the_soak_notices_a_swapped_vector_and_a_wrong_count() -> None:
    texts = ["one", "another", "a third"]
    with fake_embedder() as embedder:
        found = [[embedder.embed(texts, prompt=p, truncate_dim=d) for d in (None, 8)] for p in serve_soak.PROMPTS]
    vectors = [{None: whole.vectors, 8: cut.vectors} for whole, cut in found]
    pool = serve_soak.Pool(texts, vectors, [whole.n_tokens for whole, _ in found], 0.0)

    def answer(*rows: int, n_tokens: int | None = None) -> bytes:
        data = [{"index": i, "embedding": found[1][0].vectors[row].tolist()} for i, row in enumerate(rows)]
        n_tokens = int(found[1][0].n_tokens[list(rows)].sum()) if n_tokens is None else n_tokens
        return json.dumps({"data": data, "usage": {"prompt_tokens": n_tokens}}).encode()

    assert pool.wrong(answer(2, 0), [2, 0], 1, None) == ""
    assert "differ" in pool.wrong(answer(0, 2), [2, 0], 1, None)
    assert "expected (2, 8)" in pool.wrong(answer(2, 0), [2, 0], 1, 8)
    assert "vectors for 2 texts" in pool.wrong(answer(2), [2, 0], 1, None)
    assert "number of tokens" in pool.wrong(answer(2, 0, n_tokens=1), [2, 0], 1, None)


def test_memory_that_grows_is_told_from_memory_that_moves() -> None:
    moves, grows = [100.0, 140.0] * 100, [100.0 + i for i in range(200)]
    assert serve_soak.memory(moves, 50)[1]
    assert not serve_soak.memory(grows, 50)[1]


def test_a_short_soak_of_the_bundled_model(capsys: pytest.CaptureFixture[str]) -> None:
    """All of it but its length: loads, bad clients, counters, SIGTERM."""
    texts = [f"text {i} of a small pool" for i in range(300)]
    options = argparse.Namespace(
        model=serve_soak.resolve(None), threads=1, tolerance=0.0, limit_mb=1000, clients=3, minutes=0.05
    )
    checks = serve_soak.soak(texts, options)
    assert [check for check in checks if not check[1] and check[0] != "models came and went"] == []
