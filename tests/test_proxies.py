"""The examples of proxies in front of replicas agree with the server that they stand for, and do what they say they do.

The latter is tried with the real nginx and Caddy: ``make test-proxies``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.server.settings import DEFAULT_PORT, ServerSettings
from tests.commands import free_port
from tests.serving import real_server

EXAMPLES = Path(__file__).parent.parent / "examples"
NGINX, CADDY = ((EXAMPLES / name).read_text(encoding="utf-8") for name in ("nginx.conf", "Caddyfile"))
KINDS = ("nginx", "caddy")
EMBED = "/v1/embeddings"


def number(pattern: str) -> int:
    (found,) = re.findall(pattern, NGINX)
    return int(found)


def test_nginx_waits_as_long_and_takes_as_much_as_the_server() -> None:
    assert number(r"proxy_read_timeout (\d+)s;") > ServerSettings().timeout
    assert number(r"client_max_body_size (\d+)m;") * 2**20 >= ServerSettings().max_body_bytes


def test_the_replicas_are_where_the_server_listens() -> None:
    for text in (NGINX, CADDY):
        ports = {int(port) for port in re.findall(r"10\.0\.0\.1\d:(\d+)", text)}
        assert ports == {DEFAULT_PORT}
        assert "least_conn" in text


def program(name: str) -> str:
    """Where one is, or a failure that says how to get it."""
    unpacked = EXAMPLES.parent / ".cache/proxies" / name
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", f"{unpacked}/usr/sbin", f"{unpacked}/usr/bin"])
    found = os.environ.get(f"EDGE_EMBED_{name.upper()}") or shutil.which(name, path=path)
    assert found, f"no {name}: `make test-proxies` fetches it on Debian; else EDGE_EMBED_{name.upper()} names it"
    return found


def configured(kind: str, folder: Path, port: int, replicas: tuple[str, str]) -> list[str]:
    """The command that runs an example as it is, but for the addresses; its files lie in a folder."""
    first, second = (url.removeprefix("http://") for url in replicas)
    text = {"nginx": NGINX, "caddy": CADDY}[kind]
    text = text.replace(f"10.0.0.11:{DEFAULT_PORT}", first).replace(f"10.0.0.12:{DEFAULT_PORT}", second)
    assert "10.0.0." not in text
    if kind == "caddy":
        text = text.replace(":8080 {", f"http://127.0.0.1:{port} {{")
        assert str(port) in text
        (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tstorage file_system {folder}\n}}\n{text}")
        return [program(kind), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    assert str(port) in text
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n".join(f"{name}_temp_path {folder}/{name};" for name in places)
    user = "user root;\n" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{folders}\n{text}\n}}\n"
    )
    return [program(kind), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


Proxy = Callable[[str, str], str]


@pytest.fixture(params=KINDS)
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    """``proxy(one, other)``: the example in front of two replicas, the real program; its address."""
    with ExitStack() as stack:

        def start(*replicas: str) -> str:
            port = free_port()
            assert len(replicas) == 2
            process = subprocess.Popen(
                configured(request.param, tmp_path, port, replicas), stderr=subprocess.PIPE, text=True, cwd=tmp_path
            )
            stack.callback(lambda: process.communicate(timeout=60))
            stack.callback(process.send_signal, signal.SIGTERM)
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 60
            while True:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until, "it does not listen"
                with socket.socket() as found:
                    if found.connect_ex(("127.0.0.1", port)) == 0:
                        return url
                time.sleep(0.01)

        yield start


class Replica(ThreadingHTTPServer):
    """Answers with one status, and /health with another; keeps what it was asked, and waits at its gate."""

    status = health = 200
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """One connection to a Replica."""

    protocol_version = "HTTP/1.1"
    server: Replica

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/health":
            self.send_response(self.server.health)
        else:
            status = self.server.status
            self.server.asked.append((self.headers["host"], body))
            self.server.gate.wait(60)
            self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def replica() -> Iterator[Replica]:
    with Replica() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            found.gate.set()
            found.shutdown()
            thread.join()


@pytest.fixture
def pair() -> Iterator[tuple[Replica, Replica]]:
    with replica() as one, replica() as other:
        yield one, other


@pytest.mark.proxies
def test_the_vectors_are_the_librarys(proxy: Proxy) -> None:
    """Of both replicas, which see a name that they trust; a body above nginx's own limit passes, too."""
    texts = ["A cat sleeps.", "Interest rates rose."]
    body = json.dumps({"input": texts, "encoding_format": "float"}).encode() + b" " * 3_000_000
    with Embedder(n_threads=1) as embedder:
        expected = embedder.encode(texts)
    with real_server() as one, real_server() as other:
        url = proxy(one.url, other.url)
        for _ in range(4):
            answer = httpx.post(url + EMBED, content=body, headers={"content-type": "application/json"}, timeout=60)
            assert answer.status_code == 200, answer.text
            found = [row["embedding"] for row in answer.json()["data"]]
            np.testing.assert_array_equal(np.float32(found), expected)
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.proxies
def test_a_request_goes_to_the_replica_with_the_fewest(proxy: Proxy, pair: tuple[Replica, Replica]) -> None:
    """One that does not get on with its work gets a request and no second one."""
    one, other = pair
    url = proxy(one.url, other.url)
    one.gate.clear()
    with ThreadPoolExecutor(50) as pool:
        pending = []
        while not one.asked:
            pending.append(pool.submit(httpx.post, url + EMBED, content=b"body", timeout=60))
            while not (pending[-1].done() or one.asked):
                time.sleep(0.01)
            assert len(pending) < 50, "the first one got nothing"
        before = len(other.asked)
        for _ in range(10):
            assert httpx.post(url + EMBED, content=b"body").status_code == 200
        assert (len(one.asked), len(other.asked)) == (1, before + 10)
        one.gate.set()
        assert [answer.result().status_code for answer in pending] == [200] * len(pending)
    assert set(one.asked + other.asked) == {("127.0.0.1", b"body")}


