"""Texts from files and pipes, one at a time: lines, JSON lines, CSV and TSV.

A generator reads one record at a time, so a file may be larger than memory. Whatever cannot be read as asked is an
``InputFileError`` that names the file and the line. What happens to the texts afterwards is not known here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from edge_embed.errors import InputFileError

InputFormat = Literal["txt", "jsonl", "csv", "tsv"]
INPUT_FORMATS: Final[tuple[InputFormat, ...]] = ("txt", "jsonl", "csv", "tsv")
DEFAULT_FIELD: Final = "text"

_BY_EXTENSION: Final[dict[str, InputFormat]] = {
    "": "txt", ".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
}  # fmt: skip
# Beginnings of files that are not UTF-8, and what to do about them.
_UTF16 = "it is UTF-16: convert it first with `iconv -f UTF-16 -t UTF-8`"
_HINTS: Final[dict[bytes, str]] = {
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"\x1f\x8b": "it is compressed: unpack it first with `gzip -dc`",
    b"PK\x03\x04": "it is a ZIP archive or an office document: export its texts first",
}
_MAX_CSV_FIELD = (1 << 31) - 1  # the largest that csv takes everywhere


def format_of(path: Path) -> InputFormat:
    """The format that a file's extension stands for; no extension stands for lines of text.

    Raises:
        InputFileError: another extension.
    """
    extension = path.suffix.lower()
    if extension not in _BY_EXTENSION:
        hint = "turn a list into lines first: jq -c '.[]'; or " if extension == ".json" else ""
        raise InputFileError(
            f"{path}: the extension {extension!r} does not say how texts are stored",
            hint=f"{hint}name the format with --input-format: {', '.join(INPUT_FORMATS)}",
        )
    return _BY_EXTENSION[extension]


def read_file(path: Path, *, input_format: InputFormat | None = None, field: str | None = None) -> Iterator[str]:
    """The texts of a file, in order; for the arguments see ``read_stream``.

    Args:
        path: the file; its extension decides the format unless ``input_format`` does.
        input_format: how texts are stored.
        field: which field or column holds them.

    Raises:
        InputFileError: it cannot be opened, or not read as asked.
    """
    chosen = input_format or format_of(path)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror or error}") from error
    with stream:
        yield from read_stream(stream, str(path), input_format=chosen, field=field)


def read_stream(
    stream: Iterable[bytes], name: str, *, input_format: InputFormat = "txt", field: str | None = None
) -> Iterator[str]:
    """The texts of an open binary file, in order.

    Args:
        stream: lines of bytes, as iterating over a binary file gives them: UTF-8, with or without a BOM.
        name: what the stream is called in messages.
        input_format: ``txt``: each line is a text, a blank line is an empty one, so that text i is line i.
            ``jsonl``: each line is a string, or an object with the text in a field; blank lines are skipped.
            ``csv``, ``tsv``: the first row names the columns; rows without any cell are skipped.
        field: the field or column; by default ``text``, or the only column that there is.

    Raises:
        InputFileError: naming the line where it is not UTF-8, malformed, or without the field.
    """
    if input_format == "txt":
        if field is not None:
            raise InputFileError(
                f"{name} is read as lines of text, which have no field {field!r}",
                hint="name the format with --input-format: jsonl, csv or tsv",
            )
        return (line.removesuffix("\n").removesuffix("\r") for _, line in _lines(stream, name))
    if input_format == "jsonl":
        return (json_text(value, where, field) for where, value in json_records(stream, name))
    return _table(stream, name, field, "\t" if input_format == "tsv" else ",")


def _lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded, with their ends."""
    try:
        for number, raw in enumerate(stream, 1):
            line = _decode(raw, name, number)
            yield number, line.removeprefix("\ufeff") if number == 1 else line
    except OSError as error:
        raise InputFileError(f"{name} cannot be read: {error.strerror or error}") from error


def _decode(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        known = [hint for start, hint in _HINTS.items() if number == 1 and raw.startswith(start)]
        raise InputFileError(
            f"{name}, line {number}: byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8",
            hint=known[0] if known else "save or convert it as UTF-8, e.g. with `iconv -f LATIN1 -t UTF-8`",
        ) from None


def json_records(stream: Iterable[bytes], name: str) -> Iterator[tuple[str, Any]]:
    """The values of lines of JSON, each with where it is; blank lines are skipped.

    Raises:
        InputFileError: naming the line that is not UTF-8, or no JSON.
    """
    for number, line in _lines(stream, name):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputFileError(f"{where} is not JSON: {error}", hint="each line must be one JSON value") from None


def json_text(value: Any, where: str, field: str | None) -> str:
    """The text of a line of JSON: a string, or a field of an object.

    Raises:
        InputFileError: there is none.
    """
    if isinstance(value, dict):
        value = _field(value, where, field)
    elif field is not None:
        raise InputFileError(f"{where} is {_kind(value)}, which has no field {field!r}")
    if not isinstance(value, str):
        raise InputFileError(
            f"{where}: the text is {_kind(value)}, not a string", hint='expected "a text" or {"text": "a text"}'
        )
    if not _encodable(value):
        raise InputFileError(f"{where}: the text holds half of a surrogate pair, which is no character")
    return value


def _field(record: dict[str, Any], where: str, field: str | None) -> Any:
    wanted = DEFAULT_FIELD if field is None else field
    if wanted not in record:
        raise InputFileError(f"{where} has no field {wanted!r}", hint=_choose(record))
    return record[wanted]


def _table(stream: Iterable[bytes], name: str, field: str | None, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CSV_FIELD))  # its default refuses texts of 128 KiB
    rows = csv.reader((line for _, line in _lines(stream, name)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        column = column_of(header, f"{name}, line 1", field)
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise InputFileError(
                    f"{name}, line {rows.line_num}: {len(row)} cells, where the header names {len(header)} columns",
                    hint='a cell that holds the delimiter or a line break must be in double quotes: "a, b"',
                )
            yield row[column]
    except csv.Error as error:
        raise InputFileError(f"{name}, line {rows.line_num}: {error}", hint="quote cells as CSV asks") from None


def column_of(header: list[str], where: str, field: str | None) -> int:
    """Which of some columns holds the texts: the one asked for, else the only one, else ``text``.

    Raises:
        InputFileError: there is none of that name, or more than one.
    """
    if field is None and len(header) == 1:
        return 0
    wanted = DEFAULT_FIELD if field is None else field
    if header.count(wanted) != 1:
        problem = "twice or more the column" if wanted in header else "no column"
        raise InputFileError(f"{where} has {problem} {wanted!r}", hint=_choose(header))
    return header.index(wanted)


def _choose(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:20]) + (", ..." if len(listed) > 20 else "")
    return f"choose one with --field: {shown}" if listed else "it has no fields at all"


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", list: "a list", dict: "an object", str: "a string"}
    return names.get(type(value), "a number")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
