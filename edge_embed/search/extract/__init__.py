"""Files to sections of text: which kind a file is, and one small module for each kind.

A reader is a function ``read(data: bytes, name: str) -> Iterator[Section]``; what it cannot read is an
``ExtractError`` with the reason. Readers run in a child process (``worker``), because the libraries behind them are
given files of strangers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import PurePath
from typing import Final

from edge_embed.search.types import Kind, Section

# Counted up when a reader gives other sections for the same bytes: files are then read again.
EXTRACT_VERSION: Final = 1

UNOPENED: Final = "cannot be read"  # how the reason begins where that says nothing about what a file holds

Reader = Callable[[bytes, str], Iterator[Section]]

_EXTENSIONS: Final[dict[Kind, str]] = {
    "text": ".txt .text .log .rst .adoc .asciidoc .org .tex .srt .vtt .po .toml .ini .cfg .conf .yaml .yml",
    "markdown": ".md .markdown .mdown .mkd .mdx .rmd .qmd",
    "html": ".html .htm .xhtml .xht",
    "pdf": ".pdf",
    "docx": ".docx .docm .dotx",
    "mail": ".eml .mbox",
    "notebook": ".ipynb",
    "code": ".py .pyi .pyw .js .mjs .cjs .jsx .ts .mts .cts .tsx .java .c .h .cc .cpp .cxx .hh .hpp .hxx .go .rs "
    ".rb .php .cs .sh .bash .zsh .fish .ps1 .swift .kt .kts .scala .lua .pl .pm .hs .ml .mli .ex .exs "
    ".erl .clj .el .r .jl .lisp .sql .css .scss .less .vue .svelte .dart .zig .nim .f90 .f .m .mm .cu "
    ".cuh .glsl .proto .thrift .graphql .cmake .mk .gradle .groovy .vim .tf .nix .bzl .asm .s .v .sv .vhd "
    ".vhdl .pas .d .tcl .awk .sed",
}
_BY_EXTENSION: Final[dict[str, Kind]] = {
    extension: kind for kind, extensions in _EXTENSIONS.items() for extension in extensions.split()
}
_BY_NAME: Final[dict[str, Kind]] = {
    "readme": "text", "license": "text", "licence": "text", "copying": "text", "notice": "text", "authors": "text",
    "contributing": "text", "changelog": "text", "changes": "text", "news": "text", "todo": "text", "install": "text",
    "makefile": "code", "dockerfile": "code", "containerfile": "code", "rakefile": "code", "gemfile": "code",
    "justfile": "code", "cmakelists.txt": "code",
}  # fmt: skip
_MODULES: Final[dict[Kind, str]] = {
    "text": "text", "markdown": "markdown", "html": "html", "pdf": "pdf", "docx": "docx", "mail": "mail",
    "notebook": "notebook", "code": "code",
}  # fmt: skip


class ExtractError(Exception):
    """A file cannot be read; the message says why. Becomes a ``Skipped``, and never leaves ``search``."""


def kind_of(name: str) -> Kind | None:
    """How a file of that name is read, or None where nothing is known of it."""
    lower = name.lower()
    return _BY_NAME.get(lower) or _BY_EXTENSION.get(PurePath(lower).suffix)


def reader_of(kind: Kind) -> Reader:
    """The reader of a kind; its library is imported now.

    Raises:
        ImportError: it is not installed.
    """
    reader: Reader = import_module(f"{__name__}.{_MODULES[kind]}").read
    return reader
