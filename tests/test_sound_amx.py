"""The force-included header makes GCC hand all 64 bytes of a tile configuration to the AMX instruction.

A processor with AMX is not needed: ``data/tile_config.cpp`` puts an assembler macro in the instruction's place, which
copies the bytes that it would have read.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

import edge_embed.engine

DATA = Path(__file__).parent / "data"
HEADER = Path(edge_embed.engine.__file__).parent / "sound_amx.h"
AMX = ["-mamx-tile", "-mamx-int8"]

# palette 1, start row 0, 14 reserved bytes; sixteen colsb of 16 bits; sixteen rows of 8 bits
WRITTEN = (
    bytes([1, 0, *[0] * 14])
    + b"".join(n.to_bytes(2, "little") for n in [64, 64, 32, 32, 64, 64, 64, 64, *[0] * 8])
    + bytes([8, 8, 16, 16, 16, 16, 16, 16, *[0] * 8])
)

x86_only = pytest.mark.skipif(
    platform.machine().lower() not in {"x86_64", "amd64"}, reason="AMX exists on x86-64 alone"
)


def run(*command: str) -> str:
    """Standard output; what a failed compiler said becomes the test's failure."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{' '.join(command)}\n{answer.stderr}"
    return answer.stdout


def bytes_read(tmp_path: Path, optimization: str, *flags: str) -> bytes:
    """Compile the program, run it, and return what ldtilecfg would have read."""
    program = tmp_path / "tile_config"
    source = str(DATA / "tile_config.cpp")
    registers = ["-ffixed-r15", "-ffixed-xmm15"]
    run("g++", "-std=c++17", optimization, *AMX, *registers, *flags, source, "-o", str(program))
    return bytes.fromhex(run(str(program)).strip())


def intrinsic_reads_8_bytes() -> bool:
    """Whether this compiler's own header has the flaw; version numbers do not tell, distributions patch."""
    source = DATA / "tile_config.cpp"
    return "(*((const void **)__config))" in run("g++", "-std=c++17", "-E", *AMX, str(source))


@x86_only
@pytest.mark.parametrize("optimization", ["-O0", "-O2", "-O3"])
def test_with_the_header_all_64_bytes_arrive(tmp_path: Path, optimization: str) -> None:
    """What the program wrote is what the instruction reads, at every optimization level."""
    assert bytes_read(tmp_path, optimization, "-include", str(HEADER)) == WRITTEN


@x86_only
def test_without_the_header_a_flawed_compiler_loses_bytes(tmp_path: Path) -> None:
    """The test above can fail: a compiler whose intrinsic reads 8 bytes loses the rest, another loses nothing."""
    assert (bytes_read(tmp_path, "-O3") == WRITTEN) is not intrinsic_reads_8_bytes()


@x86_only
@pytest.mark.parametrize(("compiler", "language"), [("gcc", "c"), ("g++", "c++")])
def test_the_header_compiles_without_a_warning(tmp_path: Path, compiler: str, language: str) -> None:
    """Pedantic C and C++ take it, with the intrinsics header before or after, or none."""
    source = tmp_path / "empty.c"
    source.write_text("#include <immintrin.h>\nint edge_embed_test(void);\nint edge_embed_test(void) { return 0; }\n")
    run(compiler, "-x", language, "-Wall", "-Wextra", "-Werror", "-pedantic", *AMX, "-include", str(HEADER),
        "-c", str(source), "-o", str(tmp_path / "empty.o"))  # fmt: skip


@pytest.mark.parametrize(("compiler", "language"), [("gcc", "c"), ("g++", "c++")])
def test_the_header_is_empty_where_amx_is_off(tmp_path: Path, compiler: str, language: str) -> None:
    """Sources that are compiled without AMX see nothing of it, and pay nothing for it."""
    source = tmp_path / "empty.c"
    source.write_text("")
    assert run(compiler, "-x", language, "-E", "-P", "-include", str(HEADER), str(source)).strip() == ""
