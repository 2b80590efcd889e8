"""From a name to a GGUF on this machine: found, pulled ready-made, or made from the original weights.

A plan says what would be done and how large it is, before anything large is downloaded; carrying it out is a second
step, so that a command can ask in between. What was fetched once is pinned: its record holds commit and digest, and
what has changed on the hub since then is reported and not taken unasked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, cast

from edge_embed import catalogue, hub, store
from edge_embed.catalogue import CatalogueEntry
from edge_embed.errors import (
    HubNotFoundError,
    HubUnavailableError,
    InvalidOptionError,
    ModelMissingError,
    ModelNotFoundError,
)
from edge_embed.hub import RepoFile, Repository, Snapshot
from edge_embed.paths import models_dir
from edge_embed.progress import BytesProgress
from edge_embed.sources import downloading, fetch_checkpoint, scores_by_two_words
from edge_embed.store import StoredModel

if TYPE_CHECKING:
    from edge_embed.types import Pooling

ALLOWED: Final = "EDGE_EMBED_DOWNLOAD"
"""Environment: 1 lets models that are missing be downloaded without a question."""

_ASSUMED_MEMORY = 8 * 10**9  # where the machine does not say how much it has
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What would make a model available.

    Attributes:
        name: what it will be called.
        ftype: the type of its weights.
        repository: where it comes from, at one commit.
        file: the ready GGUF; None where the original weights are converted.
        license: its licence.
        download_bytes: what has to be downloaded yet.
        result_bytes: size of the GGUF, about that where it is converted.
        target: where it will be.
        entry: what the catalogue knows of it, or None.
    """

    name: str
    ftype: str
    repository: Repository
    file: RepoFile | None
    license: str
    download_bytes: int
    result_bytes: int
    target: Path
    entry: CatalogueEntry | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model that is here now, whether it was fetched, and what else is to be said about it."""

    model: StoredModel
    fetched: bool
    notes: tuple[str, ...] = ()


def locate(model: str | Path | None, *, download: bool | None = None, show_progress_bar: bool = False) -> Path:
    """The file behind a name or a path, fetched or made first where it is missing and that is allowed.

    Args:
        model: a GGUF file or a name; the bundled model for None.
        download: whether a known model that is missing may be downloaded; by default only if ``EDGE_EMBED_DOWNLOAD``
            is 1, because some of them have many gigabytes.
        show_progress_bar: a bar on a terminal, plain lines otherwise, on stderr.

    Raises:
        ModelMissingError: it would have to be downloaded, and that was not allowed.
        ModelNotFoundError: neither a file nor a known name.
        HubError: a leaf of it; the download.
        ConversionError: a leaf of it; the conversion.
    """
    try:
        return catalogue.resolve(model)
    except ModelMissingError:
        if not (download_allowed() if download is None else download):
            raise
    return carry_out(plan(str(model)), show_progress_bar=show_progress_bar).model.path


def download_allowed() -> bool:
    """Whether the environment says that missing models may be downloaded."""
    return os.environ.get(ALLOWED, "").lower() in ("1", "true", "yes", "on")


def plan(name: str, *, revision: str | None = None, update: bool = False) -> Plan:
    """What would fetch or make a model; the hub is asked, and nothing is downloaded.

    Args:
        name: a known model's name or a repository with GGUF files; behind a colon a type or a file of it.
        revision: branch, tag or commit; the one that it is pinned to, or the newest, by default.
        update: the newest, whatever it is pinned to.

    Raises:
        ModelNotFoundError: no known name, and no repository.
        InvalidOptionError: several files fit, or no type suits this machine.
        HubError: a leaf of it.
    """
    base, colon, suffix = name.rpartition(":") if not name.startswith(("http:", "https:", "hf:")) else (name, "", "")
    base, wanted = (base, suffix) if colon else (name, None)
    entry = catalogue.find(base)
    files_only = entry is None or (entry.ready is not None and base.lower() == entry.ready.repository.lower())
    if entry is None or files_only:
        return _plan_repository(base, wanted, revision, update)
    if wanted is not None and wanted.lower().endswith(".gguf"):
        if entry.ready is None:
            raise HubNotFoundError(f"no ready files of {entry.name} are known", hint=f"edge-embed pull {entry.name}")
        return _plan_repository(entry.ready.repository, wanted, revision, update)
    _, ftype = catalogue.split_type(f"{entry.name}:{wanted}" if wanted else entry.name)
    return _plan_known(entry, ftype or suitable_type(entry), revision)


def suitable_type(entry: CatalogueEntry, memory_bytes: int | None = None) -> str:
    """The type of a known model that suits this machine's memory, or a given one.

    Raises:
        InvalidOptionError: even the smallest would not leave half of it free.
    """
    memory = memory_bytes or machine_memory()
    ftype = catalogue.recommended_type(entry.parameters, memory)
    if ftype is None:
        smallest = catalogue.LADDER[-1]
        needed = catalogue.memory_needed(entry.parameters, smallest)
        raise InvalidOptionError(
            f"{entry.name} takes about {needed / 1e9:.1f} GB of memory even as {smallest}, "
            f"more than half of this machine's {memory / 1e9:.1f} GB",
            hint=f"choose a smaller model, or insist: {entry.name}:{smallest}",
        )
    return ftype


def machine_memory() -> int:
    """Memory of this machine or container, in bytes; 8 GB where it does not say."""
    from edge_embed.engine.report import machine

    return machine().memory_bytes or _ASSUMED_MEMORY


def _plan_known(entry: CatalogueEntry, ftype: str, revision: str | None) -> Plan:
    """A ready file of that type where there is one, else a conversion."""
    if entry.ready is not None and revision is None:
        repository = hub.inspect(hub.Reference(entry.ready.repository))
        files = [file for file in hub.gguf_files(repository) if hub.gguf_type(file.path) == ftype]
        if len(files) == 1:
            return _plan_file(repository, files[0])
    repository = hub.inspect(hub.parse_reference(entry.repository, revision))
    small, weights = hub.checkpoint_files(repository)
    return Plan(
        name=entry.name,
        ftype=ftype,
        repository=repository,
        file=None,
        license=repository.license or entry.license,
        download_bytes=sum(file.size for file in hub.missing(repository, small + weights)),
        result_bytes=entry.size(ftype),
        target=models_dir() / entry.name / f"{entry.name}-{ftype.upper()}.gguf",
        entry=entry,
    )


def _plan_repository(base: str, wanted: str | None, revision: str | None, update: bool) -> Plan:
    if "/" not in base:
        known = ", ".join(entry.name for entry in catalogue.entries())
        raise ModelNotFoundError(
            f"there is no known model {base!r}", hint=f"known: {known}; or give a repository: organization/name"
        )
    reference = hub.parse_reference(base, revision)
    if not update and reference.revision is None and (pinned := _pinned(reference.repository, wanted)) is not None:
        reference = hub.Reference(reference.repository, pinned.revision)
    repository = hub.inspect(reference)
    return _plan_file(repository, hub.choose_gguf(repository, wanted))


def _plan_file(repository: Repository, file: RepoFile) -> Plan:
    entry = catalogue.find(repository.name)
    name = entry.name if entry else repository.name.rpartition("/")[2].lower().removesuffix("-gguf")
    target = models_dir() / repository.name / file.path
    part, here = hub.part_of(target, file), store.record_of(target)
    try:
        come = part.stat().st_size
    except FileNotFoundError:  # none begun, or another process has just finished it
        come = 0
    come = file.size if here is not None and here.sha256 == file.sha256 else come
    return Plan(
        name=name,
        ftype=hub.gguf_type(file.path),
        repository=repository,
        file=file,
        license=repository.license or (entry.license if entry else ""),
        download_bytes=max(0, file.size - come),
        result_bytes=file.size,
        target=target,
        entry=entry,
    )


def _pinned(repository: str, wanted: str | None) -> StoredModel | None:
    """The stored file of a repository that is meant, where it is the only one."""
    same = [model for model in store.stored() if model.repository.lower() == repository.lower() and model.file]
    if wanted is not None:
        names = {wanted, hub.gguf_type(f"-{wanted}.gguf")} - {""}
        same = [m for m in same if {m.file, PurePosixPath(m.file or "").name, m.ftype} & names]
    return same[0] if len(same) == 1 else None


def carry_out(planned: Plan, *, show_progress_bar: bool = False) -> Pulled:
    """Fetch or make what a plan says, and record it.

    Raises:
        HubError: a leaf of it; the download, or no room for it.
        ConversionError: a leaf of it; the checkpoint cannot be converted.
    """
    if planned.file is not None:
        return _fetch(planned, planned.file, show_progress_bar)
    together = planned.download_bytes if hub.same_disk(hub.hub_cache(), planned.target) else 0
    hub.check_space(planned.target, planned.result_bytes + together)
    snapshot = fetch_checkpoint(planned.repository, show_progress_bar=show_progress_bar)
    return _convert(planned, snapshot, show_progress_bar)


def pull(
    name: str,
    *,
    revision: str | None = None,
    update: bool = False,
    offline: bool = False,
    show_progress_bar: bool = False,
    before: Callable[[Plan], None] = lambda _: None,
) -> Pulled:
    """Have a model here: fetch what is missing, verify what is there, report what has changed on the hub.

    Args:
        name: as for ``plan``.
        revision: as for ``plan``.
        update: take what has changed.
        offline: verify what is here, and connect to nothing.
        show_progress_bar: as for ``locate``.
        before: called with the plan before anything is downloaded.

    Raises:
        ModelNotFoundError, InvalidOptionError: as for ``plan``.
        HubError, ConversionError: leaves of these.
    """
    stored = _here(name)
    here = None if update or revision else stored
    if offline and (here is None or store.sha256(here.path) != here.sha256):
        raise HubUnavailableError(
            f"{name} {'is not here' if here is None else 'is damaged'}, and only what is here may be used",
            hint="do without --offline once, with a connection",
        )
    if here is None:
        if update and stored is not None and catalogue.find(name) is not None:
            name = f"{stored.name}:{stored.ftype}"  # the newest of what is here, whatever type suits the machine now
        planned = plan(name, revision=revision, update=update)
        before(planned)
        return carry_out(planned, show_progress_bar=show_progress_bar)
    if offline:
        return Pulled(here, False)
    if store.sha256(here.path) != here.sha256:
        exact = f"{here.repository}:{here.file}" if here.file else f"{here.name}:{here.ftype}"
        planned = plan(exact, revision=here.revision)
        planned = replace(planned, download_bytes=planned.result_bytes) if here.file else planned
        before(planned)
        again = carry_out(planned, show_progress_bar=show_progress_bar)
        return Pulled(again.model, True, ("the file that was here was damaged and has been replaced", *again.notes))
    return Pulled(here, False, _news(here))


def _here(name: str) -> StoredModel | None:
    """The stored model that a name means, where that is one."""
    try:
        return store.record_of(catalogue.resolve(name))
    except (ModelMissingError, ModelNotFoundError, InvalidOptionError):
        return None


def _news(model: StoredModel) -> tuple[str, ...]:
    """What has happened to a pulled file on the hub since; nothing where that cannot be found out."""
    if model.file is None:
        return ()
    try:
        newest = hub.inspect(hub.Reference(model.repository))
    except HubUnavailableError as error:
        return (f"whether it has changed on the hub is not known: {error.message}",)
    file = next((f for f in newest.files if f.path == model.file), None)
    if file is None:
        return (f"{model.repository} no longer has {model.file}; the copy here stays",)
    if file.sha256 == model.sha256:
        return ()
    return (
        f"{model.repository} has another {model.file} since commit {newest.commit[:12]} "
        f"(sha256 {file.sha256}); the one here stays at {model.revision[:12]}, --update takes the new one",
    )


def _fetch(planned: Plan, file: RepoFile, show_progress_bar: bool) -> Pulled:
    if file.sha256 is None:
        raise HubNotFoundError(
            f"the hub gives no sha256 for {file.path} of {planned.repository.name}, so it could not be checked"
        )
    hub.check_space(planned.target, planned.download_bytes)
    with downloading(file.size, show_progress_bar) as advance:
        fetched = hub.download(planned.repository, file, planned.target, advance)
    model = StoredModel(
        name=planned.name,
        ftype=planned.ftype,
        repository=planned.repository.name,
        revision=planned.repository.commit,
        file=file.path,
        sha256=file.sha256,
        size_bytes=file.size,
        license=planned.license,
        path=planned.target,
    )
    store.record(model)
    return Pulled(model, fetched)


def _convert(planned: Plan, snapshot: Snapshot, show_progress_bar: bool) -> Pulled:
    from edge_embed.convert import convert

    entry = planned.entry
    assert entry is not None, "only known models are converted by name"
    planned.target.parent.mkdir(parents=True, exist_ok=True)
    says_pooling = (snapshot.folder / "modules.json").is_file() or entry.pooling == "rank"
    with BytesProgress("hashing", "converting", "verifying", enabled=show_progress_bar) as advance:
        report = convert(
            snapshot.folder,
            planned.target,
            ftype=planned.ftype,
            name=entry.name,
            license=planned.license or None,
            repository=snapshot.repository,
            revision=snapshot.revision,
            pooling=None if says_pooling else cast("Pooling", entry.pooling),
            mrl_dimensions=entry.mrl_dimensions,
            reranker=scores_by_two_words(entry),
            threads=_THREADS,
            progress=advance,
            verify=True,
            verify_progress=advance,
        )
    model = StoredModel(
        name=entry.name,
        ftype=planned.ftype,
        repository=snapshot.repository,
        revision=snapshot.revision,
        file=None,
        sha256=report.sha256,
        size_bytes=report.size_bytes,
        license=planned.license,
        path=planned.target,
    )
    store.record(model)
    return Pulled(model, True, (f"the checkpoint that it was made of stays in the cache: {snapshot.folder}",))
