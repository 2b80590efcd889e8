"""Builds of llama.cpp's libraries that lie side by side, and which of them the runtime takes.

A build is a folder of shared libraries in ``paths.engines_dir()`` with a manifest, ``engine.json``: what it was built
from, with which settings, for which machine, and the size and SHA-256 of each file. ``packaged`` stands for the
libraries that llama-cpp-python itself brought. The choice is, in this order: ``$EDGE_EMBED_ENGINE`` (a build's name, a
folder, or ``packaged``), ``$LLAMA_CPP_LIB_PATH`` (llama-cpp-python's own variable), what ``choose`` has written,
``packaged``.

This module reads and writes small files. It loads no library (``bindings``) and builds none (``builder``).
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from edge_embed.errors import EngineUnavailableError, InvalidOptionError
from edge_embed.paths import engines_dir
from edge_embed.store import sha256

PACKAGED: Final = "packaged"
MANIFEST: Final = "engine.json"
VARIABLE: Final = "EDGE_EMBED_ENGINE"
_CHOSEN: Final = "chosen.json"
# What processors call themselves -> one name for each kind.
_MACHINES: Final = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}

Reason = Literal["environment", "llama-cpp-python", "chosen", "default"]


@dataclass(frozen=True, slots=True)
class File:
    """A library of a build: its name in the folder, its size in bytes and its SHA-256.

    A name that only points to another one (``libllama.so`` to ``libllama.so.0``) has that one's.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Build:
    """A build whose manifest could be read.

    Attributes:
        name: it is chosen by.
        folder: where its libraries are.
        preset: what it was built as; empty where cmake was given no preset.
        llama_cpp_python: the release whose sources it was built from, and whose bindings it fits.
        sources_sha256: of that release's source archive.
        system: ``Linux``, ``Darwin``, ``Windows``.
        machine: the kind of processor that it is for, e.g. ``x86_64``, ``aarch64``.
        compiler: its name and version.
        settings: what CMake was told, ``NAME=value``.
        installed: when it was put here, ISO 8601 in UTC.
        files: its libraries.
    """

    name: str
    folder: Path
    preset: str
    llama_cpp_python: str
    sources_sha256: str
    system: str
    machine: str
    compiler: str
    settings: tuple[str, ...]
    installed: str
    files: tuple[File, ...]

    @property
    def n_bytes(self) -> int:
        """What its libraries take on the disk."""
        return sum({file.sha256: file.size for file in self.files}.values())

    def unfit(self) -> str:
        """Why it cannot be used here as its manifest and its folder say, or nothing; loads no library."""
        from edge_embed.engine.build import LLAMA_CPP_PYTHON  # not at each start: it imports much

        if self.llama_cpp_python != LLAMA_CPP_PYTHON:
            return f"it is of llama-cpp-python {self.llama_cpp_python}, and this release needs {LLAMA_CPP_PYTHON}"
        if (self.system, self.machine) != here():
            return f"it is for {self.system} on {self.machine}, and this is {' on '.join(here())}"
        for file in self.files:
            try:
                size = (self.folder / file.name).stat().st_size
            except OSError as error:
                return f"{file.name} cannot be read: {error.strerror or error}"
            if size != file.size:
                return f"{file.name} has {size} bytes, not {file.size}"
        return ""

    def damaged(self) -> str:
        """The first library whose bytes are not those that were installed, or nothing; reads them all."""
        digests: dict[Path, str] = {}
        for file in self.files:
            try:
                path = (self.folder / file.name).resolve(strict=True)
                digests[path] = digests.get(path) or sha256(path)
            except OSError as error:
                return f"{file.name} cannot be read: {error.strerror or error}"
            if digests[path] != file.sha256:
                return f"{file.name} is not what was installed"
        return ""


