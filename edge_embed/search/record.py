"""What a database was made with: gathered from an embedder, written as JSON, and compared with what is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

from edge_embed.cache import EmbeddingCache
from edge_embed.embedder import Embedder
from edge_embed.errors import DatabaseFileError, DatabaseMismatchError, InvalidDimensionError, InvalidOptionError
from edge_embed.postprocess import check_dim
from edge_embed.search.chunks import MIN_ROOM
from edge_embed.search.types import Record
from edge_embed.types import ModelInfo

MAX_CHUNK_TOKENS: Final = 512  # by default; a vector of more says less of each part
_SHORT_SHARE, _LEAST_SHORT = 3, 64  # short vectors: a third of the full ones, where those are worth shortening
_NAMES: Final = {
    "digest": "the model",
    "pooling": "pooling",
    "adapter": "the adapter",
    "projection": "the projection",
    "prompt": "the documents' prompt",
    "query_prompt": "the queries' prompt",
    "dimensions": "dimensions",
    "short": "dimensions of short vectors",
    "chunk_tokens": "tokens of a chunk",
    "overlap": "overlap",
    "language": "language",
    "version": "version of the format",
}


def make_record(
    embedder: Embedder,
    *,
    model: str | Path | None = None,
    lora: tuple[str, float] | None = None,
    projection: str | None = None,
    prompt: str | None = None,
    query_prompt: str | None = None,
    dimensions: int | None = None,
    short: int | None = None,
    chunk_tokens: int | None = None,
    overlap: int | None = None,
    language: str = "English",
) -> Record:
    """The record of a database that is made with this embedder.

    Args:
        embedder: the model, with its adapter and projection.
        model: the name or file that was asked for, so that a search finds it again; None for the bundled model.
        lora: file and scale of the adapter.
        projection: file of the projection.
        prompt: what is put before documents; the model's own prompt for these by default.
        query_prompt: what is put before queries; likewise.
        dimensions: values of a vector; all by default.
        short: values of the short vectors that are compared first, 0 for none; a third of the others by default, or
            the trained size above that.
        chunk_tokens: most tokens of a chunk; as many as the model takes, at most 512, by default.
        overlap: most tokens that neighbouring chunks share; an eighth by default.
        language: whose words are stemmed for the full text, by its English name.

    Raises:
        InvalidDimensionError, InvalidOptionError: an argument.
        ModelFileError, CacheFileError: the model's digest cannot be made.
    """
    info = embedder.info
    n_dimensions = check_dim(dimensions if dimensions is not None else embedder.truncate_dim, info.n_embd)
    documents = embedder.prompt_of("document") if prompt is None else prompt
    around = embedder.tokenizer.count([""], prompt=documents)[0]
    size = min(MAX_CHUNK_TOKENS, info.max_tokens) if chunk_tokens is None else chunk_tokens
    if not around + MIN_ROOM <= size <= info.max_tokens:
        raise InvalidOptionError(
            f"chunks of {size} tokens", hint=f"give {around + MIN_ROOM} to {info.max_tokens}, the model's own limit"
        )
    shared = (size - around) // 8 if overlap is None else overlap
    if not 0 <= shared <= (size - around) // 2:
        raise InvalidOptionError(f"an overlap of {shared} tokens", hint=f"give 0 to {(size - around) // 2}")
    with EmbeddingCache() as files:
        return Record(
            model=None if model is None else _place(model),
            digest=files.digest_of(info.path),
            pooling=info.pooling,
            adapter=None if lora is None else (_place(lora[0]), files.digest_of(lora[0]), float(lora[1])),
            projection=None if projection is None else (_place(projection), files.digest_of(projection)),
            prompt=documents,
            query_prompt=embedder.prompt_of("query") if query_prompt is None else query_prompt,
            dimensions=n_dimensions,
            short=_short(short, n_dimensions, info.mrl_dimensions),
            chunk_tokens=size,
            overlap=shared,
            language=language,
        )


def _short(asked: int | None, dimensions: int, trained: tuple[int, ...]) -> int:
    if asked is not None:
        if not 0 <= asked < dimensions:
            raise InvalidDimensionError(
                f"short vectors of {asked} values", hint=f"give 1 to {dimensions - 1}, or 0 for none"
            )
        return asked
    wanted = max(_LEAST_SHORT, dimensions // _SHORT_SHARE)
    return next((n for n in sorted((*trained, wanted)) if wanted <= n < dimensions), 0)


def _place(path: str | Path) -> str:
    """A file's absolute path; a name stays one."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_file() else str(path)


def check_same(found: Record, asked: Record, *, where: str, only: Iterable[str] | None = None) -> None:
    """Refuse what the database was not made with.

    Args:
        found: its record.
        asked: that of what is asked for.
        where: the database, for the message.
        only: the fields that count; all but where the model lies by default.

    Raises:
        DatabaseMismatchError: naming each difference.
    """
    names = [name for name in _NAMES if only is None or name in only]
    differences = [
        _difference(_NAMES[name], getattr(found, name), getattr(asked, name), name)
        for name in names
        if _compared(name, getattr(found, name)) != _compared(name, getattr(asked, name))
    ]
    if differences:
        raise DatabaseMismatchError(
            f"{where} was made with something else: {'; '.join(differences)}",
            hint="leave the option out to take the database's own, or make another database with --db",
        )


def check_model(record: Record, info: ModelInfo, *, where: str) -> None:
    """Refuse a model that the database was not made with.

    Raises:
        DatabaseMismatchError: it is another one, or pooled otherwise.
        ModelFileError, CacheFileError: its digest cannot be made.
    """
    with EmbeddingCache() as files:
        asked = replace(record, digest=files.digest_of(info.path), pooling=info.pooling)
    check_same(record, asked, where=where)


def _compared(name: str, value: Any) -> Any:
    """What counts of a value: of files their contents, not where they lie."""
    return value[1:] if name in ("adapter", "projection") and value is not None else value


def _difference(label: str, found: Any, asked: Any, name: str) -> str:
    if name == "digest":
        return f"{label}'s file is another one (sha256 {found[:12]}, now {asked[:12]})"
    return f"{label}: {json.dumps(found, ensure_ascii=False)}, now {json.dumps(asked, ensure_ascii=False)}"


def to_json(record: Record) -> str:
    """The record as it is stored."""
    return json.dumps(asdict(record), ensure_ascii=False)


def from_json(text: str, where: str) -> Record:
    """The record that was stored.

    Raises:
        DatabaseFileError: another version wrote it.
    """
    try:
        values = json.loads(text)
        if values["version"] != Record.__dataclass_fields__["version"].default:
            raise ValueError(f"version {values['version']}")
        for name in ("adapter", "projection"):
            values[name] = None if values[name] is None else tuple(values[name])
        return Record(**{field.name: values[field.name] for field in fields(Record)})
    except (ValueError, KeyError, TypeError) as error:
        raise DatabaseFileError(
            f"{where} was made by another version of edge-embed: {error}", hint="make it again in another place"
        ) from None
