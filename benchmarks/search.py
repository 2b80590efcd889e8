"""Search over a folder: quality, kills and speed. ``python -m benchmarks.search WHAT --data DIR --work DIR``.

``quality``: SciFact's documents as files, indexed and searched through ``edge_embed.search``; nDCG@10 of each mode, and
of the same vectors compared by NumPy. ``kills``: 10,000 files of real sentences, indexed by processes that are killed
at random, beside an undisturbed run. ``speed``: questions to a database of 100,000 chunks with random vectors (the
comparison does not depend on them) and whose texts are SciFact's sentences, repeated. What is in ``--work`` from an
earlier run is used: indexing goes on where it was.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import beir, mbpp, stsb, tatoeba
from benchmarks.machine import machine_line
from benchmarks.metrics import ndcg
from edge_embed import Embedder
from edge_embed.postprocess import unit
from edge_embed.search.database import Database
from edge_embed.search.indexing import Indexer
from edge_embed.search.record import make_record
from edge_embed.search.scan import root_of
from edge_embed.search.searching import Query, embed_query, search
from edge_embed.search.types import Chunk, Mode

N_FILES, N_CHUNKS, N_KILLS = 10_000, 100_000, 5
WARM_UP, ASKED = 30, 300


def quality(data: Path, work: Path) -> None:
    """nDCG@10 on SciFact; of a document the best chunk counts."""
    documents, queries, qrels = beir(data / "scifact")
    folder = _files(work / "scifact", documents)
    with Embedder() as embedder, Database(work / "scifact-db", make_record(embedder)) as database:
        started = time.perf_counter()
        report = Indexer(database, embedder, show_progress_bar=True).update([root_of(folder)])
        seconds = time.perf_counter() - started
        print(f"{report.n_files} files, {report.n_chunks} chunks, {report.n_embedded} embedded now in {seconds:.0f} s")
        print(f"of at most {database.record.chunk_tokens} tokens; short vectors of {database.record.short} values")
        vectors = {query: embed_query(embedder, database, text) for query, text in queries.items()}
        ways: dict[str, tuple[Mode, bool]] = {
            "dense, short then full": ("dense", True),
            "dense, full": ("dense", False),
            "text (BM25)": ("text", True),
            "hybrid": ("hybrid", True),
        }
        for name, (mode, short) in ways.items():
            scores = []
            for query, text in queries.items():
                asked = Query(text, mode=mode, short=short, per_file=1)
                hits = search(database, asked, vectors[query])
                scores.append(ndcg([Path(hit.path).stem for hit in hits], qrels[query]))
            print(f"{name:24} nDCG@10 {np.mean(scores):.4f}")
        print(f"{'NumPy, the same vectors':24} nDCG@10 {_by_numpy(database, vectors, qrels):.4f}")


def _by_numpy(database: Database, vectors: dict[str, Any], qrels: dict[str, dict[str, int]]) -> float:
    table = database._connection.open_table("chunks").to_arrow()
    rows = np.stack(table.column("vector").to_numpy())
    names = [Path(path).stem for path in table.column("path").to_pylist()]
    scores = []
    for query, vector in vectors.items():
        order = np.argsort(-(rows @ vector), kind="stable")[:200]
        scores.append(ndcg(list(dict.fromkeys(names[i] for i in order))[:10], qrels[query]))
    return float(np.mean(scores))


def kills(data: Path, work: Path) -> None:
    """The rows of an interrupted run beside those of an undisturbed one."""
    first, second, _ = stsb(data)
    texts = list(dict.fromkeys([*first, *second, *tatoeba(data), *mbpp(data)]))[:N_FILES]
    folder = _files(work / "sentences", {str(i): text for i, text in enumerate(texts)})
    command = [sys.executable, "-m", "edge_embed.cli", "index", str(folder), "--no-progress"]
    chance = random.Random(11)
    for name in ("killed", "undisturbed"):
        shutil.rmtree(work / name, ignore_errors=True)
    for _ in range(N_KILLS):
        process = subprocess.Popen([*command, "--db", str(work / "killed")])
        while not (work / "killed" / "files.lance").exists():
            time.sleep(0.05)
        try:
            process.wait(chance.uniform(3, 6))  # the model is loaded after 2 s on an idle machine
            print("it ended by itself")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with Database(work / "killed") as database:
            print(f"killed with {database.count()} rows, {len(database.files())} files recorded")
    for name in ("killed", "undisturbed"):
        subprocess.run([*command, "--db", str(work / name)], check=True)
    one, other = (_rows(work / name) for name in ("killed", "undisturbed"))
    same = one.keys() == other.keys() and all(one[key][0] == other[key][0] for key in one)
    apart = max(float(np.abs(one[key][1] - other[key][1]).max()) for key in one) if same else float("nan")
    print(f"{len(texts)} files, {N_KILLS} kills: {len(one)} and {len(other)} rows, the same: {same}")
    print(f"values differ by at most {apart}")


def _rows(path: Path) -> dict[tuple[str, int], tuple[str, Any]]:
    with Database(path) as database:
        table = database._connection.open_table("chunks").to_arrow()
        columns = [table.column(name).to_pylist() for name in ("path", "ordinal", "text")]
        rows = [
            ((file, place), (text, vector))
            for file, place, text, vector in zip(*columns, table.column("vector").to_numpy(), strict=True)
        ]
        assert len(dict(rows)) == len(rows), "rows are there twice"
        return dict(rows)


def speed(data: Path, work: Path) -> None:
    """Milliseconds of a question, its embedding included, by mode."""
    documents, queries, _ = beir(data / "scifact")
    sentences = [part for text in documents.values() for part in text.split(". ") if len(part) > 40]
    rng = np.random.default_rng(5)
    with Embedder() as embedder, Database(work / "large-db", make_record(embedder)) as database:
        record = database.record
        for start in range(database.count(), N_CHUNKS, 10_000):
            vectors = unit(rng.standard_normal((10_000, record.dimensions)).astype(np.float32))
            rows = [
                (f"/files/{i // 10}.txt", "d", "text", i % 10, Chunk(sentences[i % len(sentences)]))
                for i in range(start, start + 10_000)
            ]
            database.add(rows, vectors, unit(vectors[:, : record.short]))
        database.optimize()
        asked = list(queries.values())
        for mode in ("dense", "text", "hybrid"):
            times = []
            for text in asked[: WARM_UP + ASKED]:
                started = time.perf_counter()
                query = Query(text, mode=mode)  # type: ignore[arg-type]
                search(database, query, embed_query(embedder, database, text) if query.needs_vector else None)
                times.append(1000 * (time.perf_counter() - started))
            p50, p95 = np.percentile(times[WARM_UP:], [50, 95])
            print(f"{mode:8} {database.count()} chunks, {ASKED} questions: p50 {p50:.1f} ms, p95 {p95:.1f} ms")


def _files(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / f"{name}.txt"
        if not path.exists():
            path.write_text(text, encoding="utf-8")
    return folder


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("quality", "kills", "speed"))
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for files and databases")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(machine_line())
    {"quality": quality, "kills": kills, "speed": speed}[options.what](options.data, options.work)


if __name__ == "__main__":
    main()
