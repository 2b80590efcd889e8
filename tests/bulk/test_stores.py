"""Jobs from a store that speaks S3 into that store, over HTTP, their checkpoints there, too."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from edge_embed.bulk import manifest, storage
from edge_embed.cli.app import INTERRUPTED
from edge_embed.errors import (
    EdgeEmbedError,
    InputFileError,
    InvalidOptionError,
    OutputFileError,
    ResumeError,
    exit_code,
)
from tests.bulk.conftest import FORMATS, N_ROWS, Stopping, embed, expected, good, read, rows, write
from tests.bulk.stores import Store


def result_of(store: Store, key: str, to: Path) -> list[dict[str, object]]:
    """The rows of an output in the store; their vectors are those of ``rows()``."""
    found = read(store.copy(key, to / Path(key).name))
    assert [{name: row.get(name) for name in ("id", "body", "score")} for row in found] == rows()
    np.testing.assert_array_equal(np.array([row["embedding"] for row in found], dtype=np.float32), expected())
    return found


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_from_a_bucket_into_a_bucket(engine: Stopping, store: Store, tmp_path: Path, source: str, target: str) -> None:
    """The store is where the environment says; nothing but the output and its manifest is left there."""
    uri = store.put(f"in.{source}", write(tmp_path / f"in.{source}", rows()))
    out = "vectors.lance" if target == "lance" else "deep/vectors"
    command = (uri, "-o", store.uri(out), "--output-format", target)
    assert f"{N_ROWS} texts in" in good(embed(*command)).stderr
    result_of(store, out, tmp_path)
    if target != "lance":
        found = manifest.load(store.uri(out))
        assert found is not None
        assert found.complete
        assert len(store.files(out)) == 1 + -(-N_ROWS // 64)
    assert {name.split("/")[0] for name in store.files("")} == {f"in.{source}", out.split("/")[0]}
    assert "complete already" in good(embed(*command)).stderr


@pytest.mark.parametrize("kind", FORMATS)
def test_an_ended_job_goes_on_there(engine: Stopping, store: Store, tmp_path: Path, kind: str) -> None:
    """Blocks that are in the store are not done again, whoever goes on."""
    uri = store.put("in.jsonl", write(tmp_path / "in.jsonl", rows()))
    out = "out.lance" if kind == "lance" else "out"
    parts = "out.lance.parts" if kind == "lance" else "out"
    command = (uri, "-o", store.uri(out), "--output-format", kind)
    engine.limit = 10
    result = embed(*command)
    assert (result.exit_code, f"of {N_ROWS} texts are kept" in result.stderr) == (INTERRUPTED, True), result.output
    before = store.files(parts)
    assert 0 < len(before) - 1 < -(-N_ROWS // 64)
    engine.limit = 1 << 30
    n_before = 64 * (len(before) - 1)
    assert f"{n_before} of {N_ROWS} texts were done before" in good(embed(*command)).stderr
    result_of(store, out, tmp_path)
    after = store.files(parts)
    if kind == "lance":
        assert after == {}
    else:
        done = {name: about for name, about in before.items() if name.startswith("part-")}
        assert {name: after[name] for name in done} == done
        assert not storage.unfinished(list(after))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_store_that_the_uri_names(
    engine: Stopping, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Address, keys and region in a URI reach LanceDB, too, and are shown and written nowhere."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    query = f"?endpoint_override={store.server.address}&scheme=http&region=eu-central-1"
    store.put(f"in.{kind}", write(tmp_path / f"in.{kind}", rows()))
    secret = "a+secret/of=its"
    place = f"s3://key:{quote(secret, safe='')}@{store.name}"
    out = "out.lance" if kind == "lance" else "out"
    said = good(embed(f"{place}/in.{kind}{query}", "-o", f"{place}/{out}{query}"))
    result_of(store, out, tmp_path)
    copied = store.copy(out, tmp_path / "copied")
    for data in (said.output.encode(), *(path.read_bytes() for path in copied.rglob("*") if path.is_file())):
        assert secret.encode() not in data
        assert quote(secret, safe="").encode() not in data
        assert b"endpoint_override" not in data


def test_a_folder_of_files_with_strange_names(
    engine: Stopping, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that knows milliseconds, where the single file says whole seconds, is no change of the file."""
    from moto.s3.models import FakeKey

    whole = FakeKey.last_modified_ISO8601.fget
    monkeypatch.setattr(FakeKey, "last_modified_ISO8601", property(lambda key: whole(key).replace(".000Z", ".123Z")))
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    write(folder / "a b#1 100%.parquet", rows()[:200])
    write(folder / "more" / "c+d?é.parquet", rows()[200:])
    write(folder / "_hidden.parquet", rows())
    uri = store.put("in", folder)
    (one, *_), _ = listed = storage.files_below(uri)
    assert [found[2] % 10**9 for found in listed] == [0, 0]
    assert storage.identity(one) == storage.identity_of(*listed[0][1:])
    good(embed(uri, "-o", store.uri("out")))
    result_of(store, "out", tmp_path)


