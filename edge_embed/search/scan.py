"""Which files of a folder are read: a walk that follows no loop, opens nothing but rules, and says what it left out.

Left out without a word, but counted: what is hidden, what ``.gitignore`` and ``.ignore`` name, folders of tools
(``node_modules`` and its like), kinds that are not known, symbolic links unless they are to be followed. Said by name:
what should have been read and cannot be.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from edge_embed.errors import InputFileError
from edge_embed.search.extract import kind_of
from edge_embed.search.types import Found, Kind, Skipped

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

DEFAULT_MAX_BYTES: Final = 50_000_000
_TOOLS: Final = {"node_modules", "__pycache__", "site-packages", "bower_components"}
_RULE_FILES: Final = (".gitignore", ".ignore")
_MAX_RULES: Final = 1 << 20  # bytes of a file of rules


@dataclass(frozen=True, slots=True)
class Rules:
    """What of a folder is read.

    Attributes:
        max_bytes: of a file.
        hidden: whether files and folders whose names begin with a dot are read.
        ignore: whether files of rules and the folders of tools count.
        follow: whether symbolic links are followed.
        exclude: patterns of what is left out, as in ``.gitignore``.
        as_text: patterns of files that are read as text whatever their extension.
    """

    max_bytes: int = DEFAULT_MAX_BYTES
    hidden: bool = False
    ignore: bool = True
    follow: bool = False
    exclude: tuple[str, ...] = ()
    as_text: tuple[str, ...] = ()


@dataclass(slots=True)
class Scan:
    """What a walk found.

    Attributes:
        files: by their paths.
        skipped: what should have been read and cannot be.
        n_ignored: files and folders that rules leave out.
        unread: folders that could not be looked into: nothing is known of what is in them.
    """

    files: dict[str, Found] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    n_ignored: int = 0
    unread: list[str] = field(default_factory=list)


def root_of(folder: str | Path) -> str:
    """The absolute path of a folder or file that is to be read, its own links resolved.

    Raises:
        InputFileError: it is not there, or its name is not UTF-8.
    """
    try:
        path = str(Path(folder).expanduser().resolve(strict=True))
        path.encode()
    except OSError as error:
        raise InputFileError(f"{folder} cannot be read: {error.strerror or error}") from error
    except UnicodeEncodeError:
        raise InputFileError(f"{os.fsencode(folder)!r} has a name that is not UTF-8", hint="rename it") from None
    return path


def scan(roots: Sequence[str], rules: Rules, *, leave_out: Sequence[str] = ()) -> Scan:
    """The files below some folders.

    Args:
        roots: absolute paths, from ``root_of``; files are taken as they are.
        rules: what is read.
        leave_out: absolute paths that are never read: the database itself.

    Raises:
        InputFileError: a pattern is none.
    """
    found = Scan()
    walk = _Walk(found, rules, set(leave_out))
    for root in roots:
        walk.root(root)
    return found


# Rules and the path of their folder from the root, the outermost first; device and inode of the folders around one.
Specs: TypeAlias = "tuple[tuple[str, GitIgnoreSpec], ...]"
Inside: TypeAlias = tuple[tuple[int, int], ...]


class _Walk:
    def __init__(self, found: Scan, rules: Rules, leave_out: set[str]) -> None:
        self._found, self._rules, self._leave_out = found, rules, leave_out
        self._exclude, self._as_text = _spec(rules.exclude, "--exclude"), _spec(rules.as_text, "--as-text")

    def root(self, root: str) -> None:
        try:
            about = os.stat(root)  # noqa: PTH116 - a string stays one: a walk makes millions
        except OSError as error:
            self._skip(root, f"cannot be read: {error.strerror or error}")
            return
        if not stat.S_ISDIR(about.st_mode):
            self._file(root, Path(root).name, about, named=True)
            return
        # Each folder waits with its path from the root, the rules above it and, to find loops, the folders around it.
        waiting: list[tuple[str, str, Specs, Inside]] = [(root, "", (), ((about.st_dev, about.st_ino),))]
        while waiting:
            folder, relative, above, inside = waiting.pop()
            try:
                with os.scandir(folder) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                self._skip(folder, f"cannot be looked into: {error.strerror or error}")
                self._found.unread.append(folder)
                continue
            specs = (*above, *((relative, spec) for spec in self._rules_in(folder, entries)))
            below: list[tuple[str, str, Specs, Inside]] = []
            for entry in entries:
                inner = self._entry(entry, relative, specs, inside)
                if inner is not None:
                    below.append((entry.path, f"{relative}{entry.name}/", specs, inner))
            waiting += reversed(below)

    def _entry(
        self,
        entry: os.DirEntry[str],
        relative: str,
        specs: Specs,
        inside: Inside,
    ) -> Inside | None:
        """Take a file; of a folder that is to be walked, it and the folders that it is in."""
        if entry.path in self._leave_out:
            return None
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            self._skip(os.fsencode(entry.path).decode("utf-8", "backslashreplace"), "has a name that is not UTF-8")
            return None
        try:
            if entry.is_symlink():
                about = os.stat(entry.path)  # noqa: PTH116
                if not self._rules.follow and (not stat.S_ISDIR(about.st_mode) or not _is_inside(about, inside)):
                    self._found.n_ignored += 1
                    return None
            else:
                about = entry.stat(follow_symlinks=False)
        except OSError as error:  # a link to itself or to nothing, or a file that is gone
            self._skip(entry.path, f"cannot be read: {error.strerror or error}")
            return None
        is_folder = stat.S_ISDIR(about.st_mode)
        if self._is_ignored(entry.name, relative, is_folder, specs):
            self._found.n_ignored += 1
            return None
        if not is_folder:
            self._file(entry.path, relative + entry.name, about)
            return None
        if _is_inside(about, inside):
            self._skip(entry.path, "is a link to a folder that it is in")
            return None
        return (*inside, (about.st_dev, about.st_ino))

    def _file(self, path: str, relative: str, about: os.stat_result, *, named: bool = False) -> None:
        name = relative.rpartition("/")[2]
        as_text = self._as_text is not None and self._as_text.match_file(relative)
        kind: Kind | None = "text" if as_text else kind_of(name)
        if kind is None and named:
            kind = "text"
        if kind is None:
            self._found.n_ignored += 1
        elif not stat.S_ISREG(about.st_mode):
            self._skip(path, f"is no file but {_what(about.st_mode)}")
        elif about.st_size > self._rules.max_bytes:
            self._skip(path, f"has {about.st_size} bytes; {self._rules.max_bytes} are read (--max-file-size)")
        else:
            self._found.files[path] = Found(path, kind, about.st_size, about.st_mtime_ns)

    def _is_ignored(self, name: str, relative: str, is_folder: bool, specs: Specs) -> bool:
        rules = self._rules
        path = relative + name + ("/" if is_folder else "")
        if self._exclude is not None and self._exclude.match_file(path):
            return True
        if not rules.hidden and name.startswith("."):
            return True
        if not rules.ignore:
            return False
        if is_folder and name in _TOOLS:
            return True
        for where, spec in reversed(specs):  # the rules nearest to a file decide
            decided = spec.check_file(path[len(where) :]).include
            if decided is not None:
                return decided
        return False

    def _rules_in(self, folder: str, entries: list[os.DirEntry[str]]) -> Iterator[GitIgnoreSpec]:
        if not self._rules.ignore:
            return
        names = {entry.name for entry in entries}
        for name in _RULE_FILES:
            if name not in names:
                continue
            path = Path(folder, name)
            try:
                about = path.stat()
                if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_RULES:
                    raise OSError("no file of rules")
                spec = _spec(path.read_text(encoding="utf-8", errors="replace").splitlines(), str(path))
            except (OSError, InputFileError) as error:
                self._skip(str(path), f"its rules do not count: {str(error).partition(chr(10))[0]}")
                continue
            if spec is not None:
                yield spec

    def _skip(self, path: str, reason: str) -> None:
        self._found.skipped.append(Skipped(path, reason))


def _spec(patterns: Sequence[str], where: str) -> GitIgnoreSpec | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise InputFileError(f"{where}: {error}", hint="give patterns as in .gitignore") from None


def _is_inside(about: os.stat_result, inside: Inside) -> bool:
    return (about.st_dev, about.st_ino) in inside


_WHATS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _what(mode: int) -> str:
    return next((what for is_it, what in _WHATS if is_it(mode)), "something else")
