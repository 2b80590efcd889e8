"""Builds of llama.cpp's libraries: made from a preset, put beside each other in one step, tried, removed.

``cmake/CMakeLists.txt`` does the compiling, ``build.py`` fetches the sources and knows the presets' flags, and
``builds.py`` reads what is made here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from edge_embed.engine import build as pip_build
from edge_embed.engine.builds import MANIFEST, PACKAGED, VARIABLE, Build, Choice, choice, choose, named, read
from edge_embed.engine.child import Answer, Child, ChildDiedError, ChildSilentError, serve
from edge_embed.engine.devices import default_threads, memory
from edge_embed.errors import EngineBuildError, EngineUnavailableError, InvalidOptionError
from edge_embed.paths import engines_dir
from edge_embed.store import sha256

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
# libllama.so.0.5.0, libggml-cpu-armv8.2_1.so, libggml-metal.dylib, ggml-cpu.dll, default.metallib
_LIBRARY: Final = re.compile(r".+\.(so(\.\d+)*|dylib|dll|metallib|metal)")
_TRY_SECONDS: Final = 120.0
# What a compiler takes at most, measured on llama.cpp's models, which are compiled 16 files at a time.
_BYTES_A_JOB: Final = 1_500_000_000


def build(preset: str, *, name: str = "", jobs: int = 0) -> Build:
    """Compile a preset and put the libraries beside those that are here, in the place of one of the same name.

    Progress goes to stdout, as that of ``make``. An interrupt leaves what was there before.

    Args:
        preset: one of ``build.presets()``.
        name: what it will be chosen by; the preset's name by default.
        jobs: compilers at a time; 0: as many as the processor's cores and the memory allow.

    Raises:
        InvalidOptionError: no such preset, or a name that is none.
        EngineBuildError: it could not be built; the message ends with the build's log.
    """
    if preset not in pip_build.presets():
        raise InvalidOptionError(f"there is no preset {preset!r}", hint=f"there are: {', '.join(pip_build.presets())}")
    name = _checked(name or preset)
    with _explained(), _locked(name):
        sources = pip_build.fetch_sources(sys.executable)
        work = engines_dir() / f".{name}.build"
        shutil.rmtree(work, ignore_errors=True)  # of a build that was killed; the lock says nobody uses it
        try:
            _compile(preset, sources, work, jobs or _jobs())
            return _adopt(work / "bin", name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def add(folder: Path, *, name: str = "") -> Build:
    """Put the libraries that ``cmake --build`` has made beside those that are here: a copy of its folder ``bin``.

    Args:
        folder: with ``libllama`` and the ``engine.json`` that cmake/CMakeLists.txt writes.
        name: what they will be chosen by; the preset's name by default.

    Raises:
        InvalidOptionError: there is nothing of the kind, or the name is none.
        EngineBuildError: it cannot be copied.
    """
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        name = _checked(name or facts["preset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidOptionError(
            f"{folder} holds no build of edge-embed's CMakeLists.txt: {error}",
            hint="name the folder `bin` in what `cmake --preset NAME` has made, e.g. build/cpu-native/bin",
        ) from error
    with _explained(), _locked(name):
        return _adopt(folder, name)


def remove(name: str) -> None:
    """Remove a build, also a broken one. Where it was chosen, ``packaged`` is again.

    Raises:
        InvalidOptionError: there is none.
        EngineBuildError: it cannot be removed.
    """
    with contextlib.suppress(EngineUnavailableError):  # broken
        named(name)
    with _explained(), _locked(name):
        gone = engines_dir() / f".{name}.old"
        shutil.rmtree(gone, ignore_errors=True)
        (engines_dir() / name).replace(gone)
        shutil.rmtree(gone)
    if choice() == Choice(name, "chosen"):
        choose(PACKAGED)


def use(name: str) -> str:
    """Have every later start take a build, after it was tried in a child process; or ``packaged``, as it is.

    Returns:
        What the libraries say of themselves, or nothing.

    Raises:
        InvalidOptionError: there is none.
        EngineUnavailableError: it is broken, for another machine, or does not load.
    """
    if name == PACKAGED:
        choose(name)
        return ""
    found = named(name)
    said = attempt(found)
    choose(name)
    return said


def attempt(found: Build) -> str:
    """Load a build in a child process and return what the libraries say of themselves.

    Raises:
        EngineUnavailableError: it is broken, for another machine, or does not load.
    """
    problem = found.unfit() or found.damaged()
    said = ""
    if not problem:
        environment = {VARIABLE: str(found.folder.absolute())}
        try:
            with Child(__name__, "load the libraries", environment) as child:
                answer = child.ask({}, _TRY_SECONDS)
            problem, said = answer.get("error", ""), answer.get("system_info", "")
        except (ChildDiedError, ChildSilentError) as error:
            problem = f"a child process that loaded it: {error}"
    if problem:
        hint = f"build it again: edge-embed engine build {found.preset}" if found.preset else ""
        if "libcuda.so" in problem:
            hint = "NVIDIA's driver is not installed here: nvidia-smi would show it"
        raise EngineUnavailableError(f"the engine {found.name!r} cannot be used: {problem}", hint=hint)
    return str(said)


def main() -> None:
    """The child."""
    serve(_loaded)


def _loaded(_request: Answer) -> Answer:
    from edge_embed.engine import report
    from edge_embed.engine.builds import folder_of

    folder = folder_of(choice())
    with warnings.catch_warnings(record=True) as caught:  # what does not load is a warning, and others take its place
        warnings.simplefilter("always")
        found = report.library()
    if folder is None or found.library.parent != folder:
        return {"error": str(caught[-1].message) if caught else f"{found.library} was loaded"}
    return {"error": "", "system_info": found.system_info}


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name == PACKAGED:
        raise InvalidOptionError(
            f"{name!r} is no name for an engine",
            hint=f"up to 64 letters, digits and . _ + - that do not begin with a dot, and not {PACKAGED!r}",
        )
    return name


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Errors of the build as ours."""
    try:
        yield
    except pip_build.BuildError as error:
        raise EngineBuildError(str(error)) from error
    except OSError as error:
        raise EngineBuildError(
            f"{engines_dir()} cannot be written: {error.strerror or error}",
            hint="free some space, or name another folder with EDGE_EMBED_HOME",
        ) from error


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    engines_dir().mkdir(parents=True, exist_ok=True)
    with pip_build.locked(engines_dir() / f".{name}.lock"):
        yield


