"""Build llama-cpp-python from source, soundly and for this machine's processor, and install it.

    python3 edge_embed/engine/build.py --python .venv/bin/python    build (or take from the cache) and install
    python3 edge_embed/engine/build.py --print-cmake-args           the flags, for a pip command of your own
    python3 edge_embed/engine/build.py --openvino                   another engine beside the installed one, for `tune`

This file runs before anything is installed: it needs the standard library and pip, and imports nothing of ours.
It knows the pinned version, the flags (``llama.cmake`` beside it does the work in CMake) and the wheel cache. It
does not know what a model is, or whether the result works: ``edge_embed.engine.probe`` finds that out by running it.

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
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

if sys.platform != "win32":
    import fcntl

LLAMA_CPP_PYTHON = "0.3.36"  # the one place where the version that is built is named

HERE = Path(__file__).resolve().parent
SOURCES = (HERE / "llama.cmake", HERE / "sound_amx.h", *sorted((HERE / "native").iterdir()))
PLAIN_INTERVAL = 15.0  # seconds between lines where the output is not a terminal
LOG_TAIL = 60  # lines of the log shown on failure

# Text in a failed build's log -> what to do. The first that matches is shown.
HINTS = (
    (r"No space left on device", "the disk is full: free some space, or point EDGE_EMBED_CACHE at another disk"),
    (
        r"CMAKE_C(XX)?_COMPILER not set|No CMAKE_C(XX)?_COMPILER could be found|compiler not found",
        "a C and a C++ compiler are needed: on Debian and Ubuntu `apt install gcc g++`",
    ),
    (
        r"CMake \S+ or higher is required|Could not find CMake|cmake: (command )?not found",
        "CMake 3.21 or newer is needed: on Debian and Ubuntu `apt install cmake`",
    ),
    (
        r"No matching distribution found|Could not find a version|NewConnectionError|Read timed out",
        "the source archive could not be downloaded: check the network and pip's index settings",
    ),
    (
        r"Could NOT find OpenCL|CL/cl2?\.h",
        "OpenVINO needs OpenCL's headers: on Debian and Ubuntu "
        "`apt install opencl-headers ocl-icd-opencl-dev opencl-clhpp-headers`",
    ),
    (r"Killed|cannot allocate memory|out of memory", "memory ran out: try CMAKE_BUILD_PARALLEL_LEVEL=1"),
    (r"No module named pip", "the interpreter has no pip: on Debian and Ubuntu `apt install python3-venv`"),
)


class BuildError(Exception):
    """The build cannot start or did not succeed; the message says what to do."""


def cmake_args() -> list[str]:
    """What CMake is told. GGML_NATIVE stays on, its default: the code is generated for this processor."""
    return ["-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={SOURCES[0].as_posix()}"]


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
            raise BuildError(
                f"{command[0]} was not found: on Debian and Ubuntu `apt install {package}`, "
                f"or set {variable} to your compiler"
            )
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


def build(python: str, folder: Path) -> Path:
    """Build the wheel with ``python``'s pip and move it into ``folder`` in one step; nothing is left on failure."""
    work = folder.with_name(folder.name + ".tmp")
    log = folder.with_name(folder.name + ".log")
    shutil.rmtree(work, ignore_errors=True)  # of a build that was killed; the lock says nobody uses it
    (work / "tmp").mkdir(parents=True)
    (work / "wheel").mkdir()
    command = [python, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]
    command += ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={LLAMA_CPP_PYTHON}"]
    command += ["--wheel-dir", str(work / "wheel")]
    environment = {**os.environ, "CMAKE_ARGS": quoted_cmake_args(), "TMPDIR": str(work / "tmp")}
    progress = Progress(f"Building llama-cpp-python {LLAMA_CPP_PYTHON}")
    try:
        code = _run(command, environment, log, progress)
        wheel = find_wheel(work / "wheel")
        if code != 0 or wheel is None:
            raise BuildError(_failure(log, code))
        shutil.rmtree(folder, ignore_errors=True)
        (work / "wheel").replace(folder)
        log.unlink(missing_ok=True)
        print(f"Built in {_clock(time.monotonic() - progress.started)}.", flush=True)
    except KeyboardInterrupt:
        log.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder / wheel.name


