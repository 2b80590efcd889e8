"""``edge-embed pull``: a model from the hub onto this machine, pinned and checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_embed.catalogue import find, resolve, split_type
from edge_embed.cli.terminal import facts, note, size
from edge_embed.errors import ModelMissingError

if TYPE_CHECKING:
    from edge_embed.hub import Repository
    from edge_embed.provision import Plan


@click.command(
    epilog="""\b
Examples:
  edge-embed pull qwen3-embedding-0.6b
  edge-embed pull qwen3-embedding-4b:q4_k_m
  edge-embed pull Qwen/Qwen3-Embedding-8B-GGUF:Q8_0
  edge-embed pull nomic-ai/nomic-embed-text-v1.5-GGUF:nomic-embed-text-v1.5.Q6_K.gguf
  edge-embed pull qwen3-embedding-4b --update
"""
)
@click.argument("model", metavar="MODEL[:TYPE|:FILE]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit; what it was pinned to, or the newest, if none.")
@click.option("--update", is_flag=True, help="Take the newest, also where a model is here and has changed on the hub.")
@click.option("--offline", is_flag=True, help="Only verify what is here; also HF_HUB_OFFLINE=1.")
@click.option(
    "--progress/--no-progress", default=True, help="Show progress on stderr, or not: a bar on a terminal, else lines."
)
def pull(model: str, revision: str | None, update: bool, offline: bool, progress: bool) -> None:
    """Download a model, or verify one that is here.

    MODEL is a name of `edge-embed list`, or a repository with GGUF files (organization/name). Without a type, the one
    that suits this machine's memory is taken; where no ready file has it, the original weights are downloaded and
    converted. Each file is checked by the sha256 that the hub gives for it and stays at its commit: what changes on the
    hub later is said, and taken only with --update. An interrupted download goes on where it ended.
    """
    from edge_embed import provision

    shipped = _shipped(model)
    if shipped is not None:
        note(f"{model} ships with edge-embed")
        click.echo(f"{shipped}")
        return
    pulled = provision.pull(
        model, revision=revision, update=update, offline=offline, show_progress_bar=progress, before=announce
    )
    stored = pulled.model
    rows = {
        "file": str(stored.path),
        "name": f"{stored.name}:{stored.ftype}" if stored.ftype else stored.name,
        "size": f"{size(stored.size_bytes)} ({stored.size_bytes:,} bytes)",
        "sha256": stored.sha256 + ("" if pulled.fetched else " (verified)"),
        "source": stored.repository + (f", {stored.file}" if stored.file else ", converted"),
        "revision": stored.revision,
        "licence": stored.license or "not recorded",
    }
    for line in facts(rows):
        click.echo(line)
    for sentence in pulled.notes:
        note(sentence)


def _shipped(name: str) -> Path | None:
    entry = find(name.partition(":")[0])
    if entry is None or entry.path is None:
        return None
    return entry.path if split_type(name)[1] in (None, entry.ftype) else None


def announce(planned: Plan) -> None:
    """Say on stderr what will be downloaded, before it is."""
    if planned.download_bytes or planned.file is None:
        note(describe(planned))


def announce_checkpoint(repository: Repository, n_bytes: int) -> None:
    """Say on stderr which checkpoint will be converted, and how much of it has to be downloaded."""
    licence = f", licence {repository.license}" if repository.license else ""
    amount = f"{size(n_bytes)} to download" if n_bytes else "all of it is in the cache"
    known = find(repository.name)
    more = f". {known.note}" if known is not None and known.note else ""
    note(f"{repository.name} at {repository.commit[:12]}{licence}: {amount}{more}")


def describe(planned: Plan) -> str:
    """What a plan does, in one or two sentences."""
    source, commit = planned.repository.name, planned.repository.commit[:12]
    licence = f", licence {planned.license}" if planned.license else ""
    if planned.file is not None:
        rest = "" if planned.download_bytes == planned.file.size else f" of {size(planned.file.size)}"
        said = (
            f"{size(planned.download_bytes)}{rest} to download: {planned.file.path} from {source} at {commit}{licence}"
        )
    else:
        said = (
            f"{size(planned.download_bytes)} to download: the weights of {source} at {commit}{licence}; "
            f"they become about {size(planned.result_bytes)} of {planned.ftype}"
        )
    extra = planned.entry.note if planned.entry else ""
    return f"{said}. {extra}".rstrip() if extra else said


def ensure(model: str | Path | None, *, yes: bool) -> str | Path | None:
    """The model itself where it is here; else, once that is allowed, the file that was fetched for it.

    On a terminal a person is asked. Where nobody can answer, ``--yes`` or the environment has to.

    Raises:
        ModelMissingError: it is not here, and a download was not allowed.
    """
    if model is None:
        return None
    try:
        return resolve(model)
    except ModelMissingError as error:
        missing = error
    from edge_embed import provision

    if not (yes or (sys.stdin.isatty() and sys.stderr.isatty())):
        raise ModelMissingError(
            missing.message,
            hint=f"{missing.hint.partition(';')[0]}, or allow the download: --yes or {provision.ALLOWED}=1",
        )
    planned = provision.plan(str(model))
    announce(planned)
    if not yes and not click.confirm("download it now?", default=True, err=True):
        raise missing
    pulled = provision.carry_out(planned, show_progress_bar=True)
    for sentence in pulled.notes:
        note(sentence)
    return pulled.model.path