@dataclass(frozen=True, slots=True)
class Broken:
    """A folder among the builds that is none; ``problem`` says why."""

    name: str
    folder: Path
    problem: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What the runtime is asked to take.

    Attributes:
        name: a build's, a folder where the environment names one, or ``packaged``.
        reason: who asks for it.
    """

    name: str
    reason: Reason

    @property
    def said(self) -> str:
        """Who asks for it, for people."""
        return {
            "environment": f"named by {VARIABLE}",
            "llama-cpp-python": "named by LLAMA_CPP_LIB_PATH",
            "chosen": "chosen by `edge-embed engine use`",
            "default": "nothing else was chosen",
        }[self.reason]


def here() -> tuple[str, str]:
    """This system and this kind of processor, as manifests name them."""
    return platform.system(), machine_name(platform.machine())


def machine_name(said: str) -> str:
    """One name for each kind of processor, whatever a system or a compiler calls it."""
    return _MACHINES.get(said.lower(), said.lower())


def installed() -> list[Build | Broken]:
    """The builds that are here, by name; folders that are none say why."""
    try:
        names = sorted(path.name for path in engines_dir().iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError:
        return []
    return [read(name) for name in names]


def read(name: str, folder: Path | None = None) -> Build | Broken:
    """One build, by its name or, where it lies elsewhere, by its folder."""
    folder = folder or engines_dir() / name
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(manifest, dict) and manifest and "installed" not in manifest:
            return Broken(name, folder, f"it is what CMake made; take it with `edge-embed engine add {folder}`")
        return _parse(name, folder, manifest)
    except OSError as error:
        return Broken(name, folder, f"{MANIFEST} cannot be read: {error.strerror or error}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return Broken(name, folder, f"{MANIFEST} is damaged: {error!r}")


def _parse(name: str, folder: Path, manifest: dict[str, Any]) -> Build:
    strings = [manifest[key] for key in ("preset", "system", "machine", "compiler", "installed")]
    strings += [manifest["sources"]["llama_cpp_python"], manifest["sources"]["sha256"], *manifest["settings"]]
    files = tuple(File(str(file["name"]), int(file["size"]), str(file["sha256"])) for file in manifest["files"])
    if not all(isinstance(text, str) for text in strings) or not files:
        raise ValueError("a field is of another type, or there are no files")
    if any(Path(file.name).name != file.name for file in files):
        raise ValueError("a file lies elsewhere")
    preset, system, machine, compiler, when, version, digest, *settings = strings
    return Build(
        name, folder, preset, version, digest, system, machine_name(machine), compiler, tuple(settings), when, files
    )


def choice() -> Choice:
    """What the runtime is asked to take; whether it is there and fits is another question, see ``folder_of``."""
    if own := os.environ.get(VARIABLE):
        return Choice(own, "environment")
    if own := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return Choice(own, "llama-cpp-python")
    try:
        name = json.loads((engines_dir() / _CHOSEN).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, TypeError, KeyError):
        return Choice(PACKAGED, "default")
    return Choice(str(name), "chosen")


def folder_of(chosen: Choice) -> Path | None:
    """Where the libraries of a choice are; None for those that llama-cpp-python brought. Loads nothing.

    Raises:
        EngineUnavailableError: there is no such build, it is broken, or it is for another release or machine.
    """
    if chosen.reason == "llama-cpp-python":
        return Path(chosen.name)  # another build than ours: bindings.py looks at what it loads
    if chosen.name == PACKAGED:
        return None
    if chosen.reason == "environment" and {os.sep, os.altsep} & set(chosen.name):
        folder = Path(chosen.name).expanduser().absolute()
        if not (folder / MANIFEST).exists() and folder.is_dir():
            return folder  # somebody's own build: likewise
        found = read(chosen.name, folder)
    else:
        found = read(chosen.name)
    problem = found.problem if isinstance(found, Broken) else found.unfit()
    if problem:
        raise EngineUnavailableError(
            problem,
            hint="`edge-embed engine list` says what is here; `edge-embed engine build` builds one",
        )
    return found.folder


def named(name: str) -> Build:
    """A build by its name.

    Raises:
        InvalidOptionError: there is none of that name.
        EngineUnavailableError: what is there is broken.
    """
    found = read(name)
    if isinstance(found, Build):
        return found
    if not found.folder.is_dir() or name[:1] in ("", ".") or Path(name).name != name:
        names = [build.name for build in installed()]
        raise InvalidOptionError(
            f"there is no engine {name!r} here", hint=f"there are: {', '.join([PACKAGED, *names])}"
        )
    raise EngineUnavailableError(
        f"the engine {name!r} is broken: {found.problem}", hint=f"remove it: edge-embed engine remove {name}"
    )


def choose(name: str) -> None:
    """Have every later start take a build, or ``packaged``; whether it works is not looked at here.

    Raises:
        OSError: it cannot be written.
    """
    folder = engines_dir()
    if name == PACKAGED:
        (folder / _CHOSEN).unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{_CHOSEN}.{os.getpid()}"
    try:
        new.write_text(json.dumps({"name": name}), encoding="utf-8")
        new.replace(folder / _CHOSEN)
    finally:
        new.unlink(missing_ok=True)


def describe(found: Build | Broken) -> dict[str, Any]:
    """A build as JSON, with what is wrong with it."""
    facts = {**asdict(found), "folder": str(found.folder)}
    return facts if isinstance(found, Broken) else {**facts, "size_bytes": found.n_bytes, "problem": found.unfit()}
