"""One engine in a process and an environment of its own: reads requests, answers with seconds and peak memory.

``python worker.py KIND SETTINGS`` with the settings as JSON. It writes a line when it is ready; then each line on
stdin is a request and each on stdout its answer, both JSON:

    {"job": "embed", "texts": [...]}                         all in one call
    {"job": "each", "texts": [...]}                          one call for each text; "each" holds their seconds
    {"job": "rank", "query": "...", "documents": [...]}      one query's documents
    -> {"seconds": 1.5, "each": [], "peak_mb": 640.0, "results": [...]}      results only with "keep": true

It imports nothing of this project but the package itself, so that any interpreter can run it. llama-server is one more
kind: the worker starts the program, is its client, and ends it.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import queue
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM_UP = ["warm up", "the first call allocates what later ones use again, and this text is a little longer"]


class EdgeEmbed:
    """This project. ``arguments`` go to Embedder or Reranker."""

    def __init__(self, model: str, threads: int, rerank: bool = False, arguments: dict[str, Any] | None = None) -> None:
        from edge_embed import Embedder, Reranker

        self.name = f"edge-embed {version('edge-embed')}, llama-cpp-python {version('llama-cpp-python')}"
        self._model: Any = (Reranker if rerank else Embedder)(model, n_threads=threads, **(arguments or {}))

    def embed(self, texts: list[str]) -> Any:
        return self._model.encode(texts)

    def rank(self, query: str, documents: list[str]) -> Any:
        return self._model.predict(query, documents)


class LlamaCppPython:
    """llama-cpp-python's own embed(). ``arguments`` go to Llama; the defaults would cut texts at 512 tokens."""

    def __init__(self, model: str, threads: int, arguments: dict[str, Any] | None = None) -> None:
        from llama_cpp import Llama

        self.name = f"llama-cpp-python {version('llama-cpp-python')}"
        self._llama = Llama(
            model, embedding=True, verbose=False, n_threads=threads, n_threads_batch=threads, **(arguments or {})
        )

    def embed(self, texts: list[str]) -> Any:
        return self._llama.embed(texts, normalize=True, truncate=False)


class SentenceTransformers:
    """sentence-transformers on the original checkpoint."""

    def __init__(
        self,
        model: str,
        threads: int,
        dtype: str = "float32",
        batch_size: int = 32,
        rerank: bool = False,
        device: str = "cpu",
    ) -> None:
        import torch
        from sentence_transformers import CrossEncoder, SentenceTransformer

        torch.set_num_threads(threads)
        self.name = f"sentence-transformers {version('sentence-transformers')}, torch {version('torch')}"
        kind: Any = CrossEncoder if rerank else SentenceTransformer
        self._model = kind(model, device=device, model_kwargs={"dtype": getattr(torch, dtype)})
        self._batch_size = batch_size

    def embed(self, texts: list[str]) -> Any:
        found = self._model.encode(texts, batch_size=self._batch_size, normalize_embeddings=True)
        return found.astype("float32")

    def rank(self, query: str, documents: list[str]) -> Any:
        pairs = [(query, document) for document in documents]
        return self._model.predict(pairs, batch_size=self._batch_size).astype("float32")


