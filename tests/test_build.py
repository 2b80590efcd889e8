"""The build script: flags that survive quoting, a cache key that covers what shapes the code, and no leftovers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edge_embed.engine import build
from edge_embed.paths import cache_dir

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "edge_embed" / "engine" / "build.py"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and none of the caller's flags."""
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return tmp_path / "cache"


def fake_python(folder: Path, body: str) -> str:
    """An interpreter in whose place a script answers: ``body`` sees pip's arguments in ``args``."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys, time\nargs = sys.argv[1:]\n{textwrap.dedent(body)}")
    path.chmod(0o755)
    return str(path)


WRITES_A_WHEEL = """
    print("[1/2] one"); print("[2/2] two")
    folder = pathlib.Path(args[args.index("--wheel-dir") + 1])
    (folder / "llama_cpp_python-0-py3-none-any.whl").write_text("built")
"""


def test_the_pinned_version_satisfies_the_declared_range() -> None:
    """pyproject.toml's range begins with the version that is built and tested."""
    declared = re.search(r'"llama-cpp-python>=([\d.]+),<[\d.]+"', (ROOT / "pyproject.toml").read_text())
    assert declared is not None
    assert declared[1] == build.LLAMA_CPP_PYTHON


def test_printed_flags_survive_the_shell_and_cmake_args(monkeypatch: pytest.MonkeyPatch) -> None:
    """CMAKE_ARGS is split as a shell would, also where the checkout's path has a space."""
    monkeypatch.setattr(build, "SOURCES", (Path("/a folder/llama.cmake"), Path("/a folder/sound_amx.h")))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    assert shlex.split(build.quoted_cmake_args()) == build.cmake_args()
    assert "-DCMAKE_PROJECT_llama_cpp_INCLUDE=/a folder/llama.cmake" in build.cmake_args()


def test_the_script_runs_as_a_plain_file() -> None:
    """It prints its flags with nothing installed: no site-packages, no checkout on the path."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--print-cmake-args"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shlex.split(printed) == build.cmake_args()


def test_the_callers_flags_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's CMAKE_ARGS is kept, and wins over ours."""
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    assert shlex.split(build.quoted_cmake_args()) == [*build.cmake_args(), "-DGGML_CUDA=ON"]


def test_the_key_follows_what_shapes_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, compiler, processor and header each make another key; the checkout's place does not."""
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    keys = {build.cache_key()}
    with monkeypatch.context() as patch:
        patch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=OFF")
        keys.add(build.cache_key())
    with monkeypatch.context() as patch:
        patch.setattr(build, "compiler_identity", lambda: ["CC other"])
        keys.add(build.cache_key())
    with monkeypatch.context() as patch:
        patch.setattr(build, "processor_identity", lambda: ["flags other"])
        keys.add(build.cache_key())
    moved = tuple(tmp_path / path.name for path in build.SOURCES)
    for old, new in zip(build.SOURCES, moved, strict=True):
        new.write_bytes(old.read_bytes())
    monkeypatch.setattr(build, "SOURCES", moved)
    assert build.cache_key() in keys
    moved[1].write_text("changed")
    keys.add(build.cache_key())
    assert len(keys) == 5


