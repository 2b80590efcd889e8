"""Folders and files, on this machine or in a store that a URI names (``s3://``, ``gs://``, ``hdfs://`` ...).

pyarrow's file systems do the work. What is here adds that a file appears whole or not at all, and that nothing that
is shown or written down has the keys in it that a URI may carry.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from edge_embed.errors import InputFileError, InvalidOptionError, OutputFileError

_HIDDEN: Final = ("_", ".")  # names that readers of folders of tables leave out
_UNFINISHED: Final = "_unfinished-"
_SECOND: Final = 10**9
# What pyarrow asks for the address of a store that speaks S3, in this order, where the URI names none.
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@contextlib.contextmanager
def packages() -> Iterator[None]:
    """Around imports of the extra ``bulk``; a missing one is an InvalidOptionError that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InvalidOptionError(
            f"tables need a package that is not installed: {error.name}", hint="pip install 'edge-embed[bulk]'"
        ) from None


def is_uri(text: str) -> bool:
    """Whether a text names a place by a scheme; ``C:\\folder`` does not."""
    return "://" in text


def shown(text: str) -> str:
    """A place as it may be seen: a URI without user, password and options; a path whole, so that it is one anywhere."""
    if not is_uri(text):
        return str(Path(text).expanduser().absolute())
    parts = urlsplit(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@functools.lru_cache(maxsize=64)
def filesystem(text: str) -> tuple[Any, str]:
    """The file system of a path or URI (``pyarrow.fs.FileSystem``), and the path in it.

    Raises:
        InvalidOptionError: a scheme that is not known here, or a URI that is none.
    """
    with packages():
        import pyarrow as pa
        from pyarrow import fs
    if not is_uri(text):
        return fs.LocalFileSystem(), shown(text)
    try:
        system, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InvalidOptionError(f"{shown(text)} cannot be used: {error}", hint="see pyarrow.fs.FileSystem") from None
    return system, path.rstrip("/")


def lance_place(text: str, options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A folder as LanceDB takes it, and its options: what a URI says to pyarrow, said to LanceDB.

    Credentials and regions of the environment both read themselves.

    Args:
        text: path or URI.
        options: LanceDB's own, which win.
    """
    if not text.startswith("s3://"):
        return text.partition("?")[0] if is_uri(text) else text, dict(options)
    parts = urlsplit(text)
    query = dict(parse_qsl(parts.query))
    endpoint = query.get("endpoint_override") or next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    found = {
        "aws_access_key_id": unquote(parts.username or ""),
        "aws_secret_access_key": unquote(parts.password or ""),
        "aws_region": query.get("region", ""),
        "aws_endpoint": endpoint,
        "allow_http": "true" if endpoint.startswith("http://") else "",
    }
    return shown(text), {**{name: value for name, value in found.items() if value}, **options}


def files_below(text: str) -> list[tuple[str, int, int]]:
    """The files of a folder with all below, or the file itself: path or URI, bytes, time of change in ns; by name.

    Times of a store are whole seconds: some say more in a listing than of the single file.

    Raises:
        InputFileError: there is nothing, or it cannot be read.
    """
    from pyarrow import fs

    system, path = filesystem(text)
    with reading(text):
        (info,) = system.get_file_info([path])
        if info.type == fs.FileType.NotFound:
            raise InputFileError(f"{shown(text)} is not there")
        found = [info] if info.is_file else system.get_file_info(fs.FileSelector(path, recursive=True))
    wanted = [
        one
        for one in found
        if one.is_file and not any(part.startswith(_HIDDEN) for part in one.path[len(path) :].split("/"))
    ]
    unit = _SECOND if is_uri(text) else 1
    return sorted((_beside(text, path, one.path), one.size, (one.mtime_ns or 0) // unit * unit) for one in wanted)


def _beside(text: str, root: str, path: str) -> str:
    """A path below a place, named as the place is."""
    if not is_uri(text):
        return path
    parts = urlsplit(text)
    below = quote(path[len(root) :], safe="/")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + below, parts.query, ""))


def join(folder: str, name: str) -> str:
    """A name in a folder."""
    if not is_uri(folder):
        return str(Path(folder) / name)
    parts = urlsplit(folder)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", parts.query, ""))


def split(text: str) -> tuple[str, str]:
    """The folder of a place, and its name there."""
    path, _, query = text.partition("?") if is_uri(text) else (text, "", "")
    folder, _, name = path.rstrip("/").rpartition("/")
    return (f"{folder}?{query}" if query else folder or "/"), name


@contextlib.contextmanager
def reading(text: str) -> Iterator[None]:
    """What goes wrong inside is an InputFileError about that place."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputFileError(f"{shown(text)} cannot be read: {_reason(error)}") from error


@contextlib.contextmanager
def writing(text: str) -> Iterator[None]:
    """What goes wrong inside is an OutputFileError about that place."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OutputFileError(f"cannot write {shown(text)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def identity(text: str) -> str:
    """Size and time of change of a file: another one after it was changed; InputFileError where it is not there."""
    (found,) = files_below(text)
    return identity_of(found[1], found[2])


def identity_of(size: int, mtime_ns: int) -> str:
    """Likewise, of what is known of it."""
    return f"{size} bytes, changed at {mtime_ns}"


def names(folder: str) -> list[str]:
    """The names of a folder's own files and folders; none where it is not there. OutputFileError: it is a file."""
    from pyarrow import fs

    system, path = filesystem(folder)
    with writing(folder):
        return sorted(one.base_name for one in system.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def read(folder: str, name: str) -> bytes | None:
    """What is in a file of a folder, None where there is none."""
    from pyarrow import fs

    system, path = filesystem(folder)
    with writing(folder):
        (info,) = system.get_file_info([f"{path}/{name}"])
        if info.type == fs.FileType.NotFound:
            return None
        with system.open_input_stream(info.path) as stream:
            data: bytes = stream.readall()
            return data


def make(folder: str) -> None:
    """A folder, with all above it, where it is not there yet; OutputFileError where that does not work."""
    system, path = filesystem(folder)
    with writing(folder):
        system.create_dir(path, recursive=True)


def write(folder: str, name: str, data: Any) -> None:
    """A file of a folder that is there whole or not at all; it takes the place of one of that name.

    It is written under another name and renamed. Of two that write the same name at once, either's content is there
    in the end. On this machine it is on the disk when this returns; a store has its own promise.

    Raises:
        OutputFileError: it cannot be written.
    """
    system, path = filesystem(folder)
    target, part = f"{path}/{name}", f"{path}/{_UNFINISHED}{secrets.token_hex(4)}-{name}"
    with writing(folder):
        try:
            if not is_uri(folder):
                with Path(part).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            else:
                with system.open_output_stream(part) as stream:
                    stream.write(data)
            system.move(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                system.delete_file(part)
            raise


def remove(folder: str, chosen: list[str]) -> None:
    """Delete files of a folder, and the folder where it is empty then; what is not there is no error."""
    system, path = filesystem(folder)
    with writing(folder):
        for name in chosen:
            with contextlib.suppress(FileNotFoundError):
                system.delete_file(f"{path}/{name}")
    if not names(folder):
        with contextlib.suppress(OSError):
            system.delete_dir(path)


def unfinished(found: list[str]) -> list[str]:
    """The names of files whose writing was ended."""
    return [name for name in found if name.startswith(_UNFINISHED)]
