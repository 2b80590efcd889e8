"""What this machine has: the cores and the memory that this process may really use, and GPUs.

More threads than physical cores slow the engine down, and a container's quota is not visible in the core count, nor its
limit in the machine's memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
# ggml-backend.h, enum ggml_backend_dev_type: memory of its own, or the machine's.
_GPU, _INTEGRATED_GPU = 1, 2
# What the backends call themselves, where it is not what everybody calls them.
_KINDS: Final = {"MTL": "Metal"}


def default_threads() -> int:
    """Physical cores that the process may run on, at most its cgroup's quota; at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux only
    allowed = sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))
    return max(1, min(physical_cores(allowed), cgroup_quota() or len(allowed)))


def physical_cores(cpus: list[int], root: Path = _CPUS) -> int:
    """How many physical cores the given logical CPUs are; all of them where the system does not say."""
    cores = set()
    for cpu in cpus:
        siblings = root / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def cgroup_quota(v2: Path = _CGROUP_V2, v1: Path = _CGROUP_V1) -> int | None:
    """Whole CPUs that the cgroup allows, rounded up, or None where there is no limit."""
    try:
        quota, period = v2.read_text().split()
    except (OSError, ValueError):
        try:
            quota = (v1 / "cpu.cfs_quota_us").read_text().strip()
            period = (v1 / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0 or int(quota) == 0:
        return None  # "max", or -1
    return -(-int(quota) // int(period))


def load_average() -> float | None:
    """How many threads on the whole machine have wanted to run in the last minute, or None where it does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def cpu_name_and_flags() -> tuple[str, str]:
    """The CPU's name and its feature flags, as the system reports them; empty strings where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine(), ""
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip().lower(), value.strip())
    name = found.get("model name") or found.get("cpu part") or found.get("model") or ""
    return name, found.get("flags") or found.get("features") or ""


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory, in bytes.

    Attributes:
        total: of the machine or container, or None where unknown.
        available: what can be had now without swapping, or None where unknown.
    """

    total: int | None
    available: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the installed library can use.

    Attributes:
        name: what the library calls it, e.g. ``CUDA0``.
        description: what it is.
        kind: ``CUDA``, ``Metal``, ``Vulkan`` or another backend's name.
        total: its memory in bytes.
        free: what of it is free now.
        shares_memory: whether its memory is the machine's.
    """

    name: str
    description: str
    kind: str
    total: int
    free: int
    shares_memory: bool


def memory(meminfo: Path = _MEMINFO, cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> Memory:
    """The machine's memory, no more than any control group allows that the process is in."""
    found: dict[str, int] = {}
    try:
        for line in meminfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                found[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return Memory(_total_by_sysconf(), None)
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    for limit, left in _cgroup_memory(cgroups, own):
        total = limit if total is None else min(limit, total)
        available = left if available is None else min(left, available)
    return Memory(total, available)


def _cgroup_memory(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of each control group that has one, from the process's own upwards.

    Pages of files that were not used lately count as left: the kernel drops them before it runs out.
    """
    place = Path("/")
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = [*line.split(":", 2), "", ""][:3]
            if number == "0" or "memory" in controllers.split(","):
                place = Path(path)
                break
    v1 = root / "memory"
    for folder, limit_file, used_file, cache_key in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        # In a container the path is often that of the host, and the container's own group is the root of the tree.
        for group in dict.fromkeys([folder / str(part).lstrip("/") for part in (place, *place.parents)]):
            try:
                limit, used = int((group / limit_file).read_text()), int((group / used_file).read_text())
            except (OSError, ValueError):  # "max" where there is no limit
                continue
            if limit < 1 << 60:  # version 1 writes a huge number instead
                yield limit, max(0, limit - used + _statistic(group / "memory.stat", cache_key))


def _statistic(file: Path, key: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


def _total_by_sysconf() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def gpus(ggml: ctypes.CDLL) -> list[Gpu]:
    """The GPUs that the library finds; none where it was built without a backend for them.

    Args:
        ggml: the library, see ``backends.registry``.
    """
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        kind = ggml.ggml_backend_dev_type(device)
        if kind not in (_GPU, _INTEGRATED_GPU):
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        backend = _text(ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(device)))
        backend = _KINDS.get(backend, backend)
        found.append(
            Gpu(
                name=_text(ggml.ggml_backend_dev_name(device)),
                description=_text(ggml.ggml_backend_dev_description(device)),
                kind=backend,
                total=total.value,
                free=free.value,
                shares_memory=kind == _INTEGRATED_GPU or backend == "Metal",
            )
        )
    return found


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held at once, in bytes, or None where the system does not say.

    Linux counts as ``ru_maxrss`` what the parent held when it started the process, too; its own figure comes first.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
        import sys
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
