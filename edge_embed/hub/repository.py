"""A repository of the hub: how it is named, and what it holds at one commit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

from edge_embed.errors import DownloadError, HubUnavailableError, InvalidOptionError

from .failures import endpoint, typed_errors

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_DIGEST: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TRUE: Final = ("1", "on", "yes", "true")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository and the branch, tag or commit that was asked for, or None for its main branch."""

    repository: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository at a commit: its path, size and digests (sha256 only of large ones, else git's)."""

    path: str
    size: int
    sha256: str | None
    blob_id: str

    @property
    def digest(self) -> str:
        """What the file is checked by, and called in the cache; so it must be nothing but a digest.

        Raises:
            DownloadError: the hub gave none.
        """
        found = self.sha256 or self.blob_id
        if not _DIGEST.fullmatch(found):
            raise DownloadError(f"the hub gives no digest for {self.path}, so it could not be checked")
        return found


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit.

    Attributes:
        name: ``organization/name``.
        commit: the full hash.
        asked: the branch or tag that this commit was found by.
        license: of the model card, or an empty string.
        files: all of them.
    """

    name: str
    commit: str
    asked: str
    license: str
    files: tuple[RepoFile, ...]


def parse_reference(text: str, revision: str | None = None) -> Reference:
    """``org/name``, ``org/name@revision``, or an address of the hub, which may name a revision too.

    Raises:
        InvalidOptionError: it is none of these, or names two revisions.
    """
    path, inner = text.removeprefix("hf://"), None
    is_address = "://" in path or path.partition("/")[0] in _HOSTS
    if is_address:
        parts = urlsplit(path if "://" in path else f"https://{path}")
        if parts.hostname not in (*_HOSTS, urlsplit(endpoint()).hostname):
            raise InvalidOptionError(
                f"{text!r} is not an address of the hub ({endpoint()})", hint="set HF_ENDPOINT for another one"
            )
        path = unquote(parts.path).strip("/")
    name, at, suffix = path.partition("@")
    if is_address and (pieces := name.split("/"))[2:3] in (["tree"], ["commit"]):
        name, inner = "/".join(pieces[:2]), "/".join(pieces[3:])
    given = [each for each in (revision, inner, suffix if at else None) if each is not None]
    if len(set(given)) > 1:
        raise InvalidOptionError(f"two revisions are asked for: {' and '.join(given)}")
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise InvalidOptionError(
            f"{text!r} is not a repository of the hub", hint="these are written organization/name, e.g. BAAI/bge-m3"
        )
    asked = given[0] if given else None
    if asked is not None and not is_inner(asked):
        raise InvalidOptionError(f"{asked!r} cannot be a revision", hint="give a branch, a tag or a commit")
    return Reference(name, asked)


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids connections."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_cache() -> Path:
    """The cache that programs of Hugging Face share: ``HF_HUB_CACHE``, ``HF_HOME/hub``, or the library's default."""
    if own := os.environ.get("HF_HUB_CACHE"):
        return Path(own).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def inspect(reference: Reference) -> Repository:
    """What a repository holds now: one request, nothing is downloaded.

    Raises:
        HubNotFoundError, HubAccessError, HubUnavailableError: it cannot be had.
        DownloadError: a name in it would leave its folder.
    """
    if is_offline():
        raise HubUnavailableError(
            f"{reference.repository} cannot be looked up: HF_HUB_OFFLINE is set", hint="unset it to connect to the hub"
        )
    from huggingface_hub import HfApi

    with typed_errors(reference.repository, reference.revision):
        info = HfApi(endpoint=endpoint()).model_info(
            reference.repository, revision=reference.revision, files_metadata=True
        )
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise HubUnavailableError(f"{endpoint()} did not say at which commit {reference.repository} is")
    files = []
    for sibling in info.siblings or ():
        lfs: Any = sibling.lfs
        digest = None if lfs is None else lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
        if not is_inner(sibling.rfilename):
            raise DownloadError(f"{reference.repository}: the file name {sibling.rfilename!r} leaves its folder")
        files.append(RepoFile(sibling.rfilename, sibling.size or 0, digest, sibling.blob_id or ""))
    card: dict[str, Any] = {} if info.card_data is None else cast(Any, info.card_data).to_dict()
    return Repository(reference.repository, info.sha, reference.revision or "main", license_of(card), tuple(files))


def license_of(card: Mapping[str, Any]) -> str:
    """The licence that a model card names: its identifier, or its name where that is ``other``."""
    found = card.get("license_name") if card.get("license") == "other" else card.get("license")
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    return found if isinstance(found, str) else ""


def is_inner(path: str) -> bool:
    """Whether a relative path stays inside the folder that it is put into, on any system."""
    parts = path.split("/")
    return not set(path) & set("\\:\0") and all(part not in ("", ".", "..") for part in parts)
