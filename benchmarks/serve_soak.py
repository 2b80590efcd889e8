"""Whether a server stays sound for as long as one likes: mixed load with bad clients; exit code 1 where it did not.

    python -m benchmarks.serve_soak --data DIR [--minutes 30] [--model FILE]

``edge-embed serve`` with the same file under three names, of which two fit into its memory limit, and a short
``--keep-alive``: models come and go all the time. Against it clients, each a thread:

* honest ones: 1 to 256 texts of a pool, with prompts, sizes and connections that change. Every vector of every answer
  is compared with the library's, computed before; so are the token counts;
* some that vanish: in the midst of a body, or before the answer;
* some that send garbage: broken JSON and UTF-8, wrong types, models that are not there, no HTTP at all. Each must be
  told so by a status from 400 to 499.

After that, with nobody asking: nothing waits, nothing is under way, and the counters of ``/metrics`` are what the
clients saw (of those that vanished nobody knows; they are the slack). Resident memory is sampled; its median in the
last third must not be above the first third's, after a warm-up. At the end SIGTERM under load: every request that was
sent by then is answered, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import socket
import statistics
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.http_load import Server, request
from benchmarks.machine import machine_line, rss_bytes
from benchmarks.soak import texts_of
from edge_embed import Embedder
from edge_embed.catalogue import resolve
from edge_embed.engine.devices import default_threads

MB = 1e6
ROUTE = "/v1/embeddings"
NAMES = ("first", "second", "third")
PROMPTS = ("", "query: ")
SIZES = (None, 128, 37)
_ROOM = 2.5  # times one model's memory: for two of the three
_SAMPLE_SECONDS = 1.0
_DRAIN_SECONDS = 60.0


@dataclass
class Pool:
    """Texts and what the library says of them.

    Attributes:
        texts: different ones.
        vectors: for each prompt and size float32 ``[n, size]``.
        n_tokens: for each prompt int32 ``[n]``.
        tolerance: how far a value of a vector may be from the library's.
    """

    texts: list[str]
    vectors: list[dict[int | None, npt.NDArray[np.float32]]]
    n_tokens: list[npt.NDArray[np.int32]]
    tolerance: float

    @staticmethod
    def of(texts: list[str], options: argparse.Namespace) -> Pool:
        """Computed by the library."""
        vectors, n_tokens = [], []
        with Embedder(options.model, n_threads=options.threads) as embedder:
            for prompt in PROMPTS:
                jobs = [embedder.prepare(texts, prompt=prompt, truncate_dim=size) for size in SIZES]
                found = embedder.run(jobs)
                vectors.append({size: one.vectors for size, one in zip(SIZES, found, strict=True)})
                n_tokens.append(found[0].n_tokens)
        return Pool(texts, vectors, n_tokens, options.tolerance)

    def wrong(self, answer: bytes, chosen: list[int], prompt: int, size: int | None) -> str:
        """What is wrong with an answer, or nothing."""
        body = json.loads(answer)
        if [row["index"] for row in body["data"]] != list(range(len(chosen))):
            return f"{len(body['data'])} vectors for {len(chosen)} texts"
        expected = self.vectors[prompt][size][chosen]
        found = np.array([row["embedding"] for row in body["data"]], dtype=np.float32)
        if found.shape != expected.shape:
            return f"vectors of shape {found.shape}, expected {expected.shape}"
        if not np.abs(found - expected).max() <= self.tolerance:
            return f"vectors that differ by {np.abs(found - expected).max()}"
        if body["usage"]["prompt_tokens"] != self.n_tokens[prompt][chosen].sum():
            return "another number of tokens"
        return ""


@dataclass
class Seen:
    """What all clients saw together."""

    statuses: Counter[int] = field(default_factory=Counter)
    vanished: int = 0
    texts: int = 0
    tokens: int = 0
    noise: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int, texts: int = 0, tokens: int = 0) -> None:
        with self.lock:
            self.statuses[status] += 1
            self.texts += texts
            self.tokens += tokens

    def complain(self, text: str) -> None:
        with self.lock:
            self.wrong.append(text)


class Soak:
    """A server, its clients, and when they end."""

    def __init__(self, server: Server, pool: Pool) -> None:
        self.server, self.pool, self.seen = server, pool, Seen()
        self.ending = threading.Event()
        self.terminated: float | None = None  # when SIGTERM was sent

    def honest(self, chance: random.Random) -> None:
        """Ask, compare, ask again; a new connection now and then."""
        with contextlib.closing(self._connection()) as connection:
            self._honest(chance, connection)

    def _honest(self, chance: random.Random, connection: http.client.HTTPConnection) -> None:
        while not self.ending.is_set():
            size = round(256 ** (chance.random() ** 2))
            chosen = chance.sample(range(len(self.pool.texts)), size)
            prompt, dim = chance.randrange(len(PROMPTS)), chance.choice(SIZES)
            # the second and the third model are asked for in turns, and left alone between
            name = NAMES[int(time.monotonic() / 8) % 3] if chance.random() < 0.3 else NAMES[0]
            body: dict[str, object] = {"model": name, "input": [self.pool.texts[i] for i in chosen]}
            body |= {"prompt": PROMPTS[prompt]} | ({} if dim is None else {"dimensions": dim})
            sent = 0.0
            try:
                if chance.random() < 0.05:
                    connection.close()
                connection.request("POST", ROUTE, json.dumps(body), {"Content-Type": "application/json"})
                sent = time.monotonic()
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                if self.terminated is None or 0 < sent < self.terminated:
                    self.seen.complain(f"a request was lost: {type(error).__name__}: {error}")
                    connection.close()  # the next request makes it again
                    continue
                return
            if response.status == 200:
                wrong = self.pool.wrong(answer, chosen, prompt, dim)
                self.seen.add(200, size, int(self.pool.n_tokens[prompt][chosen].sum()))
                if wrong:
                    self.seen.complain(f"{name}: {wrong}")
            elif self.terminated is None or sent < self.terminated:
                self.seen.add(response.status)
                self.seen.complain(f"an honest request was answered {response.status}: {answer[:200]!r}")
            else:
                return

    def vanishing(self, chance: random.Random) -> None:
        """Send a request, or the beginning of one, and go."""
        while not self.ending.is_set():
            texts = chance.choices(self.pool.texts, k=round(256 ** chance.random()))
            data = request(ROUTE, {"model": chance.choice(NAMES[:2]), "input": texts})
            if chance.random() < 0.3:
                data = data[: chance.randrange(1, len(data))]
            with contextlib.suppress(OSError), self._socket() as connection:
                with self.seen.lock:
                    self.seen.vanished += 1
                connection.sendall(data)
                time.sleep(chance.random() ** 2)
            time.sleep(0.1 * chance.random())

    def garbage(self, chance: random.Random) -> None:
        """Send what nobody can answer, and see that it is said."""
        bodies = [
            b"{", b"", b"[]", b"\xff\xfe{}", b'{"input": 1.5}', b'{"input": {}}', b'{"input": []}', b'{"input": NaN}',
            b'{"input": "x", "model": "nobody"}', b'{"input": "x", "dimensions": 0}', b'{"input": ["x", 1]}',
            b'{"input": "\\ud800"}', b"[" * 10_000, json.dumps({"input": ["x"] * 3000}).encode(),
        ]  # fmt: skip
        with contextlib.closing(self._connection()) as connection:
            self._garbage(chance, connection, bodies)

    def _garbage(self, chance: random.Random, connection: http.client.HTTPConnection, bodies: list[bytes]) -> None:
        while not self.ending.is_set():
            time.sleep(0.05 * chance.random())
            if chance.random() < 0.1:
                with contextlib.suppress(OSError), self._socket() as noise:
                    noise.sendall(chance.randbytes(200))
                    noise.recv(1000)
                with self.seen.lock:
                    self.seen.noise += 1
                continue
            body = chance.choice(bodies)
            try:
                connection.request("POST", ROUTE, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.seen.complain(f"garbage was not answered: {type(error).__name__}: {error}")
                connection.close()
                continue
            self.seen.add(response.status)
            if not 400 <= response.status < 500 or "error" not in json.loads(answer):
                self.seen.complain(f"{body[:40]!r} was answered {response.status}: {answer[:200]!r}")

    def metrics(self) -> dict[str, float]:
        """Name with labels to value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=300)

    def _socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=30)


