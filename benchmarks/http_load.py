"""Clients of a server on this machine, many in one thread: what they send is made before, what comes is counted.

Each client has a connection, sends a request, waits for the whole answer, and sends the next one (a closed loop). A
loop over ``select`` with bytes that were prepared costs some 30 microseconds a request, which ``Driven.client_seconds``
says: clients and server share the processor, so it is a part of what is measured, the same for every server.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import selectors
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_CHUNK = 1 << 18
_START_SECONDS = 120.0
_MOST_RECONNECTS = 10  # of a client; a server that ends has no port any more


class LoadError(Exception):
    """A server did not answer as it should."""


@dataclass
class Driven:
    """What clients saw.

    Attributes:
        seconds: from the first request sent to the last answer read.
        reconnects: how often a server had closed a connection before it answered; the request was sent again.
        latencies: seconds from a request's first byte to the last byte of its answer, in the order of the requests.
        client_seconds: processor time of the clients themselves.
        bodies: of the answers, where they were asked for.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    client_seconds: float = 0.0
    reconnects: int = 0
    bodies: list[bytes] = field(default_factory=list)


def request(path: str, body: dict[str, object]) -> bytes:
    """A request as it goes over the wire, without a host that matters."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return f"{head}\r\n\r\n".encode() + data


class _Client:
    """A connection, and how far its present answer has come."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self._port, self._selector = port, selector
        self.index, self.reconnects = -1, 0
        self._data = b""
        self.began = 0.0
        self._parts: list[bytes] = []
        self._missing = -1  # bytes of the body, once the head is there
        self._last = False  # the server closes the connection after this answer
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self._port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self.socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        """Nothing is read any more; twice is once."""
        if self.socket.fileno() >= 0:
            self._selector.unregister(self.socket)
            self.socket.close()

    def send(self, index: int, data: bytes) -> None:
        self.index, self._data = index, data
        self.began = time.perf_counter()
        if self._last:  # llama-server does so after 100 requests
            self._reconnect()
        self._send()

    def _send(self) -> None:
        self._parts, self._missing = [], -1
        self.socket.setblocking(True)
        self.socket.sendall(self._data)
        self.socket.setblocking(False)

    def _reconnect(self) -> None:
        self.close()
        self._connect()
        self._last = False

    def read(self) -> bytes | None:
        """The answer's body once all of it is there."""
        data = self.socket.recv(_CHUNK)
        if not data:
            if self._parts or self.reconnects >= _MOST_RECONNECTS:
                raise LoadError("the server closed the connection")
            self.reconnects += 1
            self._reconnect()
            self._send()
            return None
        self._parts.append(data)
        if self._missing < 0:
            head, end, rest = b"".join(self._parts).partition(b"\r\n\r\n")
            if not end:
                return None
            status, _, fields = head.lower().partition(b"\r\n")
            if b" 200" not in status:
                raise LoadError(f"the server answers {(head + end + rest)[:500].decode(errors='replace')}")
            self._last = b"connection: close" in fields
            _, found, length = fields.partition(b"content-length:")
            if not found:
                raise LoadError("the server does not say how long its answer is")
            self._parts, self._missing = [rest], int(length.partition(b"\r\n")[0]) - len(rest)
        else:
            self._missing -= len(data)
        return b"".join(self._parts) if self._missing == 0 else None


def drive(port: int, requests: Sequence[bytes], clients: int, *, keep: bool = False) -> Driven:
    """Send all requests, by so many clients at a time.

    Raises:
        LoadError: an answer that is not 200.
    """
    found = Driven(latencies=[0.0] * len(requests), bodies=[b""] * len(requests) if keep else [])
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        waiting = list(enumerate(requests))[::-1]
        everybody = [_Client(port, selector) for _ in range(min(clients, len(requests)))]
        for client in everybody:
            stack.callback(client.close)
        own, started = time.process_time(), time.perf_counter()
        for client in everybody:
            client.send(*waiting.pop())
        busy = len(everybody)
        while busy:
            for key, _ in selector.select():
                client = key.data
                body = client.read()
                if body is None:
                    continue
                found.latencies[client.index] = time.perf_counter() - client.began
                if keep:
                    found.bodies[client.index] = body
                if waiting:
                    client.send(*waiting.pop())
                else:
                    client.close()  # servers close idle connections: that is no answer
                    busy -= 1
        found.reconnects = sum(client.reconnects for client in everybody)
        found.seconds, found.client_seconds = time.perf_counter() - started, time.process_time() - own
    return found


class Server:
    """A server process on a free port.

    Args:
        command: its command line; ``{port}`` stands for the port.
        health: a path that answers 200 once requests are taken.
        environment: of the process; this one's by default.
    """

    def __init__(
        self, command: Sequence[str], health: str = "/health", *, environment: Mapping[str, str] | None = None
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        own = [part.replace("{port}", str(self.port)) for part in command]
        self.process = subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        self._wait(health)

    def _wait(self, health: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise LoadError(f"the server ended with {self.process.returncode}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", health)
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)
        self.close()
        raise LoadError(f"the server did not answer within {_START_SECONDS:.0f} s")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
