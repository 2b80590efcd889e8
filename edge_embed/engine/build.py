"""Build llama-cpp-python from source, soundly and for this machine's processor, and install it.

    python3 edge_embed/engine/build.py --python .venv/bin/python    build (or take from the cache) and install
    python3 edge_embed/engine/build.py --print-cmake-args           the flags, for a pip command of your own
    python3 edge_embed/engine/build.py --sources                    llama.cpp's sources, for cmake/CMakeLists.txt

This file runs before anything is installed: it needs the standard library and pip, and imports nothing of ours.
It knows the pinned version, where the flags stand (``cmake/CMakePresets.json``; ``llama.cmake`` beside it does the work
in CMake) and the wheel cache. It does not know what a model is, or whether the result works:
``edge_embed.engine.probe`` finds that out by running it.

Why not pip's own cache: pip keys a built wheel by the source archive alone. A wheel that was built earlier without
our flags, or for another processor of a shared home directory, would be handed back without a word. So pip's cache is
off, and wheels are kept in ``$EDGE_EMBED_CACHE/wheels/<key>/``, where the key covers everything that shapes the code.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

if sys.platform != "win32":
    import fcntl

LLAMA_CPP_PYTHON = "0.3.36"  # the one place where the version that is built is named
# Of its source archive; every index has the same.
ARCHIVE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# What of llama.cpp's folder the libraries are made of; the rest is tests, tools and models' vocabularies.
ARCHIVE_PARTS = ("CMakeLists.txt", "LICENSE", "cmake", "ggml", "include", "licenses", "src", "vendor")

HERE = Path(__file__).resolve().parent
PROJECT = HERE / "cmake"
SOURCES = (HERE / "llama.cmake", *sorted(HERE.glob("*.h")), *sorted((HERE / "native").iterdir()))
PLAIN_INTERVAL = 15.0  # seconds between lines where the output is not a terminal
LOG_TAIL = 60  # lines of the log shown on failure

APT = "on Debian and Ubuntu `apt install {}`".format
# Text in a failed build's log -> what to do. The first that matches is shown.
HINTS = (
    (r"No space left on device", "the disk is full: free some space, or point EDGE_EMBED_CACHE at another disk"),
    (
        r"CMAKE_C(XX)?_COMPILER not set|No CMAKE_C(XX)?_COMPILER could be found|compiler not found",
        f"a C and a C++ compiler are needed: {APT('gcc g++')}",
    ),
    (
        r"CMake \S+ or higher is required|Could not find CMake|cmake: (command )?not found",
        f"CMake 3.21 or newer is needed: {APT('cmake')}",
    ),
    (
        r"No matching distribution found|Could not find a version|NewConnectionError|Read timed out",
        "the source archive could not be downloaded: check the network and pip's index settings",
    ),
    (
        r"No CMAKE_CUDA_COMPILER|Could NOT find CUDAToolkit|CUDA's compiler was not found",
        "CUDA's compiler and cuBLAS are needed: `pip install 'edge-embed[cuda]'` under Linux, or NVIDIA's toolkit",
    ),
    (
        r"Could NOT find Vulkan|SPIRV-Headers",
        f"Vulkan needs its headers and the shader compiler: {APT('libvulkan-dev spirv-headers glslc')}",
    ),
    (r"aarch64-linux-gnu-g\S+\s+(is )?not\s", f"the cross compiler is needed: {APT('g++-aarch64-linux-gnu')}"),
    (
        r"has\s+no\s+OpenVINO",
        "OpenVINO's libraries are needed: `pip install 'edge-embed[openvino]'` (or `pip install --no-deps openvino`)",
    ),
    (
        r"Could NOT find OpenCL|CL/cl2?\.h",
        f"OpenVINO needs OpenCL's headers: {APT('opencl-headers ocl-icd-opencl-dev opencl-clhpp-headers')}",
    ),
    (r"Killed|cannot allocate memory|out of memory", "memory ran out: try CMAKE_BUILD_PARALLEL_LEVEL=1"),
    (r"No module named pip", f"the interpreter has no pip: {APT('python3-venv')}"),
)


class BuildError(Exception):
    """The build cannot start or did not succeed; the message says what to do."""


def default_preset() -> str:
    """What is built where nothing else is asked for: code for the processor at hand, and on a Mac its GPU."""
    return "metal" if sys.platform == "darwin" else "cpu-native"


def presets() -> dict[str, dict[str, Any]]:
    """The presets that ``cmake --list-presets`` may name, in its order, with what they inherit filled in."""
    listed = json.loads((PROJECT / "CMakePresets.json").read_text(encoding="utf-8"))["configurePresets"]
    known = {preset["name"]: preset for preset in listed}
    return {name: _inherited(known, name) for name, preset in known.items() if not preset.get("hidden")}


def _inherited(known: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """A preset with its parents' fields: its own come first, then those of earlier parents."""
    own = known[name]
    parents = own.get("inherits", [])
    merged: dict[str, Any] = {}
    variables: dict[str, str] = {}
    for parent in reversed([parents] if isinstance(parents, str) else parents):
        inherited = _inherited(known, parent)
        variables.update(inherited["cacheVariables"])
        merged.update(inherited)
    variables.update(own.get("cacheVariables", {}))
    return {**merged, **own, "cacheVariables": variables}


