"""A walk takes what it should, says what it cannot take, and never ends in a loop."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edge_embed.errors import InputFileError
from edge_embed.search.scan import Rules, Scan, root_of, scan


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def look(folder: Path, **rules: object) -> tuple[set[str], Scan]:
    root = root_of(folder)
    found = scan([root], Rules(**rules))  # type: ignore[arg-type]
    return {os.path.relpath(path, root) for path in found.files}, found


def test_known_kinds_are_taken_and_others_counted(folder: Path) -> None:
    write(folder, "a.md", "b/c.py", "b/d.png", "README")
    names, found = look(folder)
    assert {"a.md", "b/c.py", "README"} == names
    assert (1, []) == (found.n_ignored, found.skipped)
    assert {"markdown", "code", "text"} == {file.kind for file in found.files.values()}


def test_hidden_files_and_folders_of_tools_are_left_out(folder: Path) -> None:
    write(folder, ".git/a.txt", ".hidden.txt", "node_modules/x/a.md", "a.txt")
    assert {"a.txt"} == look(folder)[0]
    assert {"a.txt", ".hidden.txt", ".git/a.txt"} == look(folder, hidden=True)[0]
    assert {"a.txt", "node_modules/x/a.md"} == look(folder, ignore=False)[0]


def test_gitignore_counts_as_git_reads_it(folder: Path) -> None:
    write(
        folder,
        "a.log",
        "keep.log",
        "build/x.txt",
        "sub/build/y.txt",
        "sub/z.tmp.txt",
        "sub/keep.tmp.txt",
        "sub/only.md",
    )
    (folder / ".gitignore").write_text("*.log\n!keep.log\n/build/\n*.tmp.txt\n")
    (folder / "sub" / ".gitignore").write_text("!keep.tmp.txt\n/only.md\n")
    assert {"keep.log", "sub/build/y.txt", "sub/keep.tmp.txt"} == look(folder)[0]


def test_exclude_and_as_text(folder: Path) -> None:
    write(folder, "a.md", "drafts/b.md", "data.json")
    names, found = look(folder, exclude=("drafts/",), as_text=("*.json",))
    assert {"a.md", "data.json"} == names
    assert "text" == found.files[str(folder.resolve() / "data.json")].kind


def test_a_file_that_is_named_is_taken_whatever_it_is_called(folder: Path) -> None:
    write(folder, "strange.ext")
    assert ["text"] == [file.kind for file in scan([root_of(folder / "strange.ext")], Rules()).files.values()]


def test_large_files_are_refused_by_name(folder: Path) -> None:
    write(folder, "a.txt")
    with (folder / "big.txt").open("wb") as file:
        file.truncate(1 << 30)  # a line of a gigabyte, in no room
    names, found = look(folder)
    assert {"a.txt"} == names
    assert [(str(folder.resolve() / "big.txt"), "has 1073741824 bytes; 50000000 are read (--max-file-size)")] == [
        (one.path, one.reason) for one in found.skipped
    ]


def test_pipes_and_sockets_are_named_and_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe.txt")
    monkeypatch.chdir(folder)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.txt")
        names, found = look(folder)
    assert set() == names
    assert ["is no file but a pipe", "is no file but a socket"] == [one.reason for one in found.skipped]


def test_loops_and_broken_links_are_named(folder: Path) -> None:
    write(folder, "sub/a.txt")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "gone.txt").symlink_to("nowhere")
    for follow in (False, True):
        names, found = look(folder, follow=follow)
        assert {"sub/a.txt"} == names
        reasons = {Path(one.path).name: one.reason for one in found.skipped}
        assert "is a link to a folder that it is in" == reasons.pop("up")
        assert {"self.txt", "gone.txt"} == set(reasons)


def test_other_links_are_followed_only_if_asked(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/b.txt")
    write(folder, "a.txt")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "same.txt").symlink_to("a.txt")
    names, found = look(folder)
    assert ({"a.txt"}, 2, []) == (names, found.n_ignored, found.skipped)
    assert {"a.txt", "same.txt", "link/b.txt"} == look(folder, follow=True)[0]


def test_names_of_any_script_are_kept_and_those_of_none_are_named(folder: Path) -> None:
    write(folder, "日本語/naïve 'quote' \U0001f41d.txt")
    Path(os.fsdecode(os.fsencode(str(folder)) + b"/\xff\xfe.txt")).write_text("x")
    names, found = look(folder)
    assert {"日本語/naïve 'quote' \U0001f41d.txt"} == names
    assert ["has a name that is not UTF-8"] == [one.reason for one in found.skipped]


def test_a_folder_that_cannot_be_looked_into_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "a.txt", "closed/b.txt")
    real = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("os.scandir", refuse)
    names, found = look(folder)
    assert {"a.txt"} == names
    assert ["cannot be looked into: Permission denied"] == [one.reason for one in found.skipped]
    assert [str(folder.resolve() / "closed")] == found.unread


def test_a_root_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        root_of(tmp_path / "nowhere")


def test_a_pattern_that_is_none_is_an_error(folder: Path) -> None:
    with pytest.raises(InputFileError, match="--exclude"):
        look(folder, exclude=("!",))
