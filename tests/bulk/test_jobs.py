"""Tables through ``edge-embed embed --engine local``: every format, ended and continued, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edge_embed.bulk import cluster, manifest
from edge_embed.cli.app import INTERRUPTED
from edge_embed.errors import (
    ClusterError,
    InputFileError,
    InvalidOptionError,
    InvalidTextError,
    OutputFileError,
    ResumeError,
    exit_code,
)
from tests.bulk.conftest import FORMATS, N_ROWS, Stopping, embed, expected, good, read, rows, write
from tests.commands import run


def output(folder: Path, kind: str) -> Path:
    return folder / ("out.lance" if kind == "lance" else "out")


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_rows_keep_their_columns_order_and_vectors(engine: Stopping, tmp_path: Path, source: str, target: str) -> None:
    """Row groups that end in the middle of blocks among them; a file a block, or a table."""
    path = write(tmp_path / f"in.{source}", rows(), **({"row_group_size": 90} if source == "parquet" else {}))
    out = output(tmp_path, target)
    result = good(embed(path, "-o", out, "--output-format", target))
    assert f"{N_ROWS} texts in" in result.stderr
    found = read(out)
    assert [{name: row.get(name) for name in ("id", "body", "score")} for row in found] == rows()
    np.testing.assert_array_equal(np.array([row["embedding"] for row in found], dtype=np.float32), expected())
    if target == "lance":
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted({path.name, out.name})
    else:
        assert len(list(out.iterdir())) == 1 + -(-N_ROWS // 64)
    assert "complete already" in good(embed(path, "-o", out, "--output-format", target)).stderr


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "ubinary"])
@pytest.mark.parametrize("target", FORMATS)
def test_small_types_are_written_as_they_are(engine: Stopping, tmp_path: Path, precision: str, target: str) -> None:
    path = write(tmp_path / "in.parquet", rows())
    out = output(tmp_path, target)
    good(embed(path, "-o", out, "--output-format", target, "--precision", precision, "-d", "8", "--keep", "id"))
    found = read(out)
    assert [set(row) for row in found] == [{"id", "embedding"}] * N_ROWS
    vectors = expected(precision=precision, truncate_dim=8)
    np.testing.assert_array_equal(np.array([row["embedding"] for row in found]).astype(vectors.dtype), vectors)


def test_a_folder_is_its_files_by_name(engine: Stopping, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    all_rows = rows()
    write(folder / "b.parquet", all_rows[200:])
    write(folder / "a.parquet", all_rows[:200])
    write(folder / "_hidden.parquet", all_rows)
    (folder / "more" / "notes.txt").write_text("no table")
    good(embed(folder, "-o", tmp_path / "out"))
    assert [row["id"] for row in read(tmp_path / "out")] == list(range(N_ROWS))


def test_prompts_and_names_of_columns_reach_the_work(engine: Stopping, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", rows())
    good(embed(path, "-o", tmp_path / "out", "--document", "--vector-column", "v"))
    found = np.array([row["v"] for row in read(tmp_path / "out")], dtype=np.float32)
    np.testing.assert_array_equal(found, expected(role="document"))


def test_a_table_by_its_name_needs_no_engine(engine: Stopping, tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", rows())
    good(run("embed", "-f", path, "--field", "body", "-o", tmp_path / "out"))
    assert len(read(tmp_path / "out")) == N_ROWS


@pytest.mark.parametrize("kind", FORMATS)
def test_an_ended_job_goes_on(engine: Stopping, tmp_path: Path, kind: str) -> None:
    """Blocks that are there are not touched again; the result is the one of an undisturbed run."""
    path = write(tmp_path / "in.jsonl", rows())
    (tmp_path / "whole").mkdir()
    whole, out = output(tmp_path / "whole", kind), output(tmp_path, kind)
    command = [path, "--output-format", kind, "-o"]
    good(embed(*command, whole))
    undisturbed = len(engine.batches)
    engine.batches.clear()
    engine.limit = undisturbed // 2
    result = embed(*command, out)
    assert result.exit_code == INTERRUPTED
    assert f"of {N_ROWS} texts are kept" in result.stderr
    folder = tmp_path / "out.lance.parts" if kind == "lance" else out
    before = {part.name: part.stat().st_mtime_ns for part in folder.glob("part-*")}
    assert 0 < len(before) < -(-N_ROWS // 64)
    (folder / "_unfinished-00-part-00000007").write_text("what a killed worker leaves")
    engine.limit = 1 << 30
    assert f"{64 * len(before)} of {N_ROWS} texts were done before" in good(embed(*command, out)).stderr
    assert read(out) == read(whole)
    assert len(engine.batches) < undisturbed + 4
    if kind != "lance":
        assert before == {name: (folder / name).stat().st_mtime_ns for name in before}
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
        assert manifest.load(str(out)).complete  # type: ignore[union-attr]


def test_a_block_that_is_done_twice_is_there_once(engine: Stopping, tmp_path: Path) -> None:
    """Two workers with the same block, as after a worker was thought lost: the same bytes under the same name."""
    from edge_embed.bulk.blocks import cut
    from edge_embed.bulk.examine import job_of
    from edge_embed.bulk.job import Request
    from edge_embed.bulk.running import Run
    from edge_embed.bulk.worker import Worker

    path = write(tmp_path / "in.parquet", rows())
    job = job_of(Request((str(path),), str(tmp_path / "out"), column="body", block_rows=64))
    run_ = Run(job)
    blocks = list(cut(job.tables, 64))
    with Worker(job, elsewhere=True) as one, Worker(job, elsewhere=True) as other:
        other.do(blocks[5])
        name = next(p for p in (tmp_path / "out").glob("part-00000005-*"))
        before = name.read_bytes()
        for block in (blocks[7], blocks[5], blocks[0]):  # backwards, too
            one.do(block)
        assert name.read_bytes() == before
    run_.finish()
    assert [row["id"] for row in read(tmp_path / "out")] == list(range(N_ROWS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["-d", "8"], "truncate_dim was not given and is 8"),
        (["--document"], 'role was not given and is "document"'),
        (["--keep", "id"], "columns kept was"),
        (["--block-rows", "32"], "rows of a block was 64 and is 32"),
    ],
)
def test_another_job_is_refused_by_name(engine: Stopping, tmp_path: Path, change: list[str], said: str) -> None:
    path, out = write(tmp_path / "in.parquet", rows()), tmp_path / "out"
    good(embed(path, "-o", out))
    before = {part.name: part.read_bytes() for part in out.iterdir()}
    result = embed(path, "-o", out, *change)
    assert (result.exit_code, said in result.stderr) == (exit_code(ResumeError("")), True), result.stderr
    assert {part.name: part.read_bytes() for part in out.iterdir()} == before
    good(embed(path, "-o", out, *change, "--no-resume"))
    assert {part.name for part in out.iterdir()} & set(before) == {manifest.NAME}
    assert len({name.name.split("-")[2] for name in out.glob("part-*")}) == 1


def test_another_input_or_model_is_refused(engine: Stopping, tmp_path: Path, model: Path) -> None:
    path, out = write(tmp_path / "in.jsonl", rows()), tmp_path / "out"
    good(embed(path, "-o", out))
    model.write_bytes(b"other weights")
    assert "sha256 of the model was" in embed(path, "-o", out).stderr
    model.write_bytes(b"weights")
    assert "complete already" in good(embed(path, "-o", out)).stderr
    write(path, rows(seed=1))
    assert "input was" in embed(path, "-o", out).stderr


def test_a_lance_table_of_another_job_is_refused(engine: Stopping, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.lance", rows()), tmp_path / "out.lance"
    good(embed(path, "-o", out))
    assert "was made by another job" in embed(path, "-o", out, "-d", "8").stderr
    good(embed(path, "-o", out, "-d", "8", "--no-resume"))
    assert len(read(out)[0]["embedding"]) == 8
    strange = write(tmp_path / "strange.lance", rows())
    result = embed(path, "-o", strange, "--no-resume")
    assert "was not written by a job like this" in result.stderr
    assert read(strange) == rows()


def test_input_that_changes_meanwhile_is_noticed(engine: Stopping, tmp_path: Path) -> None:
    """Lance keeps the version that the job began with; of a file the job ends."""
    import lancedb

    from edge_embed.bulk.examine import job_of
    from edge_embed.bulk.job import Request
    from edge_embed.bulk.running import Run

    for kind in FORMATS:
        path = write(tmp_path / f"in.{kind}", rows())
        out = str(tmp_path / f"out-{kind}")
        run_ = Run(job_of(Request((str(path),), out, "jsonl", column="body", block_rows=64)))
        if kind == "lance":
            lancedb.connect(tmp_path).open_table("in").delete("id < 100")
            run_.finish()
            assert [row["id"] for row in read(Path(out))] == list(range(N_ROWS))
        else:
            write(path, rows(N_ROWS + 1))
            with pytest.raises(InputFileError, match="was changed while it was read"):
                run_.finish()


def test_a_folder_of_something_else_is_left_alone(engine: Stopping, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.parquet", rows()), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    result = embed(path, "-o", out)
    assert (result.exit_code, "thesis.tex is there" in result.stderr) == (exit_code(OutputFileError("")), True)
    assert "is not empty" in result.stderr
    good(embed(path, "-o", out, "--no-resume"))
    assert (out / "thesis.tex").read_text() == "years"


def test_a_manifest_that_cannot_be_used_is_no_reason_to_begin_again(engine: Stopping, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.parquet", rows()), tmp_path / "out"
    good(embed(path, "-o", out))
    (out / manifest.NAME).write_text('{"format": 2}')
    assert "cannot be used" in embed(path, "-o", out).stderr
    (out / manifest.NAME).unlink()
    assert "part-00000000" in embed(path, "-o", out).stderr


def bad_rows() -> list[dict[str, Any]]:
    found = rows(100)
    found[70]["body"] = None
    return found


@pytest.mark.parametrize(
    ("name", "make", "arguments", "error", "said"),
    [
        ("in.parquet", rows, ["--column", "boddy"], InputFileError, "no column 'boddy'"),
        ("in.jsonl", rows, ["--column", "boddy"], InputFileError, "no field 'boddy'"),
        ("in.lance", rows, ["--column", "id"], InputFileError, "holds int64, not texts"),
        ("in.parquet", rows, ["--keep", "title"], InputFileError, "no column 'title' to keep"),
        ("in.parquet", rows, ["--vector-column", "id"], InvalidOptionError, "has a column 'id'"),
        ("in.parquet", bad_rows, [], InputFileError, "rows without a value in 'body'"),
        ("in.lance", bad_rows, [], InputFileError, "rows without a value in 'body'"),
        ("in.jsonl", bad_rows, [], InputFileError, "line 71: the text is null"),
        ("in.parquet", rows, ["--output-format", "lance"], InvalidOptionError, "folder NAME.lance"),
    ],
)
def test_what_is_wrong_is_found_before_the_work(
    engine: Stopping, tmp_path: Path, name: str, make: Any, arguments: list[str], error: Any, said: str
) -> None:
    path = write(tmp_path / name, make())
    result = embed(path, "-o", tmp_path / "out", *arguments)
    assert (result.exit_code, said in result.stderr) == (exit_code(error("")), True), result.output
    assert not (tmp_path / "out").exists()
    assert engine.batches == []


def test_a_missing_text_that_no_statistics_name_is_found_in_its_place(engine: Stopping, tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", bad_rows(), write_statistics=False)
    result = embed(path, "-o", tmp_path / "out")
    assert (result.exit_code, "text 70 is missing" in result.stderr) == (exit_code(InvalidTextError("")), True)


def test_errors_count_texts_from_the_beginning(engine: Stopping, tmp_path: Path) -> None:
    found = rows()
    found[130]["body"] = "x" * 1000
    result = embed(write(tmp_path / "in.parquet", found), "-o", tmp_path / "out", "--truncate", "error")
    assert "text 130 has 1002 tokens" in result.stderr
    assert "128 of 500 texts are kept" in result.stderr


def test_inputs_that_are_no_table(engine: Stopping, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "in.csv").write_text("text\na\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    for name, said in (
        ("empty", "holds no table"), ("in.csv", "holds no table"), ("broken.parquet", "cannot be read"),
        ("none.parquet", "is not there"), ("none.lance", "no Lance table"),
    ):  # fmt: skip
        result = embed(tmp_path / name, "-o", tmp_path / "out")
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
    result = embed("other://bucket/in.parquet", "-o", tmp_path / "out")
    assert (result.exit_code, "cannot be used" in result.stderr) == (2, True), result.output


def test_tables_of_one_job_are_alike(engine: Stopping, tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", rows())
    other = write(tmp_path / "other.parquet", [{"body": "a"}])
    lines = write(tmp_path / "lines.jsonl", rows())
    assert "has other columns than" in embed(one, other, "-o", tmp_path / "out").stderr
    assert "several formats: jsonl, parquet" in embed(one, lines, "-o", tmp_path / "out").stderr
    assert "lie in each other" in embed(tmp_path, "-o", tmp_path / "out").stderr


def test_lines_of_json_that_no_table_can_hold(engine: Stopping, tmp_path: Path) -> None:
    """Are refused by name; left out, or as lines again, they are no trouble."""
    path = tmp_path / "in.jsonl"
    records: list[Any] = ["bare text", {"body": "b", "id": 1}, {"body": "c", "id": "one"}, {"body": "d", "tags": ["x"]}]
    path.write_text("\n\n".join(map(json.dumps, records[1:])))
    result = embed(path, "-o", tmp_path / "a", "--output-format", "parquet")
    assert "values of 'id' are not of one type" in result.stderr
    good(embed(path, "-o", tmp_path / "b", "--output-format", "parquet", "--keep", "body"))
    good(embed(path, "-o", tmp_path / "c"))
    assert [{**row, "embedding": 0} for row in read(tmp_path / "c")] == [{**row, "embedding": 0} for row in records[1:]]
    path.write_text("\n".join(map(json.dumps, records[:1] * 3)))
    good(run("embed", "--engine", "local", path, "-o", tmp_path / "d"))
    assert [row["text"] for row in read(tmp_path / "d")] == ["bare text"] * 3


def test_values_that_json_has_no_type_for(engine: Stopping, tmp_path: Path) -> None:
    from datetime import date
    from decimal import Decimal

    table = pa.table({"body": ["a"], "day": [date(2026, 11, 21)], "price": [Decimal("1.50")], "raw": [b"\x00"]})
    pq.write_table(table, tmp_path / "in.parquet")
    out = ["-o", tmp_path / "out", "--output-format", "jsonl"]
    assert "'raw' holds bytes" in embed(tmp_path / "in.parquet", *out).stderr
    good(embed(tmp_path / "in.parquet", *out, "--keep", "day", "--keep", "price"))
    (found,) = read(tmp_path / "out")
    assert (found["day"], found["price"]) == ("2026-11-21", "1.50")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_no_rows_are_no_error(engine: Stopping, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in.{kind}"
    if kind == "jsonl":
        path.write_text("")
    else:
        pq.write_table(pa.table({"body": pa.array([], pa.string())}), path)
    assert "holds no texts" in good(embed(path, "-o", tmp_path / "out")).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "--workers", "2"], "--workers is about tables"),
        (["a", "--engine", "local", "-o", "x", "--workers", "2"], "belongs to --engine ray"),
        (["--engine", "local", "-o", "x"], "--engine reads tables"),
        (["a.parquet", "--engine", "local"], "tables need an --output"),
        (["a.parquet", "--engine", "local", "-o", "x", "--output-format", "npy"], "tables are written as"),
        (["a.parquet", "--engine", "local", "-o", "x", "--input-format", "csv"], "its extension says"),
        (["a.parquet", "--engine", "local", "-o", "x", "--storage-option", "key"], "NAME=VALUE"),
        (["a", "--output-format", "parquet"], "parquet is for tables"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], said: str) -> None:
    result = run("embed", *arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


def test_packages_that_are_missing_are_named(engine: Stopping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.parquet", rows())
    monkeypatch.setitem(sys.modules, "ray", None)
    result = embed(path, "-o", tmp_path / "out", engine="ray")
    assert (result.exit_code, "edge-embed[ray]" in result.stderr) == (exit_code(InvalidOptionError("")), True)
    from edge_embed.bulk import storage

    storage.filesystem.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = embed(path, "-o", tmp_path / "new")
    assert (result.exit_code, "edge-embed[bulk]" in result.stderr) == (2, True), result.output


def test_keys_in_a_uri_are_written_nowhere(engine: Stopping, tmp_path: Path) -> None:
    from edge_embed.bulk.storage import join, shown, split

    uri = "s3://key:secret@bucket/a/b?endpoint_override=host:9000"
    assert shown(uri) == "s3://bucket/a/b"
    assert join(uri, "c") == "s3://key:secret@bucket/a/b/c?endpoint_override=host:9000"
    assert split(join(uri, "c")) == (uri, "c")
    assert split("/a/b.lance/") == ("/a", "b.lance")
    assert split("/b.lance") == ("/", "b.lance")


def test_an_output_that_cannot_be_written(engine: Stopping, tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", rows())
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = embed(path, "-o", out)
        assert (result.exit_code, "cannot write" in result.stderr) == (exit_code(OutputFileError("")), True)


def test_a_worker_with_another_model_is_refused(engine: Stopping, tmp_path: Path, model: Path) -> None:
    """Where machines have different files under one name."""
    from edge_embed.bulk.examine import job_of
    from edge_embed.bulk.job import Request
    from edge_embed.bulk.worker import Worker

    path = write(tmp_path / "in.parquet", rows())
    job = job_of(Request((str(path),), str(tmp_path / "out"), column="body"))
    Worker(job, elsewhere=True).close()
    model.write_bytes(b"other weights")
    with pytest.raises(ResumeError, match="would give other vectors: the model"):
        Worker(job, elsewhere=True)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://[::1]:1", "a..b:1", "127.0.0.1:99999"])
def test_an_address_where_nothing_can_be_is_refused_at_once(address: str) -> None:
    with pytest.raises(ClusterError, match="cannot be used"):
        cluster._reachable(address)
