"""One file, downloaded: whole and checked, or not at all, and going on where an interruption left it.

huggingface-hub does the requests. What it does not do is done here: what has come is kept for a later process, and
every file must have the digest that the hub gave for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from edge_embed.errors import DiskSpaceError, DownloadError
from edge_embed.paths import cache_dir

from .failures import FULL, endpoint, network_errors, size, typed_errors
from .repository import RepoFile, Repository

Advance = Callable[[int], None]
"""Called with the number of bytes that have come (less than 0 where some have to come again)."""

PAUSES: Final = (1, 2, 4, 8)  # seconds before the next attempt, after so many in a row that have brought nothing
SPARE: Final = 64 * 2**20  # bytes that a download leaves free


def check_space(folder: Path, n_bytes: int) -> None:
    """DiskSpaceError where a folder's disk has no room for so many bytes."""
    free = shutil.disk_usage(_existing(folder)).free
    if n_bytes and free < n_bytes + SPARE:
        raise DiskSpaceError(
            f"{size(n_bytes)} would be downloaded to {folder}, and its disk has {size(free)} free",
            hint="free some, or put the folder elsewhere: HF_HOME for checkpoints, EDGE_EMBED_HOME for models",
        )


def same_disk(a: Path, b: Path) -> bool:
    """Whether two folders, which need not exist yet, will be on one disk."""
    return _existing(a).stat().st_dev == _existing(b).stat().st_dev


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def part_of(target: Path, file: RepoFile) -> Path:
    """Where what has come of a file waits for the rest; its name holds the digest, so that versions do not mix."""
    return target.with_name(f"{target.name}.{file.digest[:12]}.part")


def download(repository: Repository, file: RepoFile, target: Path, advance: Advance) -> bool:
    """Have one file at ``target``: whole and checked, or not at all. Says whether anything had to be fetched.

    What has come of a large file before an interruption stays beside the target and is not fetched again.

    Raises:
        HubAccessError, HubNotFoundError, HubUnavailableError: the hub refuses or does not answer.
        DownloadError: it was cut off, or is not what the hub had said.
        DiskSpaceError: the disk is full.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # it has no __all__

    url = hf_hub_url(repository.name, file.path, revision=repository.commit, endpoint=endpoint())
    part = part_of(target, file)
    locks = cache_dir() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{file.digest}.lock"):
            if target.is_file() and _digest_of(target, file) == file.digest:
                advance(file.size)
                return False  # it was here, or another process was faster
            with part.open("a+b") as raw:
                sink = _Sink(raw, file, repository.name, advance)
                with typed_errors(repository.name, repository.commit):
                    _fill(url, sink, build_hf_headers())
            if (found := sink.digest()) != (promised := file.digest):
                part.unlink()
                raise DownloadError(
                    f"{repository.name}: {file.path} has the digest {found}, and the hub said {promised}",
                    hint="it was deleted; try again, and if it stays so, something on the way changes it",
                )
            part.replace(target)
            return True
    except OSError as error:
        if error.errno in FULL:
            raise DiskSpaceError(
                f"the disk of {target.parent} is full", hint="free some, and try again: what has come is kept"
            ) from error
        raise DownloadError(f"{target} cannot be written: {error}") from error


def _fill(url: str, sink: _Sink, headers: dict[str, str]) -> None:
    """Let huggingface-hub write the rest of the file, again and again while anything comes."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    fruitless = 0
    while sink.tell() < sink.size:
        before = sink.tell()
        try:
            with _quiet():
                http_get(
                    url,
                    cast(BinaryIO, sink),
                    resume_size=before,
                    headers=dict(headers),
                    expected_size=sink.size,
                    _nb_retries=0,  # the loop here counts what has come over all attempts
                    _tqdm_bar=cast(Any, _NoBar()),  # and the sink counts what comes
                )
        except network_errors() as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            if isinstance(error, OSError) and error.errno in (*FULL, errno.EFBIG):
                raise
            fruitless = 0 if sink.tell() > before else fruitless + 1
            if fruitless > len(PAUSES):
                raise DownloadError(
                    f"{sink.label} was cut off after {size(sink.tell())} of {size(sink.size)}: {error}",
                    hint="run the same command again: it goes on from there",
                ) from error
            time.sleep(PAUSES[max(fruitless - 1, 0)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings of each attempt that fails: the last of them becomes an error here."""
    logger = logging.getLogger("huggingface_hub.file_download")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _NoBar:
    """In place of the bar that huggingface-hub would draw."""

    def update(self, n: int) -> None:
        """Nothing."""


class _Sink:
    """The file that a download is written to: counts and digests what passes.

    A large file goes on where an earlier attempt ended. A small one starts over: the hub compresses these, and the
    middle of a compressed answer is of no use.
    """

    def __init__(self, raw: BinaryIO, file: RepoFile, repository: str, advance: Advance) -> None:
        self.size, self.label = file.size, f"{repository}: {file.path}"
        self._raw, self._advance, self._new = raw, advance, partial(_digest, file)
        self._digest = self._new()
        raw.seek(0, os.SEEK_END)
        if file.sha256 is None or raw.tell() > file.size:
            raw.truncate(0)
        raw.seek(0)
        while chunk := raw.read(2**20):
            self._digest.update(chunk)
            advance(len(chunk))

    def write(self, data: bytes) -> int:
        if self._raw.tell() + len(data) > self.size:
            raise DownloadError(f"{self.label} is larger than the {self.size:,} bytes that the hub said")
        self._raw.write(data)
        self._digest.update(data)
        self._advance(len(data))
        return len(data)

    def tell(self) -> int:
        return self._raw.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The library rewinds to the start, where a server sends the whole file again; nothing else is supported."""
        assert (offset, whence) == (0, os.SEEK_SET)
        return offset

    def truncate(self) -> None:
        self._advance(-self._raw.tell())
        self._raw.seek(0)
        self._raw.truncate()
        self._digest = self._new()

    def digest(self) -> str:
        return self._digest.hexdigest()


def _digest(file: RepoFile) -> hashlib._Hash:
    """A new digest: sha256, or Git's of a small file, which is over its length and its contents."""
    return hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)


def _digest_of(path: Path, file: RepoFile) -> str:
    digest = _digest(file)
    with path.open("rb") as raw:
        while chunk := raw.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
