"""What a bulk job is: everything that a worker on another machine has to know. Plain values, so that it can be sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import edge_embed
from edge_embed.bulk.blocks import DEFAULT_ROWS, Table

TableFormat = Literal["parquet", "jsonl", "lance"]
TABLE_FORMATS: Final[tuple[TableFormat, ...]] = ("parquet", "jsonl", "lance")
DEFAULT_COLUMN: Final = "text"
VECTOR_COLUMN: Final = "embedding"


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for.

    Attributes:
        inputs: files, folders or URIs of tables, all of one format; their rows in this order.
        output: a folder or URI that gets a file for each block, or a ``.lance`` table.
        output_format: how rows are written; by default as they were read, ``.lance`` by the output's name.
        column: which column holds the texts; ``text`` by default, or the only one that there is.
        keep: columns of the input that the output has; all by default.
        vector_column: what the column of vectors is called.
        block_rows: rows of a block: what is lost at most where a worker is.
        model: GGUF file or name; the bundled model by default. A name is looked up on each machine.
        options: further arguments of ``Embedder``.
        encode: arguments of ``Embedder.embed``.
        storage: options of LanceDB's stores; other URIs carry theirs.
    """

    inputs: tuple[str, ...]
    output: str
    output_format: TableFormat | None = None
    column: str | None = None
    keep: tuple[str, ...] | None = None
    vector_column: str = VECTOR_COLUMN
    block_rows: int = DEFAULT_ROWS
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    encode: Mapping[str, Any] = field(default_factory=dict)
    storage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A request with what was found out about its input and model.

    Attributes:
        request: what was asked for.
        input_format: how the input stores rows.
        output_format: how the output does.
        column: which column holds the texts.
        keep: columns of the input that the output has, in order.
        tables: the input's files.
        types: of lines of JSON that become a table, the type of each column that is kept.
        model: the model's sha256.
        files: what adapters and projections are known by.
    """

    request: Request
    input_format: TableFormat
    output_format: TableFormat
    column: str
    keep: tuple[str, ...]
    tables: tuple[Table, ...]
    types: tuple[tuple[str, str], ...]
    model: str
    files: tuple[tuple[str, str], ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows of the whole input."""
        return sum(table.n_rows for table in self.tables)

    def settings(self) -> dict[str, Any]:
        """All that decides what is in the output, by names that a person can be told."""
        from edge_embed.bulk.storage import shown

        moving = {name: value for name, value in self.request.options.items() if name not in LEAVING_VECTORS}
        found = {
            "input": [[shown(table.path), table.n_rows, table.identity] for table in self.tables],
            "column": self.column,
            "columns kept": list(self.keep),
            "vector column": self.request.vector_column,
            "output format": self.output_format,
            "rows of a block": self.request.block_rows,
            "sha256 of the model": self.model,
            **moving,
            **dict(self.files),
            **self.request.encode,
            **versions(),
        }
        read: dict[str, Any] = json.loads(json.dumps(found))  # as it is read again, which tuples are not
        return read

    @property
    def digest(self) -> str:
        """One for each result: of the settings, hexadecimal."""
        text = json.dumps(self.settings(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# Arguments of Embedder that leave vectors as they are, or that go by their content and not by their name.
LEAVING_VECTORS: Final = ("cache", "download", "n_threads", "lora", "projection")


@dataclass(frozen=True, slots=True)
class Done:
    """A block that has been written.

    Attributes:
        number: which one.
        n_rows: its rows.
        n_tokens: tokens of its texts, as the model saw them.
        n_truncated: texts that were cut.
        seconds: what reading, embedding and writing took.
        embedding: what of it was embedding.
        process: the process that did it.
    """

    number: int
    n_rows: int
    n_tokens: int
    n_truncated: int
    seconds: float
    embedding: float
    process: int


def versions() -> dict[str, str]:
    """The versions that may move last digits; a worker's must be those of the job."""
    from importlib.metadata import version

    return {
        "version of edge-embed": edge_embed.__version__,
        "version of llama-cpp-python": version("llama-cpp-python"),
    }
