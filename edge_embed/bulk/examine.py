"""From what is asked for to a job: the input looked through, so that what is wrong with it is found before the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from edge_embed import catalogue
from edge_embed.bulk import storage
from edge_embed.bulk.blocks import Table
from edge_embed.bulk.job import DEFAULT_COLUMN, TABLE_FORMATS, Job, Request, TableFormat
from edge_embed.bulk.reading import lance_identity, lance_table
from edge_embed.cache.file import sha256_of
from edge_embed.errors import InputFileError, InvalidOptionError, ModelFileError
from edge_embed.files import column_of, json_records, json_text

_BY_EXTENSION: Final[dict[str, TableFormat]] = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".lance": "lance",
}  # fmt: skip
_INT64: Final = range(-(2**63), 2**63)


def format_of(text: str) -> TableFormat | None:
    """The format that a name's extension stands for."""
    path = urlsplit(text).path if storage.is_uri(text) else text
    return _BY_EXTENSION.get(PurePosixPath(path.replace("\\", "/").rstrip("/")).suffix.lower())


def job_of(request: Request) -> Job:
    """The job, its input and model identified.

    Lines of JSON are read through once; of Parquet and Lance what they say of themselves is read.

    Raises:
        InputFileError: the input is not there, not one table, or has no such column, or rows without a text.
        InvalidOptionError: options that contradict each other or the input.
        ModelNotFoundError, ModelMissingError, ModelFileError: the model.
    """
    if not request.inputs:
        raise InvalidOptionError("no input", hint="name files, folders or URIs of tables")
    with storage.packages():
        import pyarrow  # noqa: F401 - whose absence is said here, once
    _keep_apart(request)
    found = [one for text in request.inputs for one in _tables_below(text)]
    kinds = {format_of(path) for path, *_ in found}
    if len(kinds) != 1:
        raise InvalidOptionError(f"the input is of several formats: {', '.join(sorted(map(str, kinds)))}")
    (kind,) = kinds
    assert kind is not None
    output_format = request.output_format or format_of(request.output) or ("jsonl" if kind == "jsonl" else "parquet")
    if (output_format == "lance") != (format_of(request.output) == "lance"):
        raise InvalidOptionError("a Lance table is a folder NAME.lance, and nothing else is called so")
    seen = {"parquet": _parquet, "jsonl": _json_lines, "lance": _lance}[kind](request, found)
    column, columns, tables, types = seen
    keep = tuple(columns if request.keep is None else request.keep)
    missing = [name for name in keep if name not in columns]
    if missing:
        raise InputFileError(f"there is no column {missing[0]!r} to keep", hint=f"there are {', '.join(columns)}")
    if request.vector_column in keep:
        raise InvalidOptionError(
            f"the input has a column {request.vector_column!r}, which vectors would be in",
            hint="name another one with --vector-column, or the columns to keep with --keep",
        )
    kept = _types(types, keep) if kind == "jsonl" and output_format != "jsonl" else ()
    if output_format == "jsonl":
        _refuse_binary(types, keep)
    return Job(request, kind, output_format, column, keep, tuple(tables), kept, _model(request), tuple(_files(request)))


def _tables_below(text: str) -> Iterator[tuple[str, int, int]]:
    if format_of(text) == "lance":
        yield text, 0, 0
        return
    found = [one for one in storage.files_below(text) if format_of(one[0]) in ("parquet", "jsonl")]
    if not found:
        raise InputFileError(
            f"{storage.shown(text)} holds no table",
            hint=f"tables are {', '.join(TABLE_FORMATS)}, known by their extension",
        )
    yield from found


def _keep_apart(request: Request) -> None:
    """Refuse an output that would be read as input the next time."""
    output = storage.shown(request.output).rstrip("/")
    for text in request.inputs:
        place = storage.shown(text).rstrip("/")
        if f"{output}/".startswith(f"{place}/") or f"{place}/".startswith(f"{output}/"):
            raise InvalidOptionError(f"the output {output} and the input {place} lie in each other")


Found = tuple[str, list[str], list[Table], dict[str, Any]]


