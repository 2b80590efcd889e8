"""Checkpoints to convert: a local folder, or a repository of the hub in the cache that other programs share.

What the small files say is looked at before the weights are downloaded: what cannot be converted costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_embed import catalogue, hub
from edge_embed.catalogue import CatalogueEntry
from edge_embed.errors import InvalidOptionError
from edge_embed.hub import Repository, Snapshot
from edge_embed.progress import Progress


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint to convert: its folder, and what is known of it where it is from the hub."""

    folder: Path
    name: str | None = None
    license: str | None = None
    repository: str | None = None
    revision: str | None = None
    mrl_dimensions: tuple[int, ...] = ()
    reranker: bool = False


def find_checkpoint(
    source: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    show_progress_bar: bool = False,
    before: Callable[[Repository, int], None] = lambda *_: None,
) -> Source:
    """The checkpoint in a folder, or of a repository of the hub, downloaded where the cache does not have it.

    Args:
        source: a folder; a repository, perhaps with ``@revision`` or as an address; or a known model's name.
        revision: branch, tag or commit of a repository.
        offline: use the cache alone.
        show_progress_bar: a bar on a terminal, plain lines otherwise, on stderr.
        before: called with the repository and the bytes to download, before they are.

    Raises:
        InvalidOptionError: two revisions.
        HubError: a leaf of it.
        CheckpointError, UnsupportedCheckpointError: it cannot be converted, as far as its small files say.
    """
    if os.path.exists(source):  # noqa: PTH110 - Path.exists raises for names too long for a file
        return Source(Path(source), revision=revision)
    entry = catalogue.find(source)
    try:
        reference = hub.parse_reference(entry.repository if entry else source, revision)
    except InvalidOptionError:
        if "@" in source or "://" in source or _looks_like_repository(source):
            raise
        return Source(Path(source), revision=revision)  # which the converter says is no folder
    entry = catalogue.find(reference.repository)
    if offline or hub.is_offline():
        snapshot = hub.cached(reference)
    else:
        repository = hub.inspect(reference)
        small, weights = hub.checkpoint_files(repository)
        before(repository, sum(file.size for file in hub.missing(repository, small + weights)))
        snapshot = fetch_checkpoint(repository, show_progress_bar=show_progress_bar)
    return Source(
        folder=snapshot.folder,
        name=entry.name if entry else snapshot.repository.rpartition("/")[2],
        license=snapshot.license or (entry.license if entry else None),
        repository=snapshot.repository,
        revision=snapshot.revision,
        mrl_dimensions=entry.mrl_dimensions if entry else (),
        reranker=entry is not None and scores_by_two_words(entry),
    )


def scores_by_two_words(entry: CatalogueEntry) -> bool:
    """Whether it is a language model that scores by two words, which its checkpoint does not say of itself."""
    return entry.kind == "reranker" and entry.architecture == "qwen3"


def _looks_like_repository(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith(("/", ".", "~")) and not source.endswith("/")


def fetch_checkpoint(repository: Repository, *, show_progress_bar: bool = False) -> Snapshot:
    """A repository's checkpoint in the shared cache: small files first, and weights if these can be converted.

    Raises:
        UnsupportedCheckpointError, CheckpointError: it cannot, which is found before the weights are downloaded.
        HubError: a leaf of it.
    """
    small, weights = hub.checkpoint_files(repository)
    _refuse_early(hub.fetch_into_cache(repository, small, lambda _: None).folder)
    with downloading(sum(file.size for file in hub.missing(repository, weights)), show_progress_bar) as advance:
        return hub.fetch_into_cache(repository, weights, advance)


def _refuse_early(folder: Path) -> None:
    """What the small files already say about modules and family."""
    from edge_embed.convert.architectures import family_of
    from edge_embed.convert.checkpoint import read_json
    from edge_embed.convert.modules import read_modules

    family_of(read_json(read_modules(folder).transformer, "config.json"))


@contextmanager
def downloading(total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Where the bytes that come are counted, and shown."""
    with Progress("downloading", total, "B", enabled=enabled) as bar:
        yield bar.advance