def test_input_there_that_changes_meanwhile_ends_the_job(engine: Stopping, store: Store, tmp_path: Path) -> None:
    from edge_embed.bulk.examine import job_of
    from edge_embed.bulk.job import Request
    from edge_embed.bulk.running import Run

    uri = store.put("in.parquet", write(tmp_path / "in.parquet", rows()))
    run = Run(job_of(Request((uri,), store.uri("out"), column="body", block_rows=64)))
    store.put("in.parquet", write(tmp_path / "in.parquet", rows(N_ROWS + 1)))
    with pytest.raises(InputFileError, match="was changed while it was read"):
        run.finish()
    result = embed(uri, "-o", store.uri("out"))
    assert (result.exit_code, "input was" in result.stderr) == (exit_code(ResumeError("")), True), result.output
    good(embed(uri, "-o", store.uri("out"), "--no-resume"))
    assert len(read(store.copy("out", tmp_path / "out"))) == N_ROWS + 1


@pytest.mark.parametrize(
    ("source", "out", "error", "said"),
    [
        ("none.parquet", "out", InputFileError, "none.parquet is not there"),
        ("none.lance", "out", InputFileError, "is no Lance table"),
        ("in.parquet", "out?nonsense=1", InvalidOptionError, "nonsense"),
    ],
)
def test_what_is_not_there(
    engine: Stopping, store: Store, tmp_path: Path, source: str, out: str, error: type[EdgeEmbedError], said: str
) -> None:
    store.put("in.parquet", write(tmp_path / "in.parquet", rows()))
    result = embed(store.uri(source), "-o", store.uri(out))
    assert (result.exit_code, said in result.stderr) == (exit_code(error("")), True), result.output


def test_a_bucket_that_is_not_there_is_not_made(engine: Stopping, store: Store, tmp_path: Path) -> None:
    uri = store.put("in.parquet", write(tmp_path / "in.parquet", rows()))
    result = embed(uri, "-o", "s3://nobody-has-this/out")
    assert (result.exit_code, "Bucket 'nobody-has-this' not found" in result.stderr) == (
        exit_code(OutputFileError("")),
        True,
    ), result.output


def test_options_of_lancedb_win_over_what_the_uri_says() -> None:
    uri = "s3://k:s%2F@bucket/a?endpoint_override=https%3A%2F%2Fhost&region=r"
    assert storage.lance_place(uri, {"aws_region": "other"}) == (
        "s3://bucket/a",
        {
            "aws_access_key_id": "k",
            "aws_secret_access_key": "s/",
            "aws_region": "other",
            "aws_endpoint": "https://host",
        },
    )
    assert storage.lance_place("gs://bucket/a?x=1", {}) == ("gs://bucket/a", {})
    assert storage.lance_place("/folder/a?b", {}) == ("/folder/a?b", {})