def _run(command: list[str], environment: dict[str, str], log: Path, progress: Progress) -> int:
    """Run the command with its output in ``log``, showing progress; its whole process group ends with us."""
    with log.open("w", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        output = process.stdout
        assert output is not None

        def follow() -> None:
            with output:
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


def _failure(log: Path, code: int) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    tail = "\n".join(text.splitlines()[-LOG_TAIL:])
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, text, re.IGNORECASE)), "")
    return f"{tail}\n\nThe build failed (pip ended with {code}). The whole log: {log}" + (
        f"\nHint: {hint}" if hint else ""
    )


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
        "try: print(m.distribution('llama-cpp-python').read_text('direct_url.json') or '')\n"
        "except m.PackageNotFoundError: pass"
    )
    # -I: nothing that lies in the working directory is taken for an installed package
    answer = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=False).stdout.strip()
    if answer and json.loads(answer).get("url") == wheel.as_uri():
        print("It is installed already.", flush=True)
        return
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--force-reinstall"]
    if subprocess.run([*command, str(wheel)], check=False).returncode != 0:
        raise BuildError(f"the wheel was built but could not be installed: {wheel}")


def openvino_args(python: str) -> list[str]:
    """What CMake is told for llama.cpp's OpenVINO backend, with the OpenVINO that ``python`` has.

    Its Python package is looked for and not imported: what is needed is the libraries in it.
    """
    ask = (
        "import importlib.util as u; s = u.find_spec('openvino'); "
        "print(list(s.submodule_search_locations)[0] if s else '')"
    )
    folder = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=False).stdout.strip()
    if not folder:
        raise BuildError(
            f"{python} has no OpenVINO: `{python} -m pip install --no-deps openvino` "
            "(what it depends on is a telemetry package, and is not needed)"
        )
    return ["-DGGML_OPENVINO=ON", f"-DOpenVINO_DIR={(Path(folder) / 'cmake').as_posix()}"]


def engines_folder() -> Path:
    """Where engines besides the installed one lie, a folder of libraries each; ``edge-embed tune`` looks there."""
    return cache_folder().with_name("engines")


def unpack(wheel: Path) -> Path:
    """The libraries of a wheel in a folder of their own, put there in one step. Equal ones are links to one file:
    a wheel has a copy for each name, and a copy that is loaded by another name is another library."""
    folder = engines_folder() / wheel.parent.name
    if folder.is_dir():
        return folder
    work = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    known: dict[str, Path] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inside = re.fullmatch(r"llama_cpp/lib/([^/]+)", name)
            if inside is None:
                continue
            data, target = archive.read(name), work / inside[1]
            first = known.setdefault(hashlib.sha256(data).hexdigest(), target)
            if first == target:
                target.write_bytes(data)
            else:
                os.link(first, target)
    if not known:
        shutil.rmtree(work)
        raise BuildError(f"there are no libraries in {wheel}")
    work.replace(folder)
    return folder


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 on a failed build, 130 when stopped."""
    parser = argparse.ArgumentParser(description="Build llama-cpp-python for this machine and install it.")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment to install into")
    parser.add_argument("--wheel-only", action="store_true", help="build, print the wheel's path, install nothing")
    parser.add_argument("--print-cmake-args", action="store_true", help="print the value for CMAKE_ARGS and end")
    parser.add_argument("--print-key", action="store_true", help="print this machine's cache key and end")
    parser.add_argument(
        "--openvino",
        action="store_true",
        help="build with llama.cpp's OpenVINO backend into the cache folder, for `edge-embed tune` to consider",
    )
    options = parser.parse_args(arguments)
    for name in ("SIGTERM", "SIGHUP"):  # SIGHUP: the terminal was closed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    try:
        if options.print_cmake_args:
            print(shlex.join(cmake_args()))
        elif options.print_key:
            print(cache_key())
        else:
            if options.openvino:  # part of the key, as any flag of the caller's
                flags = [os.environ.get("CMAKE_ARGS", ""), shlex.join(openvino_args(options.python))]
                os.environ["CMAKE_ARGS"] = " ".join(filter(None, flags))
            wheel = wheel_for(options.python)
            if options.wheel_only:
                print(wheel)
            elif options.openvino:
                print(f"{unpack(wheel)}: `edge-embed tune MODEL` considers it.")
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
