"""The 0.6B shape of Qwen3-Embedding and Qwen3-Reranker in Q4_K_M beside its peers, in one run.

    python -m benchmarks.qwen3 --data DIR --work FOLDER \\
        --llama-server PROGRAM --peer-python PYTHON --stock-python PYTHON

What is measured, each a table of its own (``--only`` chooses):

* documents: abstracts of SciFact with their titles, tokens/s;
* queries: SciFact's queries with Qwen3's instruction before them, 60 in a call, queries/s;
* single: the same, one in a call, milliseconds;
* rerank: one query and 50 documents of about 100 tokens, pairs/s;
* memory: peak with a context of 8,192 tokens (``--context``), after documents and after one text that fills it.

Peers run in environments of their own, and one that is not there is a row that says so:

* ``--llama-server``: llama.cpp's server, built from the sources of llama-cpp-python (``vendor/llama.cpp``);
* ``--stock-python``: an interpreter with llama-cpp-python as pip builds it; its ``Llama.embed``;
* ``--peer-python``: an interpreter with sentence-transformers, run in float32 and in bfloat16;
* ``--also NAME=JSON``: this project once more with other arguments, e.g. ``--also 'BF16={"model": "m.gguf"}'``;
* ``--openvino ENGINE``: this project in BF16 and Q8_0 on llama.cpp's libraries with the OpenVINO backend, by their name
  in ``edge-embed engine list`` or their folder, and, to compare, the same files on the CPU's own kernels.

``--device cuda:0`` has this project compute there, llama-server with all layers on a GPU, and sentence-transformers on
it if it is CUDA; llama-cpp-python, which pip builds for the processor, is left out. ``--model`` takes another GGUF with
the same vocabulary, such as ``shape4b``'s, for this project and llama.cpp's.

Each is first tried with several settings on work of the same kind, and measured with its best (see the table). Every
engine has a process of its own and they stay loaded together, which takes some 14 GB. Weights are random, of the
published shape, with the real tokenizer (``shape06``); the last column says how far the results are from ours.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.datasets import beginning, beir, long_documents
from benchmarks.machine import machine_line
from benchmarks.peers import OURS, Engine, Peer, PeerError, Variant, available, compare, table, versions
from benchmarks.shape06 import Shape06
from edge_embed.engine.devices import default_threads
from edge_embed.gguf_header import read_header

INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
SERVER_CONTEXT = 8192  # tokens of all slots of llama-server together, where speed is measured
SCENARIOS = ("documents", "queries", "single", "rerank", "memory")

# Flags of llama-server that are tried: slots, tokens of a batch, one KV cache for all slots or one for each, weights
# repacked for the processor or not, and one request with all texts or several clients at a time. Its cache of prompts
# is off: an embedding never uses it, and it would only cost memory and time.
_BASE = ["-fa", "on", "--cache-ram", "0"]
_WAYS: tuple[tuple[list[str], int], ...] = (
    (["-np", "4", "-b", "2048", "-ub", "2048"], 1),
    (["-np", "4", "-b", "2048", "-ub", "2048"], 4),
    (["-np", "4", "-b", "512", "-ub", "512"], 1),
    (["-np", "16", "-b", "2048", "-ub", "2048", "-kvu"], 1),
    (["-np", "4", "-b", "2048", "-ub", "2048", "--no-repack"], 1),
)


def main() -> None:
    """Make what is missing, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of benchmarks.shape06")
    parser.add_argument("--type", default="q4_k_m", help="of the GGUFs")
    parser.add_argument("--llama-server", default="llama-server")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--stock-python", default=sys.executable)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--openvino", metavar="ENGINE")
    parser.add_argument("--device", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--documents", type=int, default=16, help="of a round")
    parser.add_argument("--queries", type=int, default=60, help="of a round")
    parser.add_argument("--singles", type=int, default=10, help="of a round")
    parser.add_argument("--pairs", type=int, default=50, help="of a rerank call")
    parser.add_argument("--context", type=int, default=8192, help="of the scenario memory")
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--one-way", action="store_true", help="each engine's first settings, untried")
    options = parser.parse_args()

    shape = Shape06(options.work)
    shape.make_checkpoints()
    engines = embedders(options, shape)
    tokenizer = Tokenizer.from_file(str(shape.checkpoint / "tokenizer.json"))
    documents, queries, _ = beir(options.data / "scifact")
    texts, asked = list(documents.values()), [INSTRUCTION + query for query in queries.values()]
    random.Random(0).shuffle(texts)
    random.Random(0).shuffle(asked)
    print(f"{machine_line(options.threads)}\n{Path(engines[0].model).name}, {options.rounds} rounds\n", flush=True)

    def run(title: str, rounds: list[dict[str, Any]], amounts: list[float], unit: str, among: list[Engine]) -> None:
        """The first of the rounds is for choosing settings."""
        trial, *counted = rounds
        check = {**trial, **{key: trial[key][:4] for key in ("texts", "documents") if key in trial}, "job": "embed"}
        if "query" in trial:
            check["job"] = "rank"
        rows = compare(among, counted, threads=options.threads, trial=trial, check=check)
        print(
            f"**{title}**\n\n{table(rows, amounts[1:], unit, scores='query' in trial)}\n\n{versions(rows)}\n",
            flush=True,
        )

    n_rounds = options.rounds + 1
    for scenario in options.only:
        if scenario == "documents":
            rounds = [{"job": "embed", "texts": part} for part in _parts(texts, options.documents, n_rounds)]
            tokens = [float(sum(_lengths(tokenizer, part["texts"]))) for part in rounds]
            run(f"{options.rounds} times {options.documents} documents", rounds, tokens, "tokens/s", engines)
        elif scenario == "queries":
            rounds = [{"job": "embed", "texts": part} for part in _parts(asked, options.queries, n_rounds)]
            amounts = [float(len(part["texts"])) for part in rounds]
            run(f"instructed queries, {options.queries} in a call", rounds, amounts, "queries/s", engines)
        elif scenario == "single":
            rounds = [{"job": "each", "texts": part} for part in _parts(asked, options.singles, n_rounds)]
            run("one instructed query in a call", rounds, [], "", engines)
        elif scenario == "rerank":
            short = [beginning(tokenizer, text, 100) for text in texts]
            rounds = [
                {"job": "rank", "query": query, "documents": part}
                for query, part in zip(queries.values(), _parts(short, options.pairs, n_rounds), strict=False)
            ]
            title = f"1 query and {options.pairs} documents of 100 tokens"
            run(title, rounds, [float(options.pairs)] * n_rounds, "pairs/s", rerankers(options, shape))
        else:
            peaks = memory(options, engines, tokenizer, texts)
            print(f"**peak memory, context of {options.context} tokens**\n\n{peaks}\n", flush=True)


def embedders(options: argparse.Namespace, shape: Shape06) -> list[Engine]:
    """The rows of the embedding model."""
    model, checkpoint = options.model or str(shape.embedder(options.type)), str(shape.checkpoint)
    rows = [_ours(options, model)]
    for text in options.also:
        name, _, given = text.partition("=")
        own = json.loads(given)
        other = own.pop("model", model)
        rows.append(Engine(f"{OURS} {name}", "edge-embed", sys.executable, other, (Variant("", {"arguments": own}),)))
    if options.openvino:
        for ftype in ("bf16", "q8_0"):
            file, name = str(shape.embedder(ftype)), ftype.upper()
            rows.append(Engine(f"{OURS} {name}", "edge-embed", sys.executable, file))
            chosen = {"EDGE_EMBED_ENGINE": options.openvino}
            rows.append(Engine(f"{OURS} {name}, OpenVINO", "edge-embed", sys.executable, file, environment=chosen))
    rows.append(_server(options, model, ["--pooling", "last"]))
    # Its batch is what it cuts texts at, so it is as large as the longest document.
    llama = [
        Variant(
            f"n_batch=2048, flash_attn={flash}",
            {"arguments": {"n_ctx": 2048, "n_batch": 2048, "n_ubatch": 2048, "flash_attn": flash}},
        )
        for flash in (True, False)
    ]
    engine = Engine("llama-cpp-python", "llama-cpp-python", options.stock_python, model, tuple(llama))
    on_gpu = bool(_layers(options))
    rows.append(replace(engine, missing="it is the processor's") if on_gpu else available(engine, "llama_cpp"))
    width = read_header(Path(model)).metadata["qwen3.embedding_length"]
    same = width == json.loads((shape.checkpoint / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    for dtype in ("float32", "bfloat16"):
        place = options.device if options.device.startswith("cuda") else "cpu"
        ways = [Variant(f"batch_size={n}", {"dtype": dtype, "batch_size": n, "device": place}) for n in (1, 4, 16, 60)]
        engine = Engine(
            f"sentence-transformers {dtype}", "sentence-transformers", options.peer_python, checkpoint, tuple(ways)
        )
        rows.append(available(engine, "sentence_transformers") if same else replace(engine, missing="no checkpoint"))
    return _first_ways(rows) if options.one_way else rows


def rerankers(options: argparse.Namespace, shape: Shape06) -> list[Engine]:
    """The rows of the reranker."""
    model = str(shape.reranker(options.type))
    rows = [
        _ours(options, model, rerank=True),
        _server(options, model, ["--reranking"], [way for way in _WAYS if way[1] == 1]),
    ]
    return _first_ways(rows) if options.one_way else rows


def memory(options: argparse.Namespace, engines: Sequence[Engine], tokenizer: Tokenizer, texts: list[str]) -> str:
    """A table of peaks, an engine at a time: a round of documents, then one text that fills the context."""
    context = options.context
    long = beginning(tokenizer, max(long_documents(options.data).values(), key=len), context - 10)
    lines = [
        f"| engine | {options.documents} documents, peak MB | a text of {context - 9} tokens, peak MB | its seconds |",
        "|---|---|---|---|",
    ]
    batch = min(context, 2048)
    usual = ["-c", str(context), "--pooling", "last", "-np", "4", "-b", str(batch), "-ub", str(batch)]
    # With several slots each has its share of the context, unless the KV cache is one for all.
    ways = (usual, [*_BASE, *usual, "-kvu"], [*_BASE, *usual, "-kvu", "-b", "512", "-ub", "512"])
    whole = {"n_ctx": context, "n_batch": context, "flash_attn": True}
    settings: dict[str, list[Variant]] = {
        "llama-server": [Variant(" ".join(way), {"program": options.llama_server, "flags": list(way)}) for way in ways],
        "llama-cpp-python": [Variant(f"n_ctx=n_batch={context}", {"arguments": whole})],
    }
    for engine in engines:
        for variant in settings.get(engine.kind, [engine.variants[0]]):
            name = f"{engine.name}{f' ({variant.label})' if variant.label else ''}"
            cells = _peaks(engine, variant, options.threads, texts[: options.documents], long)
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _peaks(engine: Engine, variant: Variant, threads: int, documents: list[str], long: str) -> list[str]:
    """The cells of a row; what an engine refuses is said in its cell."""
    if engine.missing:
        return [f"missing: {engine.missing}", "", ""]
    cells: list[str] = []
    peer = Peer(engine, variant, threads)
    try:
        peer.wait_until_ready()
        cells.append(f"{peer.ask({'job': 'embed', 'texts': documents})['peak_mb']:.0f}")
        found = peer.ask({"job": "embed", "texts": [long]})
        cells += [f"{found['peak_mb']:.0f}", f"{found['seconds']:.1f}"]
    except PeerError as error:
        reason = " ".join(str(error).split())[:150].replace("|", "/")
        cells = [*cells, f"failed: {reason}", "", ""][:3]
    finally:
        peer.close()
    return cells


def _ours(options: argparse.Namespace, model: str, **settings: Any) -> Engine:
    if options.device:
        settings["arguments"] = {"device": options.device}
    return Engine(OURS, "edge-embed", sys.executable, model, (Variant("", settings),))


def _server(
    options: argparse.Namespace, model: str, flags: list[str], ways: Sequence[tuple[list[str], int]] = _WAYS
) -> Engine:
    variants = tuple(
        Variant(
            f"{' '.join(more)}{f', {clients} clients' if clients > 1 else ''}",
            {
                "program": options.llama_server,
                "flags": [*_BASE, *_layers(options), "-c", str(SERVER_CONTEXT), *flags, *more],
                "clients": clients,
            },
        )
        for more, clients in ways
    )
    return available(Engine("llama-server", "llama-server", sys.executable, model, variants))


def _layers(options: argparse.Namespace) -> list[str]:
    """llama-server's layers on a GPU: all, or none where no device is named."""
    return ["-ngl", "999"] if options.device not in ("", "cpu") else []


def _first_ways(rows: Sequence[Engine]) -> list[Engine]:
    return [replace(row, variants=row.variants[:1]) for row in rows]


def _parts(texts: Sequence[str], size: int, n: int) -> list[list[str]]:
    """``n`` parts of ``size`` texts; from the beginning again where there are not enough."""
    many = list(texts) * (-(-size * n // len(texts)))
    return [many[start : start + size] for start in range(0, size * n, size)]


def _lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


if __name__ == "__main__":
    main()
