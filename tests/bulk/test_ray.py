"""The real Ray on this machine: `make test-ray`. Two engines give what one gives, whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.bulk import manifest
from edge_embed.bulk.cluster import Cluster, memory_need
from edge_embed.bulk.examine import job_of
from edge_embed.bulk.job import Job, Request
from edge_embed.bulk.running import Run
from edge_embed.errors import ClusterError, EngineMemoryError, InputFileError, InvalidOptionError, TextTooLongError
from tests.bulk.conftest import read, rows, write
from tests.bulk.stores import Store
from tests.commands import COMMAND, free_port

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # what Ray warns of is Ray's own

N, BLOCK = 1200, 40
TWO = ["--engine", "ray", "--workers", "2"]
LOCAL = ["--engine", "local"]
WAIT = 900  # seconds: Ray itself needs a minute where its processes share two cores with others
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two cores, as Ray counts them, for the tests that talk to Ray themselves; commands start their own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    yield ray
    ray.shutdown()


def command(path: str | Path, out: str | Path, *engine: str) -> list[str]:
    return [*COMMAND, "embed", str(path), "--column", "body", "--block-rows", str(BLOCK), "-o", str(out), *engine]


def embed(path: str | Path, out: str | Path, *engine: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, out, *engine), capture_output=True, text=True, timeout=WAIT)


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stderr


def job(folder: Path, **more: Any) -> Job:
    path = write(folder / "in.parquet", rows(more.pop("n", N)))
    return job_of(Request((str(path),), str(folder / "out"), column="body", block_rows=BLOCK, **more))


def same_bytes(one: Path, other: Path) -> bool:
    """Block by block; a job that the library was given, and not the command, has another digest in its names."""
    parts = [{part.name.split("-")[1]: part.read_bytes() for part in folder.glob("part-*")} for folder in (one, other)]
    return parts[0] == parts[1] and len(parts[0]) == -(-N // BLOCK)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one engine makes of the rows, in Parquet; the folder of its input, too."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder / "in.parquet", rows(N))
    good(embed(folder / "in.parquet", folder / "out", *LOCAL))
    return folder / "out"


def test_two_workers_give_the_vectors_of_one(whole: Path, tmp_path: Path) -> None:
    """Bit for bit, and those of the library itself; the files are the same to the byte."""
    said = good(embed(whole.parent / "in.parquet", tmp_path / "out", *TWO))
    assert "2 workers" in said
    assert same_bytes(whole, tmp_path / "out")
    found = read(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(N))
    with Embedder() as embedder:
        expected = embedder.encode([row["body"] for row in rows(N)])
    np.testing.assert_array_equal(np.array([row["embedding"] for row in found], dtype=np.float32), expected)


@pytest.mark.parametrize("kind", ["jsonl", "lance"])
def test_every_format_through_workers(whole: Path, tmp_path: Path, cluster: Any, kind: str) -> None:
    """By those of a cluster that is there already."""
    path = write(tmp_path / f"in.{kind}", rows(N))
    out = tmp_path / f"out.{kind}"
    good(embed(path, out, *TWO, "--address", cluster.get_runtime_context().gcs_address))
    found = [(row["id"], np.float32(row["embedding"]).tobytes()) for row in read(out)]
    assert found == [(row["id"], np.float32(row["embedding"]).tobytes()) for row in read(whole)]


def test_a_killed_worker_loses_no_row_and_doubles_none(whole: Path, tmp_path: Path, cluster: Any) -> None:
    """Each of two workers is killed once while it works; others take their place and do the blocks again."""
    run = Run(job_of(_like(whole, tmp_path / "out")), Cluster(workers=2))
    seen: Counter[int] = Counter()
    killed: set[int] = set()
    for done in run.steps():
        seen[done.number] += 1
        if len(killed) < 2 and done.process not in killed and len(seen) > 4 * len(killed):
            os.kill(done.process, signal.SIGKILL)
            killed.add(done.process)
    assert len(killed) == 2
    assert seen == Counter(range(N // BLOCK))
    assert same_bytes(whole, tmp_path / "out")
    assert [row["id"] for row in read(tmp_path / "out")] == list(range(N))
    found = manifest.load(str(tmp_path / "out"))
    assert found is not None
    assert found.complete
    assert not list((tmp_path / "out").glob("_unfinished*"))


def _like(whole: Path, out: Path) -> Request:
    return Request((str(whole.parent / "in.parquet"),), str(out), column="body", block_rows=BLOCK)


def test_a_run_that_is_killed_whole_goes_on(whole: Path, tmp_path: Path) -> None:
    """With its cluster, by SIGKILL, in the middle; what was done is not done again."""
    out = tmp_path / "out"
    process = subprocess.Popen(command(whole.parent / "in.parquet", out, *TWO), start_new_session=True)
    try:
        _wait(lambda: len(list(out.glob("part-*"))) >= 4, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(2)  # Ray's processes notice that their driver is gone
    before = {part.name: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert 4 <= len(before) < N // BLOCK
    said = good(embed(whole.parent / "in.parquet", out, *TWO))
    assert f"{BLOCK * len(before)} of {N} texts were done before" in said
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    assert same_bytes(whole, out)


def _wait(ready: Any, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + WAIT
    while not ready():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.01)


def test_an_interrupt_says_what_is_kept(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(whole.parent / "in.parquet", out, *TWO), stderr=subprocess.PIPE, text=True)
    _wait(lambda: len(list(out.glob("part-*"))) >= 2, process)
    process.terminate()
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode != 0
    assert f"of {N} texts are kept: the same command goes on" in said


def test_what_a_worker_meets_has_its_type(tmp_path: Path, cluster: Any) -> None:
    """Counted from the beginning of the input, and the rest is kept."""
    found = rows(300)
    found[130]["body"] = "word " * 600
    path = write(tmp_path / "in.parquet", found)
    request = Request(
        (str(path),), str(tmp_path / "out"), column="body", block_rows=BLOCK, encode={"truncate": "error"}
    )
    with pytest.raises(TextTooLongError, match="text 130 has"):
        Run(job_of(request), Cluster(workers=2)).finish()
    found[130]["body"] = "short"
    again = job_of(request)
    write(path, found)
    with pytest.raises(InputFileError, match="was changed while it was read"):
        Run(again, Cluster(workers=2)).finish()


def test_a_block_that_ends_every_worker_ends_the_run(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_embed.bulk import cluster as ours

    class Dying(ours.RayWorker):
        def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
            if rows["number"][0] == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(rows)

    monkeypatch.setattr(ours, "RayWorker", Dying)
    monkeypatch.setattr(ours, "RETRIES", 1)
    with pytest.raises(ClusterError, match="Ray gave up"):
        Run(job(tmp_path, n=400), Cluster(workers=2)).finish()
    monkeypatch.undo()
    Run(job_of(_like(tmp_path / "out", tmp_path / "out"))).finish()
    assert [row["id"] for row in read(tmp_path / "out")] == list(range(400))


def test_what_the_cluster_has_no_room_for(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    some = job(tmp_path, n=10)
    with pytest.raises(InvalidOptionError, match="3 workers need more cores"):
        next(Cluster(workers=3)(some, []))
    assert memory_need(some, 0) > 400 << 20
    monkeypatch.setattr("edge_embed.bulk.cluster.BESIDE_MODEL", 1 << 50)
    with pytest.raises(EngineMemoryError, match="has room for 0"):
        next(Cluster(workers=2)(some, []))


def test_an_address_where_no_cluster_is(tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", rows(10))
    done = embed(tmp_path / "in.parquet", tmp_path / "out", *TWO, "--address", "127.0.0.1:1")
    assert done.returncode == 5
    assert "the cluster at 127.0.0.1:1 cannot be used" in done.stderr


def test_a_store_that_speaks_s3(whole: Path, tmp_path: Path, store: Store) -> None:
    """From a bucket into a bucket, by two workers; what is missing there, one engine without Ray adds."""
    store.put("in/a.parquet", whole.parent / "in.parquet")
    uri, out = store.uri("in"), store.uri("deep/vectors")
    assert f"{N} texts in" in good(embed(uri, out, *TWO))
    names = sorted(store.files("deep/vectors"))
    assert names == sorted([manifest.NAME, *(name for name in names if name.startswith("part-"))])
    assert same_bytes(whole, store.copy("deep/vectors", tmp_path / "copied"))
    store.delete(f"deep/vectors/{names[-1]}")
    assert f"{N - BLOCK} of {N} texts were done before" in good(embed(uri, out, *LOCAL))
    assert same_bytes(whole, store.copy("deep/vectors", tmp_path / "again"))


def test_replicas_of_the_server(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/ray_serve.py: two replicas behind one address give OpenAI's client the library's own vectors."""
    import openai
    from ray import serve

    monkeypatch.setenv("EDGE_EMBED_REPLICAS", "2")
    monkeypatch.setenv("EDGE_EMBED_THREADS", "1")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import ray_serve

    port = free_port()
    texts = ["A cat sleeps.", "Interest rates rose.", "咖啡"]
    with Embedder() as embedder:
        expected = embedder.encode(texts)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(ray_serve.app, route_prefix="/")
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=WAIT) as client:
            assert [model.id for model in client.models.list()] == ["all-minilm-l6-v2"]
            for _ in range(20):
                answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts)
                np.testing.assert_array_equal(np.float32([row.embedding for row in answer.data]), expected)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=WAIT) as answered:
            assert answered.status == 200
        status = serve.status().applications["default"].deployments["edge-embed"]
        assert status.replica_states == {"RUNNING": 2}
    finally:
        serve.shutdown()
