"""What can be said about this machine and the native library without a model: for ``edge-embed doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_embed.engine import bindings
from edge_embed.engine.devices import (
    allowed_cpus,
    cgroup_quota,
    cpu_name_and_flags,
    default_threads,
    memory,
    performance_cpus,
    physical_cores,
)

# Flag of the CPU, as Linux writes it -> (its usual name, the entry of llama.cpp's system info that says that the
# library was compiled with it, or empty where that does not tell). Source: ggml-cpu's feature list.
FEATURES: Final[dict[str, tuple[str, str]]] = {
    "avx2": ("AVX2", "AVX2"),
    "fma": ("FMA", "FMA"),
    "f16c": ("F16C", "F16C"),
    "avx_vnni": ("AVX-VNNI", "AVX_VNNI"),
    "avx512f": ("AVX-512", "AVX512"),
    "avx512_vnni": ("AVX-512 VNNI", "AVX512_VNNI"),
    "avx512_bf16": ("AVX-512 BF16", "AVX512_BF16"),
    "amx_int8": ("AMX INT8", "AMX_INT8"),
    "asimd": ("NEON", "NEON"),
    "asimddp": ("dot product", "DOTPROD"),
    "i8mm": ("INT8 matrix", "MATMUL_INT8"),
    "sve": ("SVE", "SVE"),
}
# Kernels of engine/native: the name that stands for them beside llama.cpp's own entries -> (what it is called, flags of
# which the CPU needs one, entries of which the library needs one).
OWN_KERNELS: Final[dict[str, tuple[str, frozenset[str], frozenset[str]]]] = {
    "EDGE_EMBED_ATTENTION": ("attention by texts and GELU", frozenset({"avx2"}), frozenset({"AVX2"})),
    "EDGE_EMBED_PRODUCTS": (
        "products with Q8_0 and K-quants",
        frozenset({"avx_vnni", "avx512_vnni"}),
        frozenset({"AVX_VNNI", "AVX512_VNNI"}),
    ),
}


@dataclass(frozen=True, slots=True)
class MachineReport:
    """The machine, as far as the engine looks at it.

    Attributes:
        cpu: the CPU's name, possibly empty.
        features: names of its features that the kernels can use.
        threads: CPU threads used by default.
        logical_cpus: logical CPUs that this process may run on.
        physical_cores: how many physical cores these are.
        performance_cores: how many of them are fast ones; all, where they are alike.
        quota: whole CPUs that the container allows, or None.
        memory_bytes: memory of the machine or container, or None where unknown.
        available_bytes: memory that can be had now, or None where unknown.
    """

    cpu: str
    features: tuple[str, ...]
    threads: int
    logical_cpus: int
    physical_cores: int
    performance_cores: int
    quota: int | None
    memory_bytes: int | None
    available_bytes: int | None


@dataclass(frozen=True, slots=True)
class LibraryReport:
    """The native library.

    Attributes:
        version: of llama-cpp-python.
        library: path of libllama.
        system_info: what it says of itself: its compiled-in features.
        unused: features that the CPU has and the library was not compiled for.
        gpu_offload: whether it can put layers on a GPU.
        backends: names of the libraries that were picked for this machine; none where there was nothing to pick.
    """

    version: str
    library: Path
    system_info: str
    unused: tuple[str, ...]
    gpu_offload: bool
    backends: tuple[str, ...]


def machine() -> MachineReport:
    """Look at the machine; loads no library."""
    name, flags = cpu_name_and_flags()
    present = set(flags.split())
    allowed = allowed_cpus()
    found = memory()
    return MachineReport(
        cpu=name,
        features=tuple(usual for flag, (usual, _) in FEATURES.items() if flag in present),
        threads=default_threads(),
        logical_cpus=len(allowed),
        physical_cores=physical_cores(allowed),
        performance_cores=physical_cores(performance_cpus(allowed)),
        quota=cgroup_quota(),
        memory_bytes=found.total,
        available_bytes=found.available,
    )


def library() -> LibraryReport:
    """Load the library and ask it.

    Raises:
        EngineUnavailableError: it is missing, broken, or laid out differently.
    """
    lib = bindings.load()
    info: str = lib.c.llama_print_system_info().decode("utf-8", "replace").strip(" |\n")
    compiled = compiled_features(info)
    present = set(cpu_name_and_flags()[1].split())
    unused = [name for flag, (name, entry) in FEATURES.items() if flag in present and entry not in compiled]
    unused += [called for own, (called, flags, _) in OWN_KERNELS.items() if present & flags and own not in compiled]
    return LibraryReport(
        version=lib.version,
        library=lib.library,
        system_info=info,
        unused=tuple(unused),
        gpu_offload=bool(lib.c.llama_supports_gpu_offload()),
        backends=lib.backends,
    )


def compiled_features(system_info: str) -> set[str]:
    """Names that llama.cpp's system info, ``CPU : AVX2 = 1 | FMA = 1 | ...``, gives a value other than 0.

    Our own kernels take the hook of a library for Arm (native/hook.cpp), so on x86 its entry stands for them.
    """
    entries = (entry.rpartition(":")[2].partition("=") for entry in system_info.split("|"))
    names = {name.strip() for name, _, value in entries if value.strip() not in ("", "0")}
    if "SSE3" in names and "KLEIDIAI" in names:
        names = names - {"KLEIDIAI"} | {own for own, (_, _, entries) in OWN_KERNELS.items() if entries & names}
    return names
