"""Garbage in, a documented error out, in the shape of the family that was asked; and the next request is answered."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed.server.app import DIALECTS
from edge_embed.server.endpoint import Endpoint
from edge_embed.server.families import Family
from tests.serving import QUIET, Running, fake_server

POSTS = {endpoint.path: endpoint for dialect in DIALECTS for endpoint in dialect if endpoint.body is not None}
LIMIT = 100_000
GOOD = {"input": "a text"}

# Each of these is wrong, or strange, for every route: bytes, and whether they are JSON at all.
BODIES = {
    "bad UTF-8": b'{"input": "\xff\xfe", "model": "fake-embed"}',
    "bad UTF-8 alone": b"\xff\xff\xff\xff",
    "UTF-16": '{"input": "a"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"input": "a"}',
    "deep lists": b'{"input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "deep objects": b'{"input": "a", "x": ' + b'{"x":' * 15_000 + b"1" + b"}" * 15_000 + b"}",
    "NaN": b'{"input": NaN, "query": NaN, "texts": NaN}',
    "NaN dimensions": b'{"input": "a", "dimensions": NaN}',
    "infinite": b'{"input": [Infinity, -Infinity]}',
    "1e400": b'{"input": "a", "dimensions": 1e400}',
    "a number of 5,000 digits": b'{"input": [' + b"9" * 5000 + b"]}",
    "an id beyond 64 bits": b'{"input": [18446744073709551617]}',
    "a negative id": b'{"input": [-1]}',
    "booleans": b'{"input": [true, false]}',
    "null": b'{"input": null, "query": null, "documents": null, "inputs": null}',
    "an object": b'{"input": {"text": "a"}, "model": "fake-embed"}',
    "mixed": b'{"input": ["a", 1, [2], null]}',
    "many of the wrong type": b'{"input": [' + b"0.5," * 20_000 + b"0.5]}",
    "nothing in a list": b'{"input": [], "model": "fake-embed"}',
    "an empty list of ids": b'{"input": [[]]}',
    "a lone surrogate": b'{"input": "\\ud800", "query": "\\udfff", "texts": ["\\ud800"]}',
    "a zero byte": b'{"input": "\x00"}',
    "cut off": b'{"input": "a te',
    "cut off behind a comma": b'{"input": "a",',
    "two values": b'{"input": "a"}{"input": "b"}',
    "a string": b'"input"',
    "a list": b'["input"]',
    "a number": b"17",
    "nothing": b"",
    "spaces": b"   ",
    "a form": b"input=a&model=b",
    "XML": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "the same field twice": b'{"input": "a", "input": 5, "model": 7}',
    "model of another type": b'{"input": "a", "model": ["fake-embed"]}',
    "a model's name that is a path": b'{"input": "a", "model": "../../../etc/passwd"}',
    "a model's name of 50 kB": b'{"input": "a", "model": "' + b"m" * 50_000 + b'"}',
    "dimensions of 0": b'{"input": "a", "dimensions": 0}',
    "dimensions of 2**70": b'{"input": "a", "dimensions": 1180591620717411303424}',
    "dimensions as a string": b'{"input": "a", "dimensions": "8"}',
    "too large": b'{"input": "' + b"a" * LIMIT + b'"}',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with fake_server(settings=replace(QUIET, max_body_bytes=LIMIT, body_timeout=0.5)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


def shape(value: Any) -> Any:
    """The names in an answer, without what they stand for."""
    return {name: shape(one) for name, one in value.items()} if isinstance(value, dict) else None


def family_shape(family: Family) -> Any:
    from edge_embed.errors import RequestShapeError

    return shape(family.body(RequestShapeError("x"), 400))


def check(response: httpx.Response, endpoint: Endpoint, client: httpx.Client) -> None:
    """An answer, or an error of the family's shape, and then an ordinary answer to an ordinary request."""
    assert response.status_code < 500 or response.status_code == 501, response.text
    if response.status_code >= 400 and response.status_code != 501:
        assert response.headers["content-type"] == "application/json"
        assert family_shape(endpoint.family) == shape(response.json()), response.text
        assert len(response.content) < 2000
    assert client.post("/v1/embeddings", json=GOOD).status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_every_strange_body_is_answered(path: str, client: httpx.Client) -> None:
    for name, body in BODIES.items():
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        check(response, POSTS[path], client)
        if name in ("bad UTF-8 alone", "cut off", "XML", "deep lists", "a list"):
            assert 400 <= response.status_code < 500, name
        if name == "too large":
            assert response.status_code == 413


