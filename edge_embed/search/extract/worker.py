"""Files are read in a child process: a parser that hangs, crashes or eats memory costs one file, not the run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final

from edge_embed.engine.child import Child, ChildDiedError, ChildSilentError, serve
from edge_embed.errors import EngineUnavailableError
from edge_embed.search.extract import EXTRACT_VERSION, UNOPENED, ExtractError, reader_of
from edge_embed.search.types import Kind, Section

SECONDS: Final = 60.0  # for one file
_MODULE: Final = __name__  # whose main the child runs
_MEMORY: Final = 4 << 30  # address space of the child; a file of 50 MB in UCS-4, its sections and their JSON fit


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a file holds.

    Attributes:
        digest: of its content and of the way that it was read.
        size: bytes, when it was read.
        mtime_ns: when it was changed, before it was read.
        sections: its text; empty where it is the known content.
        known: whether the digest is the one that the caller has.
    """

    digest: str
    size: int
    mtime_ns: int
    sections: tuple[Section, ...]
    known: bool


class Extractor:
    """Reads files in a child process, which is started when it is needed. A context manager that ends it.

    Args:
        max_bytes: what a file may have.
        seconds: what reading one may take.
    """

    def __init__(self, *, max_bytes: int, seconds: float = SECONDS) -> None:
        self._max_bytes, self._seconds = max_bytes, seconds
        self._child: Child | None = None

    def read(self, path: str, kind: Kind, known: str = "") -> Extracted:
        """A file's sections.

        Args:
            path: absolute.
            kind: how it is read.
            known: the digest that the caller has of it; if that is still the file's, it is not parsed.

        Raises:
            ExtractError: it cannot be read, and why.
            EngineUnavailableError: no child process can be started.
        """
        if self._child is None:
            self._child = Child(_MODULE, "read files")
        request = {"path": path, "kind": kind, "known": known, "max_bytes": self._max_bytes}
        try:
            answer = self._child.ask(request, self._seconds)
        except ChildSilentError:
            self._child = None
            raise ExtractError(f"took longer than {self._seconds:g} s to read") from None
        except ChildDiedError as error:
            self._child = None
            raise ExtractError(f"ends the program that reads it: {error}") from None
        except EngineUnavailableError as error:
            self._child = None
            raise ExtractError(f"ends the process that reads it: {error.message}") from None
        if "problem" in answer:
            raise ExtractError(str(answer["problem"]))
        sections = tuple(
            Section(one["text"], tuple(one["heading"]), one["line"], one["page"]) for one in answer["sections"]
        )
        return Extracted(answer["digest"], answer["size"], answer["mtime_ns"], sections, answer["known"])

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    """The child."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        data, size, mtime_ns = _content(request["path"], request["max_bytes"])
        digest = f"{EXTRACT_VERSION}:{request['kind']}:{hashlib.sha256(data).hexdigest()}"
        found = {"digest": digest, "size": size, "mtime_ns": mtime_ns}
        if digest == request["known"]:
            return {**found, "known": True, "sections": []}
        sections = [_sound(one) for one in reader_of(request["kind"])(data, request["path"])]
        return {**found, "known": False, "sections": [asdict(one) for one in sections]}
    except ExtractError as error:
        return {"problem": str(error)}
    except OSError as error:
        return {"problem": f"{UNOPENED}: {error.strerror or error}"}
    except MemoryError:
        return {"problem": f"takes more than {_MEMORY >> 30} GiB of memory to read"}
    except RecursionError:
        return {"problem": "is nested too deeply"}


def _content(path: str, max_bytes: int) -> tuple[bytes, int, int]:
    """A file's bytes and what it was known by before they were read. Raises ExtractError, OSError."""
    # Not to wait for a pipe's writer, if one has taken the file's place since the scan.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ExtractError("is no file")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ExtractError(f"is larger than {max_bytes} bytes")
    return data, about.st_size, about.st_mtime_ns


def _sound(section: Section) -> Section:
    """A section that can be written as UTF-8 everywhere."""

    def clean(text: str) -> str:
        return text.replace("\x00", "").encode("utf-8", "replace").decode()

    return Section(clean(section.text), tuple(map(clean, section.heading)), section.line, section.page)
