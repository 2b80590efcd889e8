"""A block's rows and vectors as bytes of a file, and blocks put together to a Lance table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from edge_embed.bulk import storage
from edge_embed.bulk.blocks import part_name
from edge_embed.bulk.job import Job
from edge_embed.bulk.reading import Rows, lance_store
from edge_embed.errors import OutputFileError

if TYPE_CHECKING:
    import pyarrow as pa

    from edge_embed.types import AnyArray

METADATA: Final = b"edge_embed.bulk"  # of a Lance table: the digest of the job that made it
_STAGE: Final = ".parts"


def folder_of(job: Job) -> str:
    """Where blocks are written: the output itself, or beside it where it will be a Lance table."""
    output = job.request.output
    if job.output_format != "lance":
        return output
    folder, name = storage.split(output)
    return storage.join(folder, name + _STAGE)


def extension_of(job: Job) -> str:
    """Of the files of blocks."""
    return "jsonl" if job.output_format == "jsonl" else "parquet"


def number_format(dtype: str) -> str:
    """How a value is spelled: with the 9 or 5 digits that float32 and float16 need to be read back bit for bit."""
    return {"float32": "%.9g", "float16": "%.5g"}.get(dtype, "%d")


def encoded(job: Job, rows: Rows, vectors: AnyArray) -> Any:
    """The bytes of a block's file.

    Args:
        job: the job.
        rows: what was read.
        vectors: ``[n, d]``.
    """
    if job.output_format == "jsonl":
        return _lines(job, rows, vectors)
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert isinstance(rows.kept, pa.Table)
    n, width = vectors.shape
    values = pa.array(vectors.reshape(-1))
    field = pa.field(job.request.vector_column, pa.list_(values.type, width))
    column = pa.FixedSizeListArray.from_arrays(values, width) if n else pa.array([], field.type)
    table = rows.kept.append_column(field, column) if job.keep else pa.table([column], pa.schema([field]))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), sink, use_dictionary=list(job.keep), row_group_size=max(n, 1))
    return sink.getvalue()


def _lines(job: Job, rows: Rows, vectors: AnyArray) -> bytes:
    records = rows.kept if isinstance(rows.kept, list) else rows.kept.to_pylist()
    numbers = ",".join([number_format(vectors.dtype.name)] * vectors.shape[1])
    name = json.dumps(job.request.vector_column)
    out = io.StringIO()
    for record, values in zip(records or [{}] * len(vectors), map(tuple, vectors.tolist()), strict=True):
        before = json.dumps(record, ensure_ascii=False, default=_json_value)[:-1]
        out.write(f"{before}{', ' if record else ''}{name}: [{numbers % values}]}}\n")
    return out.getvalue().encode("utf-8", "surrogatepass")


def _json_value(value: Any) -> str:
    """A value that JSON has no type for: dates and times in ISO 8601, decimals by their digits."""
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def lance_digest(job: Job) -> str | None:
    """The digest of the job that made the Lance table at the output, None where there is no table.

    Raises:
        OutputFileError: there is a table that no job made, or something else.
    """
    folder, name = storage.split(job.request.output)
    if name not in storage.names(folder):
        return None
    try:
        table = lance_store(folder, job.request.storage).open_table(name.removesuffix(".lance"))
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputFileError(f"{storage.shown(job.request.output)} is there, and no Lance table: {error}") from error
    found = (table.schema.metadata or {}).get(METADATA)
    if found is None:
        raise OutputFileError(f"{storage.shown(job.request.output)} is there, and was not written by a job like this")
    return str(found.decode())


def commit_lance(job: Job, numbers: Sequence[int]) -> None:
    """Make the Lance table of all blocks, in order, in one commit; one that a job had made before gives way."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = folder_of(job)
    system, path = storage.filesystem(folder)
    files = [f"{path}/{part_name(number, job.digest, extension_of(job))}" for number in numbers]
    with storage.reading(folder):
        schema = pq.read_schema(files[0], filesystem=system).with_metadata({METADATA: job.digest.encode()})

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            yield from pq.ParquetFile(file, filesystem=system).read().cast(schema).to_batches()

    parent, name = storage.split(job.request.output)
    try:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        mode = "overwrite" if name in storage.names(parent) else "create"
        lance_store(parent, job.request.storage).create_table(name.removesuffix(".lance"), reader, mode=mode)
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputFileError(f"cannot write {storage.shown(job.request.output)}: {error}") from error