@pytest.mark.parametrize("name", ["EDGE_EMBED_CACHE", "XDG_CACHE_HOME", None])
def test_the_cache_is_the_runtimes_cache(name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script cannot import the package before it is installed, but looks in the same place."""
    for variable in ("EDGE_EMBED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    if name:
        monkeypatch.setenv(name, str(tmp_path))
    assert build.cache_folder() == cache_dir() / "wheels"


def test_a_wheel_is_built_once(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second call takes the wheel from the cache; nothing but the wheel and the lock stays."""
    python = fake_python(tmp_path, WRITES_A_WHEEL)
    first = build.wheel_for(python)
    assert first.read_text() == "built"
    assert build.wheel_for(fake_python(tmp_path, "sys.exit('built twice')")) == first
    assert "was built before" in capsys.readouterr().out
    assert sorted(p.suffix for p in (cache / "wheels").iterdir() if p.is_file()) == [".lock"]
    assert [p.name for p in (cache / "wheels").iterdir() if p.is_dir()] == [first.parent.name]


def test_pip_is_told_not_to_use_its_own_cache(cache: Path, tmp_path: Path) -> None:
    """A wheel that pip built earlier, without our flags, is never handed back."""
    python = fake_python(tmp_path, f"pathlib.Path({str(tmp_path / 'args')!r}).write_text(' '.join(args))\n1/0")
    with pytest.raises(build.BuildError):
        build.wheel_for(python)
    arguments = (tmp_path / "args").read_text()
    assert "--no-cache-dir" in arguments
    assert f"--no-binary llama-cpp-python llama-cpp-python=={build.LLAMA_CPP_PYTHON}" in arguments


def test_a_failure_shows_the_log_and_a_hint(cache: Path, tmp_path: Path) -> None:
    """The last lines, where the whole log is, and what to do; no half-built wheel."""
    python = fake_python(tmp_path, "print('step one'); print('fatal: No space left on device'); sys.exit(1)")
    with pytest.raises(build.BuildError) as caught:
        build.wheel_for(python)
    message = str(caught.value)
    (log,) = (cache / "wheels").glob("*.log")
    assert "step one\nfatal: No space left on device" in message
    assert str(log) in message
    assert "EDGE_EMBED_CACHE" in message
    assert not [p for p in (cache / "wheels").iterdir() if p.is_dir()]


@pytest.mark.parametrize(
    ("said", "packages"),
    [
        ('Could NOT find Vulkan (missing: glslc) (found version "1.3.239")', ["glslc"]),
        ("Could NOT find Vulkan (missing: Vulkan_INCLUDE_DIR)", ["libvulkan-dev"]),
        ('Could not find a package configuration file provided by "SPIRV-Headers"', ["spirv-headers"]),
        ("/usr/bin/python3 has no\n  OpenVINO: `/usr/bin/python3 -m pip install", ["edge-embed[openvino]"]),
        ("Could NOT find OpenCL (missing: OpenCL_INCLUDE_DIR)", ["opencl-headers", "ocl-icd-opencl-dev"]),
        ("fatal error: CL/cl2.hpp: No such file or directory", ["opencl-clhpp-headers"]),
        ("/bin/sh: 1: aarch64-linux-gnu-g++: not found", ["g++-aarch64-linux-gnu"]),
        ("The CMAKE_C_COMPILER:\n\n    aarch64-linux-gnu-gcc\n\n  is not a full path", ["g++-aarch64-linux-gnu"]),
    ],
)
def test_what_cmake_misses_is_named_as_packages(tmp_path: Path, said: str, packages: list[str]) -> None:
    log = tmp_path / "log"
    log.write_text(f"-- Including CPU backend\nCMake Error at CMakeLists.txt:9 (find_package):\n  {said}\n")
    hint = build.failure(log, 1).rpartition("Hint: ")[2]
    assert [name for name in packages if name not in hint] == []


def test_a_compiler_that_is_there_is_not_asked_for(tmp_path: Path) -> None:
    """Each log of a cross-compiled preset has its name."""
    log = tmp_path / "log"
    log.write_text("-- Check for working C compiler: /usr/bin/aarch64-linux-gnu-gcc - skipped\nCMake Error at x:1:\n")
    assert "Hint" not in build.failure(log, 1)


def test_a_missing_compiler_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is downloaded."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"no-such-compiler was not found: .*apt install g\+\+"):
        build.wheel_for(sys.executable)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_stopping_leaves_nothing_behind(cache: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Ctrl-C, a kill or a closed terminal ends the build's processes and removes its files."""
    child = tmp_path / "child"
    body = f"""
        import os
        pathlib.Path({str(child)!r} + ".new").write_text(str(os.getpid()))
        os.rename({str(child)!r} + ".new", {str(child)!r})
        time.sleep(600)
    """
    command = [sys.executable, str(SCRIPT), "--wheel-only", "--python", fake_python(tmp_path, body)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not child.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped" in said
    assert [p.suffix for p in (cache / "wheels").iterdir()] == [".lock"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)


def test_progress_counts_ninja_and_make() -> None:
    """Both tools' step counts become one line with what is done and what is left."""
    progress = build.Progress("Building")
    progress.terminal = False
    assert progress.text().startswith("Building: fetching")
    progress.read("  [12/83] /usr/bin/c++ -O3 ...")
    assert progress.text().startswith("Building: step 12 of 83, 0:0")
    progress.read("[ 50%] Building CXX object")
    assert (progress.done, progress.total) == (50, 100)
    progress.terminal = True
    assert "[############............] 50/100" in progress.text()


def test_cmake_force_includes_the_header_and_leaves_common_out(tmp_path: Path) -> None:
    """llama.cmake does in CMake what it says, from a folder with a space in its name."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for path in build.SOURCES:
        (folder / path.name).write_bytes(path.read_bytes())
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\n"
        "project(llama_cpp)\n"
        'set(LLAMA_BUILD_COMMON ON CACHE BOOL "" FORCE)\n'
        "add_subdirectory(sub)\n"
    )
    (project / "sub" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.14...3.28)\n"
        'project("llama.cpp" C CXX)\n'
        'option(LLAMA_BUILD_COMMON "" ON)\n'
        'message(STATUS "common is ${LLAMA_BUILD_COMMON}")\n'
        "add_library(one STATIC one.c two.cpp)\n"
    )
    (project / "sub" / "one.c").write_text("#ifndef EDGE_EMBED_SOUND_AMX_H\n#error not included\n#endif\n")
    (project / "sub" / "two.cpp").write_text("#ifndef EDGE_EMBED_SOUND_AMX_H\n#error not included\n#endif\n")
    include = f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={folder.as_posix()}/llama.cmake"
    command = ["cmake", "-S", str(project), "-B", str(tmp_path / "out"), include]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "common is OFF" in said
    subprocess.run(["cmake", "--build", str(tmp_path / "out")], capture_output=True, check=True)