@pytest.mark.proxies
def test_one_that_is_not_there_is_passed_over(proxy: Proxy, pair: tuple[Replica, Replica]) -> None:
    """Each request is answered, with its body, from the first on."""
    _, other = pair
    url = proxy(f"http://127.0.0.1:{free_port()}", other.url)
    for i in range(20):
        assert httpx.post(url + EMBED, content=b"body %d" % i).status_code == 200
    assert [body for _, body in other.asked] == [b"body %d" % i for i in range(20)]


@pytest.mark.proxies
@pytest.mark.parametrize("status", [429, 503])
def test_what_one_refuses_the_other_takes(
    proxy: Proxy, pair: tuple[Replica, Replica], status: int, request: pytest.FixtureRequest
) -> None:
    """Behind nginx. Caddy does not look at the status: its clients do."""
    one, other = pair
    one.status = status
    url = proxy(one.url, other.url)
    found = [httpx.post(url + EMBED, content=b"body").status_code for _ in range(20)]
    if "nginx" in request.node.name:
        assert found == [200] * 20
        assert len(other.asked) == 20
    else:
        assert sorted(set(found)) == [200, status]
    assert one.asked


@pytest.mark.proxies
def test_one_that_says_that_it_ends_gets_nothing_more(
    proxy: Proxy, pair: tuple[Replica, Replica], request: pytest.FixtureRequest
) -> None:
    """Caddy knows from /health; nginx asks again each time, and sends the same request on."""
    one, other = pair
    url = proxy(one.url, other.url)
    one.status = one.health = 503
    until = time.monotonic() + 30
    while "caddy" in request.node.name:
        one.asked.clear()
        if {httpx.post(url + EMBED, content=b"body").status_code for _ in range(20)} == {200} and not one.asked:
            break
        assert time.monotonic() < until, "it still gets requests"
    assert {httpx.post(url + EMBED, content=b"body").status_code for _ in range(20)} == {200}
    if "caddy" in request.node.name:
        assert one.asked == []
    else:
        assert len(other.asked) == 20
