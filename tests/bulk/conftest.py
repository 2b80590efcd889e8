"""Tables of few and of many words, and a model that answers in milliseconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from edge_embed import types
from edge_embed.testing import FakeEngine, fake_embedder
from tests.bulk.stores import Server, Store
from tests.commands import run

N_ROWS = 500
FORMATS = ("parquet", "jsonl", "lance")
Made = Callable[..., Path]


def rows(count: int = N_ROWS, seed: int = 0) -> list[dict[str, Any]]:
    """``id``, ``body`` and a number that is not always there."""
    chosen = random.Random(seed)
    words = ["bees", "navigate", "by", "the", "sun", "naïve", "咖啡"]
    return [
        {
            "id": i,
            "body": " ".join([str(i), *chosen.choices(words, k=chosen.randrange(9))]),
            "score": i / 3 if i % 5 else None,
        }
        for i in range(count)
    ]


def write(path: Path, records: list[dict[str, Any]], **more: Any) -> Path:
    """A table of the kind that its name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    elif path.suffix == ".lance":
        lancedb.connect(path.parent).create_table(path.stem, pa.Table.from_pylist(records))
    else:
        pq.write_table(pa.Table.from_pylist(records), path, **more)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of an output, in the order of its files."""
    if path.suffix == ".lance":
        return list(lancedb.connect(path.parent).open_table(path.stem).to_arrow().to_pylist())
    found: list[dict[str, Any]] = []
    for part in sorted(path.glob("part-*")):
        if part.suffix == ".jsonl":
            found += map(json.loads, part.read_text(encoding="utf-8").splitlines())
        else:
            found += pq.read_table(part).to_pylist()
    return found


def embed(*arguments: str | Path, engine: str = "local") -> Result:
    """The command, in this process, in blocks of 64 rows."""
    return run("embed", "--engine", engine, "--column", "body", "--block-rows", "64", *arguments)


def good(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def expected(**options: Any) -> Any:
    """The vectors of ``rows()``."""
    return fake_embedder().embed([row["body"] for row in rows()], **options).vectors


class Stopping(FakeEngine):
    """Counts batches, and fails once it was given so many."""

    error: BaseException = KeyboardInterrupt()
    limit = 1 << 30

    def decode(self, batch: types.Batch, *rest: Any, **more: Any) -> types.Float32Array:
        if len(self.batches) >= self.limit:
            raise self.error
        return super().decode(batch, *rest, **more)


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the fake model says it is of."""
    path = tmp_path_factory.mktemp("model") / "fake.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, model: Path) -> Stopping:
    """What a worker gets for a model."""
    engine = Stopping(n_batch=2048, n_seq_max=32)

    def opened(*_: object, **__: object) -> Any:
        embedder = fake_embedder(engine)
        embedder.info = replace(embedder.info, path=str(model))
        return embedder

    monkeypatch.setattr(engine, "close", lambda: None)
    monkeypatch.setattr("edge_embed.embedder.Embedder", opened)
    monkeypatch.setattr("edge_embed.catalogue.resolve", lambda *_: model)
    return engine


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A new bucket, and the environment that names where it is and with which keys, as other programs read it, too."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a+secret/of=its",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return server.bucket()
