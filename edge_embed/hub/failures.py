"""What goes wrong between here and the hub, as our errors, with what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final, NoReturn, cast

from edge_embed.errors import (
    DiskSpaceError,
    DownloadError,
    HubAccessError,
    HubNotFoundError,
    HubUnavailableError,
    InvalidOptionError,
)

FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def endpoint() -> str:
    """The hub's address: ``HF_ENDPOINT``, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def network_errors() -> tuple[type[Exception], ...]:
    """What the library lets through of its HTTP client, which is another one in each of its major versions."""
    from huggingface_hub.errors import HfHubHTTPError

    clients = [
        base for base in HfHubHTTPError.__mro__ if base.__module__.split(".")[0] in ("httpx2", "httpx", "requests")
    ]
    return (OSError, *cast("list[type[Exception]]", clients))


@contextlib.contextmanager
def typed_errors(name: str, revision: str | None) -> Iterator[None]:
    """What huggingface-hub and its HTTP client raise, as our errors."""
    try:
        yield
    except (DownloadError, DiskSpaceError):
        raise
    except network_errors() as error:
        _raise_typed(name, revision, error)
    except ValueError as error:
        raise InvalidOptionError(f"{name}: {error}") from error


def _raise_typed(name: str, revision: str | None, error: Exception) -> NoReturn:
    from huggingface_hub import errors, get_token

    page = f"{endpoint()}/{name}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    login = "put a token into HF_TOKEN, or log in with `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        raise HubAccessError(
            f"{name} is gated: its terms have to be accepted on the hub before it can be downloaded",
            hint=f"accept them at {page}"
            + (", with the account of the token in use" if get_token() else f", then {login}"),
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise HubNotFoundError(f"{name} has no revision {revision!r}", hint=f"see {page}/commits") from error
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        raise HubNotFoundError(f"{name} has no longer one of its files: {error}") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise HubNotFoundError(
            f"there is no repository {name} on {endpoint()}, or it is private",
            hint="check the name" + ("; the token in use has no access" if get_token() else f"; if private, {login}"),
        ) from error
    if status in (401, 403):
        raise HubAccessError(f"{endpoint()} refuses access to {name} ({status})", hint=login) from error
    if isinstance(error, OSError) and error.errno in FULL:
        raise DiskSpaceError("the disk is full", hint="free some, and try again: what has come is kept") from error
    said = " ".join(str(error).split())[:200]
    raise HubUnavailableError(
        f"{endpoint()} cannot be reached or does not answer: {said or type(error).__name__}",
        hint="check the connection, HF_ENDPOINT and the proxy; what is in the cache works with --offline",
    ) from error


def size(n_bytes: float) -> str:
    """A size for a message, in powers of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"