@contextlib.contextmanager
def running(soak: Soak, kinds: dict[Callable[[random.Random], None], int], seed: int):  # type: ignore[no-untyped-def]
    """So many clients of each kind, for as long as the block lasts."""
    soak.ending.clear()
    threads = [
        threading.Thread(target=kind, args=(random.Random(1000 * seed + 100 * k + i),))
        for k, (kind, n) in enumerate(kinds.items())
        for i in range(n)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        soak.ending.set()
        for thread in threads:
            thread.join()


def main() -> int:
    """Run it, print what was checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=resolve(None))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--texts", type=int, default=2000, help="of the pool")
    parser.add_argument(
        "--clients", type=int, default=12, help="honest ones; a third as many vanish, a sixth is garbage"
    )
    parser.add_argument("--tolerance", type=float, default=0.0, help="how far a value may be from the library's")
    parser.add_argument("--limit-mb", type=float, default=50)
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()

    print(f"{machine_line(options.threads)}\n{options.model.name}, {options.minutes:g} minutes\n", flush=True)
    checks = soak(texts_of(options.data, options.texts, 120), options)
    print("| check | | |\n|---|---|---|")
    for name, sound, text in checks:
        print(f"| {name} | {text} | {'ok' if sound else 'FAILED'} |")
    return 0 if all(sound for _, sound, _ in checks) else 1


def soak(texts: list[str], options: argparse.Namespace) -> list[tuple[str, bool, str]]:
    """All of it: name, whether it is sound, and figures of each check."""
    pool = Pool.of(texts, options)
    server = start(options)
    soak = Soak(server, pool)
    checks: list[tuple[str, bool, str]] = []
    with contextlib.closing(server):
        vanishing, garbage = max(1, options.clients // 3), max(1, options.clients // 6)
        with running(soak, {soak.honest: options.clients, soak.vanishing: vanishing, soak.garbage: garbage}, 1):
            samples = sample(server, 60 * options.minutes, soak.seen)
        checks += [*answers(soak.seen), memory(samples, options.limit_mb), *counters(soak)]
        wrong = soak.seen.wrong
        checks += ending(soak, options.clients)
    for text, n in Counter(wrong + soak.seen.wrong).most_common(20):
        print(f"{n} times: {text}")
    return checks


def start(options: argparse.Namespace) -> Server:
    """The server; its memory limit is that of two models, by its own plan of one."""
    program = str(Path(sys.executable).with_name("edge-embed"))
    command = [
        program,
        "serve",
        "--port",
        "{port}",
        "--threads",
        str(options.threads),
        "--drain",
        f"{_DRAIN_SECONDS:g}",
    ]
    one = Server([*command, str(options.model)])
    with contextlib.closing(one), urllib.request.urlopen(f"http://127.0.0.1:{one.port}/metrics") as response:
        found = re.search(rb"^edge_embed_model_memory_bytes\{.*\} (\S+)$", response.read(), re.MULTILINE)
    assert found is not None
    limit = f"{_ROOM * float(found[1]) / MB:.0f}MB"
    names = [f"{name}={options.model}" for name in NAMES]
    return Server([*command, *names, "--keep-alive", "5s", "--memory-limit", limit])


def sample(server: Server, seconds: float, seen: Seen) -> list[float]:
    """Resident MB of the server, every second."""
    found: list[float] = []
    started = said = time.monotonic()
    while time.monotonic() - started < seconds:
        time.sleep(_SAMPLE_SECONDS)
        found.append(rss_bytes(server.process.pid) / MB)
        if time.monotonic() - said >= 60:
            said = time.monotonic()
            print(f"{said - started:.0f} s: {dict(seen.statuses)}, {found[-1]:.0f} MB", file=sys.stderr, flush=True)
    return found


# ---------------------------------------------------------------- what is checked


def answers(seen: Seen) -> list[tuple[str, bool, str]]:
    """Nobody has lost an answer, or got another's."""
    good, refused = seen.statuses[200], sum(n for status, n in seen.statuses.items() if status != 200)
    text = f"{good} answers with {seen.texts} vectors, {refused} refusals, {len(seen.wrong)} wrong or lost"
    return [("answers", good > 0 and not seen.wrong, text)]


def memory(samples: list[float], limit: float) -> tuple[str, bool, str]:
    """Flat after a warm-up: the medians of the first and last third."""
    warm = samples[len(samples) // 5 :]
    third = max(1, len(warm) // 3)
    before, after = statistics.median(warm[:third]), statistics.median(warm[-third:])
    text = f"{before:.0f} MB, later {after:.0f}; {min(warm):.0f} to {max(warm):.0f}"
    return "resident memory", after - before <= limit, text


def counters(soak: Soak) -> list[tuple[str, bool, str]]:
    """What the server counted is what the clients saw, with those that vanished as the slack."""
    seen, deadline = soak.seen, time.monotonic() + _DRAIN_SECONDS
    while (found := soak.metrics())["edge_embed_requests_under_way"] and time.monotonic() < deadline:
        time.sleep(0.2)
    statuses: Counter[int] = Counter()
    for name, value in found.items():
        if name.startswith("edge_embed_requests_total{") and f'route="{ROUTE}"' in name:
            statuses[int(re.findall(r'status="(\d+)"', name)[0])] += int(value)

    def total(name: str) -> int:
        return int(sum(value for key, value in found.items() if key.partition("{")[0] == name))

    waiting = {name: total(f"edge_embed_queued_{name}") for name in ("requests", "texts", "tokens")}
    left = found["edge_embed_requests_under_way"]
    checks = [("nothing is left", not left and not any(waiting.values()), f"{left:.0f} under way, waiting: {waiting}")]
    for status in sorted({*statuses, *seen.statuses} - {499}):
        # what those that vanished may have been answered: vectors, that a body broke off, or to come again
        slack = seen.vanished if status in (200, 400, 408, 429) else 0
        own, counted = seen.statuses[status], statuses[status]
        text = f"clients saw {own}, counted {counted}, {slack} vanished"
        checks.append((f"answers {status}", own <= counted <= own + slack, text))
    everything, known = sum(statuses.values()), sum(seen.statuses.values())
    text = f"clients sent {known} and {seen.vanished} that vanished, counted {everything}"
    checks.append(("requests", known <= everything <= known + seen.vanished, text))
    for name, own in (("texts", seen.texts), ("tokens", seen.tokens)):
        counted = total(f"edge_embed_{name}_total")
        checks.append((name, own <= counted, f"clients got {own}, counted {counted}"))
    loads, evictions = total("edge_embed_model_loads_total"), total("edge_embed_model_evictions_total")
    checks.append(("models came and went", loads > len(NAMES), f"{loads} loads, {evictions} made room for another"))
    return checks


def ending(soak: Soak, clients: int) -> list[tuple[str, bool, str]]:
    """SIGTERM in the midst of requests."""
    soak.seen = seen = Seen()
    with running(soak, {soak.honest: clients}, 2):
        time.sleep(3)
        soak.terminated = time.monotonic()
        soak.server.process.send_signal(signal.SIGTERM)
        code = soak.server.process.wait(_DRAIN_SECONDS + 30)
        seconds = time.monotonic() - soak.terminated
    text = f"{seen.statuses[200]} answers, {len(seen.wrong)} wrong or lost; ended after {seconds:.1f} s with {code}"
    return [("SIGTERM under load", seen.statuses[200] > 0 and not seen.wrong and code == 0, text)]


if __name__ == "__main__":
    sys.exit(main())