def preset_flags(name: str) -> list[str]:
    """A preset as flags for CMake, in the order of their names.

    They are the same for pip and for ``cmake --preset``; a CMake that knows no presets of this version takes them, too.
    """
    found = presets().get(name)
    if found is None:
        raise BuildError(f"there is no preset {name!r}; there are: {', '.join(presets())}")
    values = dict(found["cacheVariables"])
    if "toolchainFile" in found:
        values["CMAKE_TOOLCHAIN_FILE"] = found["toolchainFile"]
    flags = [f"-D{variable}={value}" for variable, value in sorted(values.items())]
    return [flag.replace("${presetName}", name).replace("${fileDir}", PROJECT.as_posix()) for flag in flags]


def cmake_args(preset: str = "") -> list[str]:
    """What CMake is told when pip builds a preset; see ``default_preset``."""
    flags = preset_flags(preset or default_preset())
    include = f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={SOURCES[0].as_posix()}"
    return ["-DLLAVA_BUILD=OFF", include, *(flag for flag in flags if not flag.startswith("-DEDGE_EMBED_PRESET="))]


def quoted_cmake_args() -> str:
    """The same as one string for the environment variable CMAKE_ARGS; the caller's own flags come last and win."""
    own = os.environ.get("CMAKE_ARGS", "")
    ours = shlex.join(cmake_args())
    return f"{ours} {own}".rstrip() if own.strip() != ours else ours


def compiler_identity() -> list[str]:
    """First version line of the C and the C++ compiler that CMake will pick."""
    lines = []
    for variable, default, package in (("CC", "cc", "gcc"), ("CXX", "c++", "g++")):
        command = shlex.split(os.environ.get(variable) or default)
        if shutil.which(command[0]) is None:
            if os.name == "nt":  # MSVC is found by CMake without being on the PATH
                continue
            raise BuildError(f"{command[0]} was not found: {APT(package)}, or set {variable} to your compiler")
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        lines.append(f"{variable} {(answer.stdout or answer.stderr).partition(chr(10))[0].strip()}")
    return lines


def processor_identity() -> list[str]:
    """The processor as far as -march=native looks at it: model name and feature flags."""
    with contextlib.suppress(OSError):
        seen: dict[str, str] = {}
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            seen.setdefault(name.strip(), value.strip())
        names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
        return [f"{name} {' '.join(sorted(seen[name].split()))}" for name in names if name in seen]
    if sys.platform == "darwin":
        answer = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return [answer.stdout.strip()]
    return [platform.processor()]


def cache_key() -> str:
    """A short digest of everything that shapes the compiled code; Python is not part of it (the wheel is py3-none)."""
    parts = [
        LLAMA_CPP_PYTHON,
        sys.platform,
        platform.machine(),
        "-".join(platform.libc_ver()),
        *compiler_identity(),
        *processor_identity(),
        *(f"{name}={os.environ.get(name, '')}" for name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "LDFLAGS")),
        *(arg for arg in cmake_args() if "_INCLUDE=" not in arg),  # where the checkout lies does not matter ...
        *(hashlib.sha256(path.read_bytes()).hexdigest() for path in SOURCES),  # ... what the files say does
    ]
    return f"{LLAMA_CPP_PYTHON}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"


def cache_folder() -> Path:
    """``wheels`` in the folder that ``edge_embed.paths.cache_dir`` names; a test holds the two together."""
    if own := os.environ.get("EDGE_EMBED_CACHE"):
        return Path(own).expanduser().absolute() / "wheels"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.absolute() / "edge-embed" / "wheels"


