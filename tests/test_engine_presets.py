"""The presets: CMake reads them as we do, whoever prints or builds them, and what they ask for is done."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edge_embed.engine import build
from tests.commands import run
from tests.engines import SOURCES

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "edge_embed" / "engine" / "build.py"
EVERYWHERE = [name for name, preset in build.presets().items() if "condition" not in preset]


def cmake(*arguments: str | Path) -> str:
    """CMake's stdout."""
    return subprocess.run(["cmake", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_every_named_platform_has_a_preset() -> None:
    named = (
        "cpu-native cpu-portable cpu-arm64 rpi5 rpi4 jetson-orin jetson-orin-cpu cuda cuda-rtx30 metal vulkan openvino"
    )
    assert named.split() == sorted(build.presets(), key=named.split().index)


@pytest.mark.parametrize("folder", [ROOT, build.PROJECT], ids=["top", "package"])
def test_cmake_lists_the_presets_that_we_know(folder: Path) -> None:
    """At the top of the checkout and in the package; Metal's on a Mac alone."""
    listed = re.findall(r'^  "([\w-]+)"', cmake("-S", folder, "--list-presets"), re.MULTILINE)
    expected = list(build.presets()) if platform.system() == "Darwin" else EVERYWHERE
    assert sorted(expected) == sorted(listed)
    built = subprocess.run(
        ["cmake", "--build", "--list-presets"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert sorted(expected) == sorted(re.findall(r'^  "([\w-]+)"', built.stdout, re.MULTILINE))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_cmake_reads_each_preset_as_we_do(name: str) -> None:
    """Inheritance, macros and the toolchain file: the flags that are printed are what ``cmake --preset`` sets."""
    said = cmake("-N", "-S", ROOT, "--preset", name)
    theirs = dict(re.findall(r'^  (\w+)(?::\w+)?="(.*)"$', said, re.MULTILINE))
    ours = dict(flag.removeprefix("-D").split("=", 1) for flag in build.preset_flags(name))
    assert theirs == ours
    assert name == ours["EDGE_EMBED_PRESET"]


@pytest.mark.parametrize("name", build.presets())
def test_pip_gets_the_same_flags(name: str) -> None:
    """The command and the script that runs before anything is installed print one line: the preset's, and pip's own."""
    printed = run("engine", "flags", name).stdout
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--print-cmake-args", "--preset", name]
    assert printed == subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ["-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={SCRIPT.with_name('llama.cmake')}"] == [
        flag for flag in shlex.split(printed) if flag not in build.preset_flags(name)
    ]
    assert [f"-DEDGE_EMBED_PRESET={name}"] == [
        flag for flag in build.preset_flags(name) if flag not in shlex.split(printed)
    ]


def test_what_make_builds_is_a_preset() -> None:
    assert run("engine", "flags").stdout == run("engine", "flags", build.default_preset()).stdout
    assert shlex.split(run("engine", "flags").stdout) == build.cmake_args()


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    for command in ("flags", "build"):
        result = run("engine", command, "commodore-64")
        assert 2 == result.exit_code
        assert "'commodore-64'" in result.stderr
        assert "cpu-portable" in result.stderr


def test_the_presets_are_listed_with_their_flags() -> None:
    listed = json.loads(run("engine", "presets", "--json").stdout)
    assert list(build.presets()) == [preset["name"] for preset in listed]
    assert all(preset["description"] in run("engine", "presets").stdout for preset in listed)
    assert build.preset_flags("rpi5") == next(preset["flags"] for preset in listed if preset["name"] == "rpi5")


# llama.cpp's build, as far as llama.cmake and cmake/CMakeLists.txt touch it: libraries, variants, where they are put.
LLAMA = """
cmake_minimum_required(VERSION 3.14...3.28)
project("llama.cpp" C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_subdirectory(ggml/src)
add_library(llama llama.c)
set_target_properties(llama PROPERTIES VERSION 0.5.0 SOVERSION 0)
target_link_libraries(llama PUBLIC ggml)
"""
GGML = """
set(GGML_AVAILABLE_BACKENDS ggml-cpu-x64 ggml-cpu-zen4 ggml-cuda CACHE INTERNAL "")
add_library(ggml ggml.c)
foreach(variant x64 zen4)
    add_library(ggml-cpu-${variant} MODULE ggml-cpu/ggml-cpu.cpp)
    target_include_directories(ggml-cpu-${variant} PRIVATE .)
endforeach()
add_dependencies(ggml ggml-cpu-x64 ggml-cpu-zen4)
if(GGML_CUDA)
    add_library(ggml-cuda SHARED ggml-cuda.c)
    target_link_libraries(ggml-cuda PRIVATE CUDA::cuda_driver)
endif()
if(GGML_OPENVINO)
    add_subdirectory(ggml-openvino)
endif()
if(GGML_VULKAN)
    add_subdirectory(ggml-vulkan)
endif()
"""
# What headers of ours mend: inputs that are looked for only where the buffer is another one, and a type that Vulkan's
# old headers do not have.
BACKEND = """
add_library(ggml-{0} SHARED {1})
target_include_directories(ggml-{0} PRIVATE . ..)
"""
DECODER = """
#pragma once
struct ModelParams {
    int id;
    bool kv_buffer_changed(const ModelParams & other) const { return id != other.id; }
};
"""
LOOKS = """
#include "ggml-openvino/ggml-decoder.h"
extern "C" int mended(void) {
    ModelParams old{1}, now{1};
    if (old.kv_buffer_changed(now)) {
        return 1;
    }
    return 0;
}
"""
NAMES_A_TYPE = 'extern "C" int mended(void) { return sizeof(vk::LayerSettingEXT) == 32; }'
MENDED = {"openvino": ("utils.cpp", LOOKS), "vulkan": ("ggml-vulkan.cpp", NAMES_A_TYPE)}
KERNELS = ("hook", "attention", "gelu", "products")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The package's CMake project beside stand-ins for its kernels, and sources in the place of llama.cpp's."""
    engine, sources = tmp_path / "an engine", tmp_path / "sources"
    (engine / "native").mkdir(parents=True)
    for path in (SCRIPT.with_name("llama.cmake"), *SCRIPT.parent.glob("*.h")):
        (engine / path.name).write_bytes(path.read_bytes())
    for kernel in KERNELS:
        (engine / "native" / f"{kernel}.cpp").write_text(f'extern "C" int kernel_{kernel}(void) {{ return 1; }}\n')
    (engine / "cmake").mkdir()
    for path in build.PROJECT.iterdir():
        (engine / "cmake" / path.name).write_bytes(path.read_bytes())
    cpu = sources / "llama.cpp" / "ggml" / "src" / "ggml-cpu"
    cpu.mkdir(parents=True)
    (sources / "archive.json").write_text(json.dumps(SOURCES))
    (sources / "llama.cpp" / "CMakeLists.txt").write_text(LLAMA)
    (cpu.parent / "CMakeLists.txt").write_text(GGML)
    (cpu.parent / "ggml.c").write_text("int ggml(void) { return 1; }\n")
    (cpu.parent / "ggml-cuda.c").write_text("int cuMemMap(void); int ggml_cuda(void) { return cuMemMap(); }\n")
    for backend, (name, text) in MENDED.items():
        folder = cpu.parent / f"ggml-{backend}"
        (folder / "vulkan").mkdir(parents=True)
        (folder / "vulkan" / "vulkan_core.h").touch()
        (folder / "ggml-decoder.h").write_text(DECODER)
        (folder / name).write_text(text)
        (folder / "CMakeLists.txt").write_text(BACKEND.format(backend, name))
    (sources / "llama.cpp" / "llama.c").write_text("int ggml(void); int llama(void) { return ggml(); }\n")
    (cpu / "ggml-cpu.cpp").write_text("#ifndef GGML_USE_CPU_KLEIDIAI\n#error no place for kernels\n#endif\n")
    return engine / "cmake"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the kernels are for x86")
def test_each_variant_gets_the_kernels(project: Path, tmp_path: Path) -> None:
    """And the libraries find their neighbours where they lie, with a description beside them."""
    out = tmp_path / "out"
    sources = f"-DEDGE_EMBED_SOURCES={tmp_path / 'sources'}"
    subprocess.run(
        ["cmake", "--preset", "cpu-portable", "-B", out, sources], cwd=project, capture_output=True, check=True
    )
    subprocess.run(["cmake", "--build", out], capture_output=True, check=True)
    for variant in ("x64", "zen4"):
        (library,) = (out / "bin").glob(f"libggml-cpu-{variant}.*")
        assert [kernel for kernel in KERNELS if f"kernel_{kernel}".encode() in library.read_bytes()] == list(KERNELS)
    described = json.loads((out / "bin" / "engine.json").read_text())
    assert ("cpu-portable", SOURCES) == (described["preset"], described["sources"])
    assert ["CMAKE_BUILD_TYPE=Release", "GGML_BACKEND_DL=ON", "GGML_CPU_ALL_VARIANTS=ON"] == described["settings"]
    if platform.system() == "Linux":
        dynamic = subprocess.run(
            ["readelf", "-d", out / "bin" / "libllama.so"], capture_output=True, text=True, check=True
        )
        assert "[$ORIGIN]" in dynamic.stdout


@pytest.mark.parametrize("backend", MENDED)
def test_sources_begin_with_the_headers_that_mend_them(backend: str, project: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", [f"-DEDGE_EMBED_SOURCES={tmp_path / 'sources'}", f"-DOpenVINO_DIR={tmp_path}"]
    cmake("-S", project, "-B", out, *options, f"-DGGML_{backend.upper()}=ON")
    cmake("--build", out, "--target", f"ggml-{backend}")
    (library,) = (path for path in (out / "bin").glob(f"*ggml-{backend}.*") if path.suffix in (".so", ".dylib", ".dll"))
    assert ctypes.CDLL(str(library)).mended() == 1


def test_a_source_that_is_gone_is_not_left_as_it_was(project: Path, tmp_path: Path) -> None:
    """Another release of llama.cpp may have mended it, or called it otherwise: somebody has to look."""
    folder = tmp_path / "sources" / "llama.cpp" / "ggml" / "src" / "ggml-openvino"
    (folder / "utils.cpp").rename(folder / "other.cpp")
    (folder / "CMakeLists.txt").write_text(BACKEND.format("openvino", "other.cpp"))
    options = [f"-DEDGE_EMBED_SOURCES={tmp_path / 'sources'}", f"-DOpenVINO_DIR={tmp_path}", "-DGGML_OPENVINO=ON"]
    command = ["cmake", "-S", project, "-B", tmp_path / "out", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode
    assert "utils.cpp is gone" in " ".join(result.stderr.split())


linux = pytest.mark.skipif(platform.system() != "Linux", reason="CUDA's packages are used under Linux alone")


def configure_cuda(project: Path, python: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """As where CUDA's toolkit is not installed."""
    out, sources = project.parents[1] / "out", project.parents[1] / "sources"
    options = [f"-DEDGE_EMBED_SOURCES={sources}", f"-DEDGE_EMBED_PYTHON={python}", "-DEDGE_EMBED_NVCC=", *more]
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDAToolkit_ROOT", "CUDA_PATH")}
    return subprocess.run(
        ["cmake", "--preset", "cuda-rtx30", "-B", out, *options],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@linux
def test_cuda_comes_out_of_pythons_packages(project: Path, tmp_path: Path) -> None:
    """The newest of them become what CMake takes for a toolkit, and the driver's library need not be there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python, out = tmp_path / "env" / "bin" / "python", tmp_path / "out"
    failed = configure_cuda(project, python)
    assert failed.returncode != 0
    assert "pip install 'edge-embed[cuda]'" in " ".join(failed.stderr.split())

    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    for version in ("cu9", "cu13", "cu12"):
        home = packages / "nvidia" / version
        for name in (
            "bin/nvcc",
            "nvvm/bin/cicc",
            "include/cublas_v2.h",
            "lib/libcublas.so.13",
            "lib/libcudart_static.a",
        ):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(version)
    for _ in range(2):  # again, as Ninja does it when a file has changed
        assert configure_cuda(project, python).returncode == 0
    toolkit = out / "cuda"
    found = {str(path.relative_to(toolkit)): path.read_text() for path in toolkit.glob("*/*.*")}
    names = ("include/cublas_v2.h", "lib/libcublas.so", "lib/libcublas.so.13", "lib/libcudart_static.a")
    assert found == dict.fromkeys((*names, *(name.replace("lib/", "lib64/") for name in names[1:])), "cu13")
    cache = (out / "CMakeCache.txt").read_text()
    assert f"CMAKE_CUDA_COMPILER:FILEPATH={toolkit}/bin/nvcc\n" in cache
    assert f"CUDAToolkit_ROOT:PATH={toolkit}\n" in cache

    subprocess.run(["cmake", "--build", out], capture_output=True, check=True)
    assert not list((out / "bin").glob("libcuda*"))
    dynamic = subprocess.run(
        ["readelf", "-d", out / "bin" / "libggml-cuda.so"], capture_output=True, text=True, check=True
    ).stdout
    assert "[libcuda.so.1]" in dynamic
    assert f"[$ORIGIN:{packages}/nvidia/cu13/lib]" in dynamic


@linux
def test_a_toolkit_that_is_named_is_taken(project: Path, tmp_path: Path) -> None:
    """Python's packages are not looked for, and nothing is said of them."""
    result = configure_cuda(project, tmp_path / "no python", f"-DCUDAToolkit_ROOT={tmp_path / 'own'}")
    assert not (tmp_path / "out" / "cuda").exists()
    assert "CUDA::cuda_driver" in result.stderr  # which the stand-in for ggml-cuda's own search has not found


@linux
def test_cuda_for_another_machine_wants_a_toolkit_that_is_named(project: Path, tmp_path: Path) -> None:
    """This machine's libraries would be linked, or none found: it is said at once, and where else it can be built."""
    other = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    result = configure_cuda(project, tmp_path / "no python", *other)
    assert result.returncode != 0
    said = " ".join(result.stderr.split())
    assert "CUDA's libraries for aarch64" in said
    assert "on the board" in said
    assert "CUDAToolkit_ROOT" in said
    assert not (tmp_path / "out" / "cuda").exists()


def test_sources_that_nobody_checked_are_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "sources" / "archive.json").unlink()
    command = ["cmake", "-S", project, "-B", tmp_path / "out", f"-DEDGE_EMBED_SOURCES={tmp_path / 'sources'}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode
    assert "build.py --sources" in result.stderr


# Variants as llama.cpp names them for Arm, compiled by whatever compiler is here: only the spelling is looked at.
ARM = """
cmake_minimum_required(VERSION 3.21)
project(llama_cpp C CXX)
set(GGML_AVAILABLE_BACKENDS ggml-cpu-armv8.2_1 ggml-cpu-armv9.2_2 CACHE INTERNAL "")
set(KNOWN OFF CACHE BOOL "")
set(EDGE_EMBED_HAS_march_armv9_2_a_dotprod_i8mm_sve2_sme ${KNOWN} CACHE INTERNAL "")
add_library(ggml-cpu-armv8.2_1 STATIC one.c)
target_compile_options(ggml-cpu-armv8.2_1 PRIVATE -march=armv8.2-a+dotprod)
add_library(ggml-cpu-armv9.2_2 STATIC one.c)
target_compile_options(ggml-cpu-armv9.2_2 PRIVATE -march=armv9.2-a+dotprod+i8mm+sve2+sme)
cmake_language(DEFER CALL cmake_language DEFER CALL show)
function(show)
    foreach(target ggml-cpu-armv8.2_1 ggml-cpu-armv9.2_2)
        get_target_property(options ${target} COMPILE_OPTIONS)
        message(STATUS "${target} ${options}")
    endforeach()
endfunction()
"""


@pytest.mark.parametrize(
    ("known", "spelled"),
    [("OFF", "armv8.6-a+dotprod+i8mm+sve2"), ("ON", "armv9.2-a+dotprod+i8mm+sve2+sme")],
)
def test_a_compiler_without_sme_gets_the_same_variant_without_it(known: str, spelled: str, tmp_path: Path) -> None:
    """GCC 12 and 13, Debian's and Raspberry Pi OS's, stop at the name; what else the variant promises is kept."""
    (tmp_path / "CMakeLists.txt").write_text(ARM)
    (tmp_path / "one.c").write_text("int one;\n")
    include = f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={SCRIPT.with_name('llama.cmake')}"
    said = cmake("-S", tmp_path, "-B", tmp_path / "out", include, f"-DKNOWN={known}")
    assert "ggml-cpu-armv8.2_1 " in said
    assert re.search(r"ggml-cpu-armv8\.2_1 .*-march=armv8\.2-a\+dotprod$", said, re.MULTILINE)
    assert re.search(rf"ggml-cpu-armv9\.2_2 .*-march={re.escape(spelled)}$", said, re.MULTILINE)
