"""The values that pass between the steps of search: frozen, with no behaviour beyond what follows from the fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["text", "markdown", "html", "pdf", "docx", "mail", "notebook", "code"]
KINDS: Final[tuple[Kind, ...]] = ("text", "markdown", "html", "pdf", "docx", "mail", "notebook", "code")
Mode = Literal["hybrid", "dense", "text"]
MODES: Final[tuple[Mode, ...]] = ("hybrid", "dense", "text")
HEADING_SEPARATOR: Final = " > "


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a file under one heading.

    Attributes:
        text: what stands there, without its heading.
        heading: the headings that it is under, the outermost first; of code the names of classes and functions.
        line: the line of the file where the text begins, counted from 1; None where the file has no lines of its own.
        page: the page, counted from 1; None where there are none.
    """

    text: str
    heading: tuple[str, ...] = ()
    line: int | None = None
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is embedded and found: a part of a section that fits the model.

    Attributes:
        text: what is embedded: the heading, if any, a line break, and the part.
        heading: the section's headings in one line.
        body: where in ``text`` the part begins.
        line: the line of the file where the part begins, or None.
        page: the page, or None.
    """

    text: str
    heading: str = ""
    body: int = 0
    line: int | None = None
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A file that a scan found.

    Attributes:
        path: absolute.
        kind: how it will be read.
        size: bytes.
        mtime_ns: when it was changed, nanoseconds.
    """

    path: str
    kind: Kind
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that should have been read and was not, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the database knows of a file. While it is there, so are all rows of the file's content, and no others.

    Attributes:
        path: absolute.
        size: bytes.
        mtime_ns: when it was changed, nanoseconds; -1 where it may have been changed again without that showing.
        digest: of its content and of the way that it is read.
        n_chunks: its rows.
        problem: why it has none, or an empty string.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str
    n_chunks: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What an update of the database did.

    Attributes:
        n_files: files that can be searched now, below the folders that were given.
        n_updated: of these, how many were read and embedded now.
        n_removed: files that are gone, and were removed.
        n_chunks: rows of the whole database.
        n_embedded: chunks that the model was run on.
        n_ignored: files that rules leave out: hidden, ignored by Git, of no known kind, symbolic links.
        skipped: files that should have been read and were not.
    """

    n_files: int
    n_updated: int
    n_removed: int
    n_chunks: int
    n_embedded: int
    n_ignored: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes:
        path: its file, absolute.
        kind: how the file was read.
        heading: headings above it, in one line.
        text: the chunk, without its heading.
        score: what the hits are ordered by: the cosine (dense), BM25 (text), the sum of reciprocal ranks (hybrid), or
            the reranker's score. Comparable within one answer.
        cosine: of its vector with the query's; None where only the full text was asked.
        line: where it begins, counted from 1, or None.
        page: the page, or None.
        ordinal: its place among the chunks of its file.
    """

    path: str
    kind: str
    heading: str
    text: str
    score: float
    cosine: float | None
    line: int | None
    page: int | None
    ordinal: int


@dataclass(frozen=True, slots=True)
class Snippet:
    """A part of a hit's text that shows why it was found.

    Attributes:
        text: one line.
        marks: start and end of each word in it that the query has, too.
    """

    text: str
    marks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """What a database was made with. A query or an update with anything else would compare what is not comparable.

    Attributes:
        model: the file or the name that was given; None for the bundled model. Where to look for it, not what it is.
        digest: sha256 of the model's file.
        pooling: how its hidden states become a vector.
        adapter: path, sha256 and scale of a LoRA adapter, or None.
        projection: path and sha256 of a learned projection, or None.
        prompt: put before each document.
        query_prompt: put before each query.
        dimensions: values of a vector.
        short: values of the short vectors that are compared first; 0 where there are none.
        chunk_tokens: most tokens of a chunk, with prompt, heading and special tokens.
        overlap: tokens that neighbouring chunks share, at most.
        language: whose words are stemmed for the full text.
        version: of this table.
    """

    model: str | None
    digest: str
    pooling: str
    adapter: tuple[str, str, float] | None
    projection: tuple[str, str] | None
    prompt: str
    query_prompt: str
    dimensions: int
    short: int
    chunk_tokens: int
    overlap: int
    language: str = "English"
    version: int = 1
