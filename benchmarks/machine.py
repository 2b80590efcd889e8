"""What a figure was measured on, in one line."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge_embed.engine.devices import cpu_name_and_flags, default_threads

# What decides which kernels run, as Linux spells it (x86 and Arm).
_TELLING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)


def machine_line(threads: int | None = None) -> str:
    """Date, processor, memory, versions and how busy the machine is; the last is why figures of two runs differ."""
    name, flags = cpu_name_and_flags()
    telling = [flag for flag in _TELLING if flag in flags.split()]
    try:
        library = f"llama-cpp-python {version('llama-cpp-python')}"
    except PackageNotFoundError:
        library = "no llama-cpp-python"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{date.today()}; {name} ({', '.join(telling) or platform.machine()}), {default_threads()} cores, "
        f"{memory_gb():.0f} GB; {threads or default_threads()} threads; Python {platform.python_version()}, "
        f"{library}{load}"
    )


def memory_gb() -> float:
    """Memory of the machine; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return 0.0


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process now.

    Raises:
        OSError: the system has no /proc, or the process is gone.
    """
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