def find_wheel(folder: Path) -> Path | None:
    """The finished wheel of one cache entry."""
    return next(iter(sorted(folder.glob("llama_cpp_python-*.whl"))), None)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One build of a key at a time, also between processes; the lock ends with the process, however it ends."""
    if sys.platform == "win32":  # no such lock: two builds at the same time are only wasteful, the last one wins
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another process is building the same wheel; waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Progress:
    """What the build says, as one moving line on a terminal and as a line now and then elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.done = 0
        self.total = 0
        self.started = time.monotonic()
        self.compile_started = self.started
        self.last_plain = 0.0
        self.terminal = sys.stdout.isatty()

    def read(self, line: str) -> None:
        """Take the step count from a line of Ninja ([12/83]) or Make ([ 14%])."""
        if match := re.search(r"^\s*\[\s*(\d+)(?:/(\d+)|%)\]", line):
            if self.total == 0:
                self.compile_started = time.monotonic()
            self.done, self.total = int(match[1]), int(match[2] or 100)

    def text(self) -> str:
        """The state in one line: steps, time so far, time left."""
        now = time.monotonic()
        spent = _clock(now - self.started)
        if not self.total:
            return f"{self.title}: fetching sources and build tools, {spent}"
        left = (now - self.compile_started) / max(self.done, 1) * (self.total - self.done)
        remaining = f", about {_clock(left)} left" if self.done >= 3 else ""
        if not self.terminal:
            return f"{self.title}: step {self.done} of {self.total}, {spent}{remaining}"
        filled = 24 * self.done // self.total
        return f"{self.title} [{'#' * filled}{'.' * (24 - filled)}] {self.done}/{self.total}, {spent}{remaining}"

    def show(self) -> None:
        """Redraw the line on a terminal; elsewhere print one every ``PLAIN_INTERVAL`` seconds."""
        with contextlib.suppress(OSError):  # nobody reads any more: no reason to end the build
            if self.terminal:
                width = shutil.get_terminal_size().columns
                print(f"\r{self.text()[: width - 1]:<{width - 1}}", end="", flush=True)
            elif time.monotonic() - self.last_plain >= PLAIN_INTERVAL:
                self.last_plain = time.monotonic()
                print(self.text(), flush=True)

    def close(self) -> None:
        """Leave the terminal's line."""
        if self.terminal:
            with contextlib.suppress(OSError):
                print(flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A folder with a ``tmp`` in it, which is gone at the end, and the path of a log, which a failure leaves."""
    work, log = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".log")
    shutil.rmtree(work, ignore_errors=True)  # of a build that was killed; the lock says nobody uses it
    (work / "tmp").mkdir(parents=True)
    try:
        yield work, log
        log.unlink(missing_ok=True)
    except KeyboardInterrupt:
        log.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def build(python: str, folder: Path) -> Path:
    """Build the wheel with ``python``'s pip and move it into ``folder`` in one step; nothing is left on failure."""
    command = [python, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]
    command += ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={LLAMA_CPP_PYTHON}"]
    progress = Progress(f"Building llama-cpp-python {LLAMA_CPP_PYTHON}")
    with workplace(folder) as (work, log):
        command += ["--wheel-dir", str(work / "wheel")]
        environment = {**os.environ, "CMAKE_ARGS": quoted_cmake_args(), "TMPDIR": str(work / "tmp")}
        (work / "wheel").mkdir()
        code = run(command, environment, log, progress)
        wheel = find_wheel(work / "wheel")
        if code != 0 or wheel is None:
            raise BuildError(failure(log, code))
        shutil.rmtree(folder, ignore_errors=True)
        (work / "wheel").replace(folder)
    print(f"Built in {_clock(time.monotonic() - progress.started)}.", flush=True)
    return folder / wheel.name


def run(command: list[str], environment: dict[str, str], log: Path, progress: Progress) -> int:
    """Run the command with its output in ``log``, showing progress; its whole process group ends with us."""
    with log.open("w", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        output = process.stdout
        assert output is not None

        def follow() -> None:
            with output, contextlib.suppress(ValueError):  # stopped: the log is closed
                for line in output:
                    file.write(line)
                    progress.read(line)

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        try:
            while reader.is_alive():
                progress.show()
                reader.join(0.2)
            return process.wait()
        finally:
            if process.poll() is None:
                _end(process)
            reader.join(5)
            progress.close()


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and what it started: politely, then not."""
    if os.name == "nt":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def failure(log: Path, code: int) -> str:
    """The end of a failed command's log, where the whole of it is, and a hint where the cause is known."""
    text = log.read_text(encoding="utf-8", errors="replace")
    tail = "\n".join(text.splitlines()[-LOG_TAIL:])
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, text, re.IGNORECASE)), "")
    return f"{tail}\n\nThe build failed (exit code {code}). The whole log: {log}" + (f"\nHint: {hint}" if hint else "")


