"""What stands in for a part of Vulkan's headers that Debian 12 is too old for; no such headers are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge_embed.engine import build

HEADER = build.HERE / "old_vulkan.h"
# The lines of ggml-vulkan.cpp that name these types, and the sizes that their originals have.
USED = """
#include <vector>
#include <cstdint>
uint32_t enable = 0;
std::vector<vk::LayerSettingEXT> settings = {
    {"VK_LAYER_KHRONOS_validation", "validate_best_practices", vk::LayerSettingTypeEXT::eBool32, 1, &enable},
};
vk::LayerSettingsCreateInfoEXT info(settings);
struct setting { const char * a; const char * b; int32_t c; uint32_t d; const void * e; };
struct create_info { int32_t a; const void * b; uint32_t c; const void * d; };
static_assert(sizeof(vk::LayerSettingEXT) == sizeof(setting));
static_assert(sizeof(vk::LayerSettingsCreateInfoEXT) == sizeof(create_info));
"""


@pytest.mark.parametrize("knows", [False, True])
def test_types_are_there_only_where_the_headers_lack_them(knows: bool, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "a C++ compiler is needed, as for the build"
    (tmp_path / "vulkan").mkdir()
    (tmp_path / "vulkan" / "vulkan_core.h").write_text("#define VK_EXT_layer_settings 1\n" if knows else "")
    (tmp_path / "used.cpp").write_text(USED)
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    command += ["-I", str(tmp_path), "-include", str(HEADER), str(tmp_path / "used.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ("no member named" in done.stderr or "has not been declared" in done.stderr) == knows, done.stderr
    assert (done.returncode == 0) == (not knows)