@pytest.mark.parametrize(
    ("name", "status"),
    [
        *(
            (name, 400)
            for name in BODIES
            if name.startswith(("bad", "deep", "NaN", "infinite", "1e400", "cut", "mixed"))
        ),
        *((name, 400) for name in BODIES if name.startswith(("a number", "an id", "a negative", "booleans", "null"))),
        *((name, 400) for name in BODIES if name.startswith(("a lone", "an object", "many", "nothing", "dimensions"))),
        ("a model's name that is a path", 404),
        ("a model's name of 50 kB", 404),
        ("too large", 413),
    ],
)
def test_what_openais_clients_are_told(name: str, status: int, client: httpx.Client) -> None:
    response = client.post("/v1/embeddings", content=BODIES[name])
    assert (status, "error") == (response.status_code, *response.json()), response.text


# Anything that JSON can say, with the names that routes look for.
NAMES = ("input", "inputs", "model", "dimensions", "encoding_format", "query", "documents", "texts", "truncate",
         "prompt", "prompt_name", "input_type", "task", "instruction", "keep_alive", "options", "top_n")  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))


@given(path=st.sampled_from(sorted(POSTS)), body=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
@settings(max_examples=300)
def test_any_json_is_answered(server: Running, client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    check(client.post(path, content=json.dumps(body).encode()), POSTS[path], client)


@given(path=st.sampled_from(sorted(POSTS)), body=st.binary(max_size=200))
@settings(max_examples=150)
def test_any_bytes_are_answered(server: Running, client: httpx.Client, path: str, body: bytes) -> None:
    check(client.post(path, content=body), POSTS[path], client)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_compressed_bodies_are_not_taken(client: httpx.Client, encoding: str) -> None:
    response = client.post(
        "/v1/embeddings", content=gzip.compress(b'{"input": "a"}'), headers={"Content-Encoding": encoding}
    )
    assert response.status_code == 415
    check(response, POSTS["/v1/embeddings"], client)


def raw(server: Running, data: bytes, *, close: bool = False) -> bytes:
    """What the server says to bytes on a connection of their own, until it closes or is silent."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)
        if close:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        connection.settimeout(1.5)
        try:
            while chunk := connection.recv(65536):
                found += chunk
        except (TimeoutError, ConnectionResetError):
            pass
    return found


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"input": "a"}'


def test_chunked_bodies_are_read(server: Running) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    assert raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).startswith(b"HTTP/1.1 200")


def test_a_chunked_body_has_the_same_limit(server: Running) -> None:
    chunk = b"2710\r\n" + b"a" * 10_000 + b"\r\n"
    answer = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 12 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"Content-Length: 5\r\n", BODY, b"400"),  # cut off; and what follows is no request
        (b"Content-Length: 500\r\n", BODY, b"408"),  # the rest never comes
        (b"Content-Length: -5\r\n", BODY, b"400"),
        (b"Content-Length: five\r\n", BODY, b"400"),
        (b"Content-Length: 99999999999999999999999\r\n", BODY, b"400"),
        (b"Content-Length: 14\r\nContent-Length: 5\r\n", BODY, b"400"),
        (b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n", BODY, b"400"),  # a smuggler's favourite
        (b"Transfer-Encoding: chunked\r\n", b"xyz\r\n" + BODY, b"400"),
        (b"Transfer-Encoding: gzip\r\n", BODY, b"400"),
        (b"Content-Length: 999999999\r\n", b"", b"413"),
        (b"Expect: 100-continue\r\nContent-Length: 999999999\r\n", b"", b"413"),
    ],
)
def test_wrong_lengths(server: Running, client: httpx.Client, head: bytes, body: bytes, status: bytes) -> None:
    answer = raw(server, HEAD + head + b"\r\n" + body)
    assert status == answer[9:12], answer
    assert b'{"error":{' in answer
    assert client.post("/v1/embeddings", json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,  # TLS on a plain port
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so(server: Running, client: httpx.Client, data: bytes) -> None:
    answer = raw(server, data)
    assert answer[9:10] == b"4", answer
    assert client.post("/v1/embeddings", json=GOOD).status_code == 200


def test_a_head_without_end_is_refused(server: Running, client: httpx.Client) -> None:
    answer = raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 4000)
    assert b"431" == answer[9:12]
    assert client.post("/v1/embeddings", json=GOOD).status_code == 200


def test_a_websocket_is_not_offered(server: Running, client: httpx.Client) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    answer = raw(server, b"GET /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
    assert answer[9:12] == b"405"
    assert client.post("/v1/embeddings", json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/ui/..%2f..%2fapp.py",
             "/docs/../app.py", "/v1/models/%00", "/v1/models/%ff", "//v1/embeddings"]
)  # fmt: skip
def test_no_path_reaches_a_file(server: Running, path: str) -> None:
    answer = raw(server, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    assert answer[9:12] in (b"404", b"405")
    assert b"root:" not in answer
    assert b"import" not in answer


@pytest.mark.parametrize("path", ["/v1/nothing", "/api/nothing", "/nothing"])
def test_unknown_routes_speak_the_familys_language(client: httpx.Client, path: str) -> None:
    error = client.get(path).json()["error"]
    assert isinstance(error, str) == path.startswith("/api/")
