"""The command as a process: where it listens, what it says, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from edge_embed.server.settings import ModelOptions, ServerSettings
from edge_embed.server.start import build, served_models

COMMAND = str(Path(sys.executable).with_name("edge-embed"))


class Process:
    """``edge-embed serve`` with what it wrote so far."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [COMMAND, "serve", "--threads", "1", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_for(self, pattern: str) -> str:
        """The first group of the first line that matches."""
        end = time.monotonic() + 60
        while True:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else found[0]
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() < end, "".join(self.lines)
            time.sleep(0.02)

    def end(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextmanager
def serving(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Process]:
    found = Process(*arguments, env=env)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.wait()
        for pipe in (found.process.stdout, found.process.stderr):
            assert pipe is not None
            pipe.close()


def test_port_0_says_the_real_port_once_requests_are_answered() -> None:
    with serving("--port", "0", "--log", "off") as server:
        url = server.wait_for(r"serving all-minilm-l6-v2 on (http://127\.0\.0\.1:\d+)$")
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "x"}, timeout=30).status_code == 200
        assert server.end() == 0
        assert len(server.lines) == 1


def test_a_port_in_use_is_one_short_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([COMMAND, "serve", "--port", port], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_model_that_does_not_fit_ends_the_start() -> None:
    """It would never answer; the message has the numbers, and a supervisor sees the exit code."""
    done = subprocess.run(
        [COMMAND, "serve", "--port", "0", "--memory-limit", "1MB", "--log", "off"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 5
    assert re.search(r"all-minilm-l6-v2 takes 0\.\d+ GB, and the limit of all is 0\.00 GB", done.stderr)
    assert "raise --memory-limit" in done.stderr
    assert "serving" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_is_not_ours_serves_why() -> None:
    """Under another server the application cannot end the program; requests are told the numbers."""
    app = build(served_models(["all-minilm-l6-v2"]), ServerSettings(log="off"), ModelOptions(), memory_limit=10**6)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        until = time.monotonic() + 60
        while (answer := client.post("/v1/embeddings", json={"input": "x"})).status_code == 503:
            assert time.monotonic() < until, "it is never ready"
            time.sleep(0.05)
    assert answer.status_code == 507
    assert "and the limit of all is 0.00 GB" in answer.json()["error"]["message"]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_every_accepted_request_is_answered_under_load(sig: int) -> None:
    """Clients in threads ask without a pause while the signal comes. Each request ends in vectors, in a 503 that says
    when to come back, or was never taken: the connection is refused. None is cut off."""
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    stop = threading.Event()

    def client(url: str, number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as session:
            for turn in range(100_000):
                texts = [f"client {number} says {turn} and {i}" for i in range(1 + (number * 7) % 40)]
                try:
                    answer = session.post("/v1/embeddings", json={"input": texts})
                    outcome = str(answer.status_code)
                    if answer.status_code == 200:
                        outcome = "200" if len(answer.json()["data"]) == len(texts) else "too few vectors"
                    elif answer.status_code == 503:
                        outcome = "503" if answer.headers.get("retry-after") else "503 without a time"
                        time.sleep(float(answer.headers.get("retry-after", 0)))
                except httpx.ConnectError:
                    outcome = "refused"
                except httpx.HTTPError as error:
                    outcome = f"cut off: {type(error).__name__}"
                with lock:
                    outcomes[outcome] += 1
                if outcome == "refused" or stop.is_set():
                    return

    with serving("--port", "0", "--log", "json") as server:
        url = server.wait_for(r"serving .* on (http://\S+)$")
        clients = [threading.Thread(target=client, args=(url, number)) for number in range(12)]
        for one in clients:
            one.start()
        while outcomes["200"] < 30:
            time.sleep(0.01)
        code = server.end(sig)
        stop.set()
        for one in clients:
            one.join(60)
    assert code == 0
    assert outcomes.keys() <= {"200", "503", "refused"}, outcomes
    assert outcomes["refused"] + outcomes["503"] > 0
    said = [line for line in server.lines if '"event":"ending"' in line or '"event":"ended"' in line]
    assert len(said) == 2
    logged = Counter(re.search(r'"status":(\d+)', line)[1] for line in server.lines if '"event":"request"' in line)  # type: ignore[index]
    assert logged["200"] == outcomes["200"]


def long_request(url: str, done: list[object]) -> threading.Thread:
    """A request of many texts, which one thread computes for seconds; it is under way."""

    def ask() -> None:
        texts = [f"{i} " + "a long text about many things " * 40 for i in range(1500)]
        try:
            done.append(httpx.post(f"{url}/v1/embeddings", json={"input": texts}, timeout=120).status_code)
        except httpx.HTTPError as error:
            done.append(type(error).__name__)

    thread = threading.Thread(target=ask)
    thread.start()
    while "under_way 1.0" not in httpx.get(f"{url}/metrics").text:
        time.sleep(0.01)
    return thread


def test_draining_has_a_limit_and_the_client_is_told() -> None:
    with serving("--port", "0", "--drain", "1s") as server:
        url = server.wait_for(r"serving .* on (http://\S+)$")
        done: list[object] = []
        thread = long_request(url, done)
        assert server.end() == 0
        thread.join(30)
    assert done == [503]
    assert any("given up" in line for line in server.lines)


def test_a_second_signal_ends_at_once() -> None:
    with serving("--port", "0", "--drain", "10m") as server:
        url = server.wait_for(r"serving .* on (http://\S+)$")
        done: list[object] = []
        thread = long_request(url, done)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("ending")
        assert server.end() == 128 + signal.SIGTERM
        thread.join(30)
    assert done != [200]


def test_a_unix_socket_is_for_user_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving("--uds", str(path)) as server:
        assert server.wait_for(r"serving .* on (\S+)$") == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.name") as client:
            assert client.post("/v1/embeddings", json={"input": "x"}, timeout=30).status_code == 200
        second = subprocess.run([COMMAND, "serve", "--uds", str(path)], capture_output=True, text=True, timeout=60)
        assert second.returncode == 7
        assert "another server answers there" in second.stderr
        assert path.is_socket()
        assert server.end() == 0
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(left))
    with serving("--uds", str(left)) as server:
        assert server.wait_for(r"serving .* on (\S+)$") == str(left)
    file = tmp_path / "file"
    file.write_text("mine")
    done = subprocess.run([COMMAND, "serve", "--uds", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert "is no socket" in done.stderr
    assert file.read_text() == "mine"


def test_listening_elsewhere_without_a_key_warns() -> None:
    with serving("--host", "0.0.0.0", "--port", "0") as server:
        assert "no key" in server.wait_for("WARNING.*")
    with serving("--host", "0.0.0.0", "--port", "0", env={"EDGE_EMBED_SERVE_API_KEY": "one-key"}) as server:
        url = server.wait_for(r"serving .* on (http://\S+)$").replace("0.0.0.0", "127.0.0.1")
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "x"}).status_code == 401
        assert not any("WARNING" in line for line in server.lines)
        assert not any("one-key" in line for line in server.lines)


def test_a_model_that_cannot_be_loaded_is_said_and_others_answer(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\x00" * 100)
    with serving(str(broken), "all-minilm-l6-v2", "--port", "0") as server:
        url = server.wait_for(r"serving .* on (http://\S+)$")
        asked = {"input": "x", "model": "all-minilm-l6-v2"}
        assert httpx.post(f"{url}/v1/embeddings", json=asked, timeout=30).status_code == 200
        wrong = httpx.post(f"{url}/v1/embeddings", json={"input": "x", "model": "broken"}, timeout=30)
        assert wrong.status_code == 500
        assert "error" in wrong.json()


def test_systemd_is_told_when_the_server_is_ready(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        with serving("--port", "0", env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            assert notified.recv(100) == b"READY=1"
            url = server.wait_for(r"serving .* on (http://\S+)$")
            assert httpx.get(f"{url}/health").status_code == 200
            server.end()
            assert notified.recv(100) == b"STOPPING=1"