def _jobs() -> int:
    """Compilers at a time: the user's, else cores, as many as fit into the memory."""
    own = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    if own.isdigit() and int(own):
        return int(own)
    free = memory().available
    return max(1, min(default_threads(), free // _BYTES_A_JOB if free is not None else 1))


def _compile(preset: str, sources: Path, work: Path, jobs: int) -> None:
    cmake = _tool("cmake")
    if not cmake:
        raise EngineBuildError("cmake was not found", hint=f"{pip_build.APT('cmake')}, or `pip install cmake`")
    ninja = _tool("ninja")
    generator = (
        ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja and "CMAKE_GENERATOR" not in os.environ else []
    )
    flags = [
        *pip_build.preset_flags(preset),
        f"-DEDGE_EMBED_SOURCES={sources}",
        f"-DEDGE_EMBED_PYTHON={sys.executable}",
    ]
    progress = pip_build.Progress(f"Building {preset}")
    log = work.with_suffix(".log")
    try:
        for command in (
            [cmake, "-S", str(pip_build.PROJECT), "-B", str(work), *generator, *flags],
            [cmake, "--build", str(work), "--config", "Release", "--parallel", str(jobs)],
        ):
            code = pip_build.run(command, dict(os.environ), log, progress)
            if code != 0:
                raise pip_build.BuildError(pip_build.failure(log, code))
    except pip_build.BuildError:  # the message names the log
        raise
    except BaseException:  # an interrupt
        log.unlink(missing_ok=True)
        raise
    log.unlink()


def _tool(name: str) -> str:
    """A program on the path, or one of this Python's environment (the packages ``cmake`` and ``ninja``)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)) or ""


def _adopt(made: Path, name: str) -> Build:
    """Copy what was built and put it in its place in one step; files that are links stay links."""
    staging, old = engines_dir() / f".{name}.new", engines_dir() / f".{name}.old"
    final = engines_dir() / name
    for folder in (staging, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        staging.mkdir()
        facts: dict[str, Any] = json.loads((made / MANIFEST).read_text(encoding="utf-8"))
        files = []
        for path in sorted(made.rglob("*")):  # Windows' compilers make a folder for each configuration
            if _LIBRARY.fullmatch(path.name) and (path.is_file() or path.is_symlink()):
                shutil.copy2(path, staging / path.name, follow_symlinks=False)
                files.append(path.name)
        manifest = {
            **facts,
            "installed": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "files": [
                {"name": file, "size": (staging / file).stat().st_size, "sha256": sha256(staging / file)}
                for file in files
            ],
        }
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        found = read(name, staging)
        if not isinstance(found, Build) or not any(
            file.name.startswith(("libllama.", "llama.")) for file in found.files
        ):
            raise pip_build.BuildError(f"{made} holds no libllama: the build is not done")
        if final.exists():
            final.replace(old)
        staging.replace(final)
    finally:
        if old.exists() and not final.exists():
            old.replace(final)
        for folder in (staging, old):
            shutil.rmtree(folder, ignore_errors=True)
    return named(name)