def wheel_for(python: str) -> Path:
    """The wheel for this machine, from the cache or built now."""
    folder = cache_folder() / cache_key()
    if wheel := find_wheel(folder):
        print(f"llama-cpp-python {LLAMA_CPP_PYTHON} was built before for this machine: {wheel}", flush=True)
        return wheel
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(folder.name + ".lock")):
            return find_wheel(folder) or build(python, folder)
    except OSError as error:
        raise BuildError(f"cannot write the wheel cache: {error}; EDGE_EMBED_CACHE names another place") from error


def install(python: str, wheel: Path) -> None:
    """Install the wheel into ``python``'s environment, unless this very wheel is there."""
    ask = (
        "import importlib.metadata as m\n"
        "print(next((d.read_text('direct_url.json') or '' for d in m.distributions(name='llama-cpp-python')), ''))"
    )
    # -I: nothing that lies in the working directory is taken for an installed package
    answer = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=False).stdout.strip()
    if answer and json.loads(answer).get("url") == wheel.as_uri():
        print("It is installed already.", flush=True)
        return
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--force-reinstall"]
    if subprocess.run([*command, str(wheel)], check=False).returncode != 0:
        raise BuildError(f"the wheel was built but could not be installed: {wheel}")


def fetch_sources(python: str) -> Path:
    """A folder with llama.cpp's sources in ``llama.cpp``, out of the pinned archive, which ``python``'s pip downloads.

    ``archive.json`` beside them says which archive that was. It is kept in the cache folder and made once.
    """
    folder = cache_folder().with_name("sources") / f"{LLAMA_CPP_PYTHON}-{ARCHIVE_SHA256[:16]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                _download_sources(python, folder)
    except OSError as error:
        raise BuildError(f"cannot keep the sources: {error}; EDGE_EMBED_CACHE names another place") from error
    return folder


def _download_sources(python: str, folder: Path) -> None:
    command = [python, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]
    with workplace(folder) as (work, log):
        command += ["--no-binary", ":all:", "--dest", str(work), f"llama-cpp-python=={LLAMA_CPP_PYTHON}"]
        code = run(command, {**os.environ, "TMPDIR": str(work / "tmp")}, log, Progress("Fetching llama.cpp's sources"))
        archive = next(iter(work.glob("*.tar.gz")), None)
        if code != 0 or archive is None:
            raise BuildError(failure(log, code))
        unpack_sources(archive, work / "new")
        (work / "new").replace(folder)


def unpack_sources(archive: Path, folder: Path) -> None:
    """What ``fetch_sources`` promises, out of a file; refused unless it is the pinned one."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != ARCHIVE_SHA256:
        raise BuildError(
            f"{archive.name} is not the archive that this release was tested with: its SHA-256 is {digest}, "
            f"not {ARCHIVE_SHA256}; whatever pip downloads from has another file"
        )
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, inside = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and inside.partition("/")[0] in ARCHIVE_PARTS:
                target, source = folder / "llama.cpp" / inside, tar.extractfile(member)
                assert source is not None
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    known = {"llama_cpp_python": LLAMA_CPP_PYTHON, "sha256": digest}
    (folder / "archive.json").write_text(json.dumps(known), encoding="utf-8")


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 on a failed build, 130 when stopped."""
    parser = argparse.ArgumentParser(description="Build llama-cpp-python for this machine and install it.")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment to install into")
    parser.add_argument("--wheel-only", action="store_true", help="build, print the wheel's path, install nothing")
    parser.add_argument("--print-cmake-args", action="store_true", help="print the value for CMAKE_ARGS and end")
    parser.add_argument("--print-key", action="store_true", help="print this machine's cache key and end")
    parser.add_argument("--sources", action="store_true", help="fetch llama.cpp's sources, print their folder and end")
    parser.add_argument("--preset", default="", help="build: print the flags of another preset than the default one")
    options = parser.parse_args(arguments)
    for name in ("SIGTERM", "SIGHUP"):  # SIGHUP: the terminal was closed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    try:
        if options.print_cmake_args:
            print(shlex.join(cmake_args(options.preset)))
        elif options.print_key:
            print(cache_key())
        elif options.sources:
            print(fetch_sources(options.python))
        else:
            wheel = wheel_for(options.python)
            if options.wheel_only:
                print(wheel)
            else:
                install(options.python, wheel)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("Stopped. Nothing was left behind.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