def _parquet(request: Request, found: Iterable[tuple[str, int, int]]) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables: list[Table] = []
    first: Any = None
    column = ""
    for path, size, changed in found:
        system, place = storage.filesystem(path)
        with storage.reading(path):
            file = pq.ParquetFile(place, filesystem=system)
        schema, metadata = file.schema_arrow.remove_metadata(), file.metadata
        if first is None:
            first, column = schema, schema.names[column_of(schema.names, storage.shown(path), request.column)]
            _check_text(schema.field(column), path)
        elif not schema.equals(first):
            raise InputFileError(f"{storage.shown(path)} has other columns than {storage.shown(tables[0].path)}")
        index = [metadata.schema.column(i).path for i in range(len(metadata.schema))].index(column)
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(index).statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                raise InputFileError(f"{storage.shown(path)} has rows without a value in {column!r}")
        tables.append(Table(path, metadata.num_rows, storage.identity_of(size, changed)))
    assert isinstance(first, pa.Schema)
    return column, list(first.names), tables, {field.name: field.type for field in first}


def _lance(request: Request, found: Iterable[tuple[str, int, int]]) -> Found:
    tables: list[Table] = []
    first: Any = None
    column = ""
    for path, *_ in found:
        table = lance_table(path, request.storage)
        schema = table.schema.remove_metadata()
        if first is None:
            first, column = schema, schema.names[column_of(schema.names, storage.shown(path), request.column)]
            _check_text(schema.field(column), path)
        elif not schema.equals(first):
            raise InputFileError(f"{storage.shown(path)} has other columns than {storage.shown(tables[0].path)}")
        if table.count_rows(f"`{column}` IS NULL"):
            raise InputFileError(f"{storage.shown(path)} has rows without a value in {column!r}")
        tables.append(Table(path, table.count_rows(), lance_identity(table)))
    return column, list(first.names), tables, {field.name: field.type for field in first}


def _json_lines(request: Request, found: Iterable[tuple[str, int, int]]) -> Found:
    tables: list[Table] = []
    kinds: dict[str, str | None] = {}
    for path, size, changed in found:
        system, place = storage.filesystem(path)
        offsets: list[int] = []
        n_rows = 0
        with storage.reading(path), system.open_input_file(place) as file:
            lines = _Lines(file)
            for where, value in json_records(lines, storage.shown(path)):
                json_text(value, where, request.column)
                record = value if isinstance(value, dict) else {DEFAULT_COLUMN: value}
                for name, one in record.items():
                    kinds[name] = _joined(kinds.get(name), one)
                if n_rows % request.block_rows == 0:
                    offsets.append(lines.begin)
                n_rows += 1
        tables.append(Table(path, n_rows, storage.identity_of(size, changed), (*offsets, size)))
    return request.column or DEFAULT_COLUMN, list(kinds), tables, kinds


class _Lines:
    """Lines of a file that pyarrow has opened, and where the last one began."""

    def __init__(self, file: Any) -> None:
        self._file, self.begin = file, 0

    def __iter__(self) -> Iterator[bytes]:
        import io

        at = 0
        for line in io.BufferedReader(self._file, 1 << 20):
            self.begin, at = at, at + len(line)
            yield line


_ORDER: Final[dict[type, str]] = {bool: "bool", int: "int64", float: "double", str: "string"}


def _joined(before: str | None, value: Any) -> str | None:
    """The type of a column so far, with one more value: ``mixed`` where there is none for all of them."""
    if value is None or before == "mixed":
        return before
    kind = _ORDER.get(type(value), "mixed")
    if kind == "int64" and value not in _INT64:
        return "mixed"
    if before in (None, kind):
        return kind
    return "double" if {before, kind} == {"int64", "double"} else "mixed"


def _types(kinds: dict[str, Any], keep: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    for name in keep:
        if kinds[name] == "mixed":
            raise InputFileError(
                f"the values of {name!r} are not of one type that a table has",
                hint="leave it out: name the columns to keep with --keep; or write --output-format jsonl",
            )
    return tuple((name, kinds[name] or "null") for name in keep)


def _refuse_binary(types: dict[str, Any], keep: tuple[str, ...]) -> None:
    for name in keep:
        if "binary" in str(types[name]):
            raise InvalidOptionError(
                f"{name!r} holds bytes, which lines of JSON cannot",
                hint="leave it out: name the columns to keep with --keep; or write --output-format parquet",
            )


def _check_text(field: Any, path: str) -> None:
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputFileError(
            f"the column {field.name!r} of {storage.shown(path)} holds {field.type}, not texts",
            hint="choose another one with --field",
        )


def _model(request: Request) -> str:
    path = catalogue.resolve(request.model)
    try:
        return sha256_of(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _files(request: Request) -> Iterator[tuple[str, str]]:
    """What is beside the model, by its content."""
    for name in ("lora", "projection"):
        path = request.options.get(name)
        if path is not None:
            try:
                yield f"sha256 of {name}", sha256_of(Path(path))
            except OSError as error:
                raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
