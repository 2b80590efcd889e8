"""``edge-embed serve`` beside llama-server under load, in one run: texts per second, and how long a request takes.

    python -m benchmarks.serve_load --data DIR --llama-server PROGRAM [--model06 FILE]

The same GGUF, threads and bytes of every request go to both; clients ask over HTTP (``http_load.py``), wait for the
whole answer and ask again:

* bulk: 32 sentences of STS-B in a request, by 1, 8 and 64 clients;
* single: a sentence in a request, by as many;
* instructed: a query of SciFact behind Qwen3's instruction in a request, by 4 clients, on the 0.6B shape
  (``--model06``, made by ``python -m benchmarks.shape06``);
* library: bulk by 1 client beside the library's own ``encode`` of the same sentences in calls of 32. What is missing to
  its speed is what HTTP, JSON and the threads between cost.

llama-server is tried with several settings in every scenario, and measured with its best. A round's requests go to each
server before the next round begins, the first one changes from round to round, and ratios are those of a round.
``--also 'NAME=VARIABLE=VALUE'`` is one more row: this server with something in its environment.

The exit code is 1 where a goal is not met.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.datasets import beir, stsb
from benchmarks.http_load import Driven, LoadError, Server, drive, request
from benchmarks.machine import machine_line
from benchmarks.peers import OURS, SETTLE, Engine, Peer, Variant
from benchmarks.qwen3 import INSTRUCTION
from edge_embed.catalogue import resolve
from edge_embed.engine.devices import default_threads

BULK = 32
MOST_OVERHEAD = 0.15  # of the time, for HTTP and JSON
# Slots and tokens of a batch (a text must fit into one) that llama-server is tried with.
_WAYS = ((4, 512), (16, 512), (16, 2048), (64, 2048))
_WAYS06 = (
    ["-np", "4", "-b", "2048", "-ub", "2048"],
    ["-np", "4", "-b", "512", "-ub", "512"],
    ["-np", "4", "-b", "2048", "-ub", "2048", "-kvu"],
    ["-np", "4", "-b", "2048", "-ub", "2048", "--no-repack"],
)


@dataclass(frozen=True)
class Scenario:
    """One kind of load.

    Attributes:
        name: how tables say it.
        clients: how many ask at the same time.
        texts: of a request.
        requests: of a round.
        faster: how many times as many texts per second are the goal, or 0.
        p50, p99: what share of llama-server's is the goal, or 0.
    """

    name: str
    clients: int
    texts: int
    requests: int
    faster: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


@dataclass
class Row:
    """What clients of one server saw.

    Attributes:
        name: whose.
        rounds: one after another.
        check: the vectors of the first request, float32 ``[n, d]``, of unit length.
    """

    name: str
    rounds: list[Driven] = field(default_factory=list)
    check: npt.NDArray[np.float32] | None = None

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of the requests was answered."""
        every = sorted(latency for one in self.rounds for latency in one.latencies)
        return 1000 * every[min(len(every) - 1, math.ceil(share * len(every)) - 1)]

    @property
    def seconds(self) -> list[float]:
        return [one.seconds for one in self.rounds]