class LlamaServer:
    """llama-server over HTTP, on this machine. ``flags`` are its command line's; ``clients`` ask at the same time.

    One client sends all texts in one request; several send a text each and wait for it.
    """

    def __init__(self, model: str, threads: int, program: str, flags: list[str], clients: int = 1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [program, "-m", model, "--host", "127.0.0.1", "--port", str(self._port), "-t", str(threads)]
        command += ["-tb", str(threads), "--embedding", *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._log: list[str] = []
        threading.Thread(target=self._read_log, daemon=True).start()
        self._clients = clients
        self._wait_until_it_answers()
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        lines = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("version")]
        self.name = f"llama-server {lines[0] if lines else ''}".strip()

    def embed(self, texts: list[str]) -> Any:
        if self._clients == 1:
            return self._vectors(self._connection(), texts)
        found: list[Any] = [None] * len(texts)
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(texts)):
            waiting.put(index)
        failures: list[BaseException] = []

        def client() -> None:
            connection = self._connection()
            try:
                while not failures:
                    index = waiting.get_nowait()
                    found[index] = self._vectors(connection, [texts[index]])[0]
            except queue.Empty:
                return
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=client) for _ in range(self._clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return found

    def rank(self, query: str, documents: list[str]) -> Any:
        answer = self._post(self._connection(), "/v1/rerank", {"query": query, "documents": documents})
        scores = {row["index"]: row["relevance_score"] for row in answer["results"]}
        return [scores[index] for index in range(len(documents))]

    def peak_bytes(self) -> int:
        """Of the server, not of its client; 0 where the system does not say."""
        return _peak_of(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _vectors(self, connection: http.client.HTTPConnection, texts: list[str]) -> list[tuple[float, ...]]:
        answer = self._post(connection, "/v1/embeddings", {"input": texts, "encoding_format": "base64"})
        rows = sorted(answer["data"], key=lambda row: row["index"])
        raw = [base64.b64decode(row["embedding"]) for row in rows]
        return [struct.unpack(f"<{len(row) // 4}f", row) for row in raw]

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=3600)

    def _post(self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> Any:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"llama-server answers {response.status}: {answer}")
        return answer

    def _wait_until_it_answers(self) -> None:
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"llama-server ended with {self._process.returncode}: {''.join(self._log[-5:])}")
            try:
                connection = self._connection()
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.append(line.decode(errors="replace"))
            del self._log[:-50]


KINDS: dict[str, Callable[..., Any]] = {
    "edge-embed": EdgeEmbed,
    "llama-cpp-python": LlamaCppPython,
    "sentence-transformers": SentenceTransformers,
    "llama-server": LlamaServer,
}


def peak_bytes(engine: Any) -> int:
    """Most memory that the engine's process held, or a child of it (edge-embed tries a new model in one)."""
    if isinstance(engine, LlamaServer):
        return engine.peak_bytes()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_of(pid: int) -> int:
    """``VmHWM`` of a running process, which is what ``ru_maxrss`` will be at its end."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def answer(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run one request."""
    each: list[float] = []
    results: Any = []
    start = time.perf_counter()
    if request["job"] == "embed":
        results = engine.embed(request["texts"])
    elif request["job"] == "rank":
        results = engine.rank(request["query"], request["documents"])
    else:
        for text in request["texts"]:
            began = time.perf_counter()
            results.append(engine.embed([text])[0])
            each.append(time.perf_counter() - began)
    seconds = time.perf_counter() - start
    kept = [row if isinstance(row, float) else [float(x) for x in row] for row in _plain(results)]
    return {
        "seconds": seconds,
        "each": each,
        "peak_mb": peak_bytes(engine) / 1e6,
        "results": kept if request.get("keep") else [],
    }


def _plain(results: Any) -> list[Any]:
    return results.tolist() if hasattr(results, "tolist") else list(results)


def main() -> None:
    """Answer requests until stdin ends."""
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = sys.stdout
    sys.stdout = sys.stderr  # a library's chatter must not get between the answers

    def write(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    engine = None
    try:
        try:
            engine = KINDS[kind](**settings)
            if settings.get("rerank") or "--reranking" in settings.get("flags", ()):
                engine.rank(WARM_UP[0], WARM_UP)
            else:
                engine.embed(WARM_UP)
            write({"name": engine.name})
            for line in sys.stdin:
                write(answer(engine, json.loads(line)))
        except Exception as error:
            write({"error": f"{type(error).__name__}: {error}"})
    finally:
        if isinstance(engine, LlamaServer):
            engine.close()


if __name__ == "__main__":
    main()