def main() -> int:
    """Measure, print tables, say which goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb/ and scifact/")
    parser.add_argument("--llama-server", default="llama-server")
    parser.add_argument("--model", type=Path, default=resolve(None))
    parser.add_argument("--model06", type=Path, help="the 0.6B shape of Qwen3-Embedding as a GGUF; left out without it")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests; less for a quick look")
    parser.add_argument("--encoding", choices=("base64", "float"), default="base64")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=VARIABLE=VALUE")
    parser.add_argument("--only", nargs="*", choices=("bulk", "single", "instructed", "library"))
    options = parser.parse_args()
    wanted = options.only or ("bulk", "single", "instructed", "library")

    first, second, _ = stsb(options.data)
    sentences = [*first, *second]
    random.Random(0).shuffle(sentences)
    print(f"{machine_line(options.threads)}\n{options.rounds} rounds, vectors as {options.encoding}\n", flush=True)
    met = True
    for scenario in minilm(options.scale):
        if scenario.name.split()[0] in wanted:
            met &= beside(scenario, options.model, sentences, _minilm_ways(), options)
    if "instructed" in wanted and options.model06 is not None:
        _, queries, _ = beir(options.data / "scifact")
        asked = [INSTRUCTION + query for query in queries.values()]
        scenario = Scenario("instructed queries, 0.6B", 4, 1, _at_least(40 * options.scale, 4), faster=3.5)
        met &= beside(scenario, options.model06, asked, [["--pooling", "last", *way] for way in _WAYS06], options)
    if "library" in wanted:
        met &= library(sentences, options)
    return 0 if met else 1


def minilm(scale: float) -> Iterator[Scenario]:
    """The loads of a small model. A round of each takes some seconds."""
    for clients, requests in ((1, 20), (8, 40), (64, 128)):
        yield Scenario("bulk", clients, BULK, _at_least(requests * scale, clients), faster=2.0)
    for clients, requests in ((1, 200), (8, 600), (64, 1280)):
        p50, p99 = (1.0 if clients == 1 else 0.0), (0.5 if clients == 64 else 0.0)
        yield Scenario("single", clients, 1, _at_least(requests * scale, clients), p50=p50, p99=p99)


def beside(
    scenario: Scenario, model: Path, texts: Sequence[str], ways: Sequence[Sequence[str]], options: argparse.Namespace
) -> bool:
    """Both servers under one load; whether the goals are met."""
    endless = cycle(texts)
    rounds = [_requests(endless, scenario, options.encoding) for _ in range(options.rounds + 1)]
    trial, *counted = rounds
    best = _best_way(scenario, model, ways, trial, options)
    rows = [Row(OURS)]
    with ExitStack() as stack:
        servers = [stack.enter_context(closing(_ours(model, options)))]
        for text in options.also:
            name, _, setting = text.partition("=")
            variable, _, value = setting.partition("=")
            rows.append(Row(f"{OURS} {name}"))
            servers.append(stack.enter_context(closing(_ours(model, options, {variable: value}))))
        if best is not None:
            rows.append(Row(f"llama-server ({' '.join(best)})"))
            servers.append(stack.enter_context(closing(_theirs(model, best, options))))
        for row, server in zip(rows, servers, strict=True):
            row.check = _vectors(drive(server.port, trial, scenario.clients, keep=True).bodies[0])
        for turn, requests in enumerate(counted):
            for step in range(len(rows)):
                number = (turn + step) % len(rows)
                time.sleep(SETTLE)
                rows[number].rounds.append(drive(servers[number].port, requests, scenario.clients))
            print(f"{scenario.name}, {scenario.clients} clients: round {turn + 1}", file=sys.stderr, flush=True)
    print(_table(scenario, rows), flush=True)
    if best is None:
        print(f"no llama-server ({options.llama_server}): nothing to compare with\n", flush=True)
        return True
    return _goals(scenario, rows[0], rows[-1])


def library(sentences: Sequence[str], options: argparse.Namespace) -> bool:
    """The server beside ``encode`` of the same sentences; whether HTTP and JSON cost little enough."""
    endless = cycle(sentences)
    scenario = Scenario("bulk", 1, BULK, _at_least(20 * options.scale, 4))
    peer = Peer(Engine("encode", "edge-embed", sys.executable, str(options.model)), Variant(""), options.threads)
    shares: list[float] = []
    with ExitStack() as stack:
        stack.callback(peer.close)
        peer.wait_until_ready()
        server = stack.enter_context(closing(_ours(options.model, options)))
        for turn in range(options.rounds + 1):
            texts = [[next(endless) for _ in range(BULK)] for _ in range(scenario.requests)]
            requests = [_request(part, options.encoding) for part in texts]
            found = {}
            for who in ("library", "server")[:: 1 if turn % 2 else -1]:
                time.sleep(SETTLE)
                if who == "library":
                    found[who] = sum(peer.ask({"job": "embed", "texts": part})["seconds"] for part in texts)
                else:
                    found[who] = drive(server.port, requests, 1).seconds
            if turn:  # the first one warms up
                shares.append(1 - found["library"] / found["server"])
    share = statistics.median(shares)
    verdict = "met" if share < MOST_OVERHEAD else "NOT MET"
    print(
        f"**MiniLM, {BULK} sentences in a request, 1 client: HTTP, JSON and threads**\n\n{100 * share:.1f} % of the "
        f"time (median of rounds; {100 * min(shares):.1f} to {100 * max(shares):.1f} %)\n\n"
        f"goal below {100 * MOST_OVERHEAD:.0f} %: {verdict}\n",
        flush=True,
    )
    return share < MOST_OVERHEAD


# ---------------------------------------------------------------- servers


def _ours(model: Path, options: argparse.Namespace, environment: dict[str, str] | None = None) -> Server:
    program = str(Path(sys.executable).with_name("edge-embed"))
    command = [program, "serve", str(model), "--port", "{port}", "--threads", str(options.threads)]
    return Server(command, environment={**os.environ, **(environment or {})})


def _theirs(model: Path, way: Sequence[str], options: argparse.Namespace) -> Server:
    threads = str(options.threads)
    command = [options.llama_server, "-m", str(model), "--host", "127.0.0.1", "--port", "{port}", "--embedding"]
    return Server(
        [*command, "-t", threads, "-tb", threads, "-fa", "on", "--cache-ram", "0", "--threads-http", "80", *way]
    )


def _minilm_ways() -> list[list[str]]:
    return [["-np", str(slots), "-c", str(512 * slots), "-b", str(n), "-ub", str(n)] for slots, n in _WAYS]


def _best_way(
    scenario: Scenario, model: Path, ways: Sequence[Sequence[str]], trial: Sequence[bytes], options: argparse.Namespace
) -> Sequence[str] | None:
    """The fastest settings of llama-server, by the better of two tries each; None where it does not run at all."""
    seconds: dict[int, float] = {}
    for number, way in enumerate(ways):
        try:
            with closing(_theirs(model, way, options)) as server:
                drive(server.port, trial[: scenario.clients], scenario.clients)
                time.sleep(SETTLE)
                seconds[number] = min(drive(server.port, trial, scenario.clients).seconds for _ in range(2))
        except (LoadError, OSError) as error:
            print(f"llama-server {' '.join(way)}: {error}", file=sys.stderr, flush=True)
            continue
        print(f"llama-server {' '.join(way)}: {seconds[number]:.2f} s", file=sys.stderr, flush=True)
    return ways[min(seconds, key=seconds.__getitem__)] if seconds else None


# ---------------------------------------------------------------- requests and answers


def _at_least(n: float, least: int) -> int:
    return max(round(n), least)


def _requests(texts: Iterator[str], scenario: Scenario, encoding: str) -> list[bytes]:
    return [_request([next(texts) for _ in range(scenario.texts)], encoding) for _ in range(max(scenario.requests, 1))]


def _request(texts: list[str], encoding: str) -> bytes:
    return request(
        "/v1/embeddings", {"input": texts if len(texts) > 1 else texts[0], "encoding_format": encoding, "model": ""}
    )


def _vectors(body: bytes) -> npt.NDArray[np.float32]:
    found = sorted(json.loads(body)["data"], key=lambda row: row["index"])
    rows = [
        np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
        if isinstance(row["embedding"], str)
        else np.array(row["embedding"], np.float32)
        for row in found
    ]
    vectors = np.stack(rows)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


# ---------------------------------------------------------------- what is printed


def _table(scenario: Scenario, rows: Sequence[Row]) -> str:
    clients = f"{scenario.clients} client{'s' if scenario.clients > 1 else ''}"
    texts = f"{scenario.texts} texts in a request" if scenario.texts > 1 else "a text in a request"
    lines = [
        f"**{scenario.name}: {clients}, {texts}**\n",
        f"| server | texts/s | {OURS} is faster by (median of rounds, range) | p50 ms | p99 ms | cosine to ours "
        "| the clients' own share |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        total = sum(row.seconds)
        ratio = "" if row is rows[0] else "**{:.2f}**, {:.2f} to {:.2f}".format(*_ratios(rows[0], row))
        cosine = ""
        if row is not rows[0] and row.check is not None and rows[0].check is not None:
            cosine = f"{(row.check * rows[0].check).sum(axis=1).min():.5f}"
        own = sum(one.client_seconds for one in row.rounds) / total
        again = sum(one.reconnects for one in row.rounds)
        lines.append(
            f"| {row.name} | {scenario.texts * scenario.requests * len(row.rounds) / total:.0f} | {ratio} "
            f"| {row.percentile(0.5):.1f} | {row.percentile(0.99):.1f} | {cosine} "
            f"| {100 * own:.1f} %{f', {again} reconnects' if again else ''} |"
        )
    return "\n".join(lines) + "\n"


def _ratios(ours: Row, theirs: Row) -> tuple[float, float, float]:
    """How many times as long they take: median, least and most of the rounds."""
    found = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return statistics.median(found), min(found), max(found)


def _goals(scenario: Scenario, ours: Row, theirs: Row) -> bool:
    """Say whether they are met."""
    goals: list[tuple[str, bool]] = []
    if scenario.faster:
        goals.append((f"{scenario.faster:g} times the texts/s", _ratios(ours, theirs)[0] >= scenario.faster))
    if scenario.p50:
        goals.append(("p50 not above", ours.percentile(0.5) <= scenario.p50 * theirs.percentile(0.5)))
    if scenario.p99:
        goals.append(
            (f"p99 at most {scenario.p99:g} times", ours.percentile(0.99) <= scenario.p99 * theirs.percentile(0.99))
        )
    for text, met in goals:
        print(f"goal {text}: {'met' if met else 'NOT MET'}", flush=True)
    print(flush=True)
    return all(met for _, met in goals)


if __name__ == "__main__":
    sys.exit(main())
