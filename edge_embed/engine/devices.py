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
_INTEL_CORES = Path("/sys/devices/cpu_core/cpus")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
# ggml-backend.h, enum ggml_backend_dev_type: memory of its own, or the machine's.
_GPU, _INTEGRATED_GPU = 1, 2
_SLOW: Final = 0.6
# What the backends call themselves, where it is not what everybody calls them.
_KINDS: Final = {"MTL": "Metal"}
_SHARING: Final = ("Metal", "OPENVINO")  # call themselves GPUs, and have no memory but the machine's


def default_threads() -> int:
    """Physical performance cores that the process may run on, at most its control groups' quota; at least 1."""
    allowed = allowed_cpus()
    return max(1, min(physical_cores(performance_cpus(allowed)), cgroup_quota() or len(allowed)))


def allowed_cpus() -> list[int]:
    """The logical CPUs that this process may run on: a container's set, or ``taskset``'s."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux only
    return sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))


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


def performance_cpus(cpus: list[int], root: Path = _CPUS, intel: Path = _INTEL_CORES) -> list[int]:
    """Those of the logical CPUs that are fast, where some are slow; all of them where they are alike.

    The threads of a layer wait for each other, so a slow core holds the fast ones up. Linux says how fast a core is as
    ``cpu_capacity`` on Arm (1024 for the fastest), of Intel's hybrids in a list of the fast ones, and on other machines
    not at all, where the highest clock stands in. Below 0.6 of the fastest a core is slow: a Cortex-A55
    has about 0.4 of a Cortex-A76, and AMD's compact cores, which are like the others, clock 0.65 of them and more.
    """
    try:
        fast = [cpu for cpu in cpus if cpu in _listed(intel.read_text())]
        if fast:
            return fast
    except (OSError, ValueError):
        pass
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        with contextlib.suppress(OSError, ValueError):
            speed = {cpu: int((root / f"cpu{cpu}" / name).read_text()) for cpu in cpus}
            return [cpu for cpu in cpus if speed[cpu] >= _SLOW * max(speed.values())]
    return cpus


def _listed(text: str) -> set[int]:
    """CPUs of a list as the kernel writes it: ``0-7,12``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def cgroup_quota(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int | None:
    """Whole CPUs that the process's control groups allow, rounded up, or None where there is no limit."""
    quotas = []
    for group in _groups(root, own, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            quotas.append((quota, period))
    for group in _groups(root / "cpu", own, "cpu"):
        with contextlib.suppress(OSError):
            files = (group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
            quotas.append((files[0].read_text().strip(), files[1].read_text().strip()))
    # "max", or -1, where there is none
    found = [(int(quota), int(period)) for quota, period in quotas if quota.isdigit() and period.isdigit()]
    return min((-(-quota // period) for quota, period in found if quota and period), default=None)


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
        number: which one of its kind it is, from 0.
        integrated: whether it is part of the processor.
    """

    name: str
    description: str
    kind: str
    total: int
    free: int
    shares_memory: bool
    number: int = 0
    integrated: bool = False

    @property
    def device(self) -> str:
        """What users call it: ``cuda:0``; a Mac has one, ``metal``."""
        return "metal" if (self.kind, self.number) == ("Metal", 0) else f"{self.kind.lower()}:{self.number}"


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


def _groups(root: Path, own: Path, controller: str) -> list[Path]:
    """Folders of the control groups that this process is in, from its own upwards.

    In a container the path is often that of the host, and the container's own group is the root of the tree.
    """
    place = Path("/")
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = [*line.split(":", 2), "", ""][:3]
            if number == "0" or controller in controllers.split(","):
                place = Path(path)
                break
    return list(dict.fromkeys(root / str(part).lstrip("/") for part in (place, *place.parents)))


def _cgroup_memory(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of each control group that has one, from the process's own upwards.

    Pages of files count as left: the kernel drops them before it runs out, as it counts them for a whole machine.
    """
    for folder, limit_file, used_file, prefix in (
        (root, "memory.max", "memory.current", ""),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        for group in _groups(folder, own, "memory"):
            try:
                limit, used = int((group / limit_file).read_text()), int((group / used_file).read_text())
            except (OSError, ValueError):  # "max" where there is no limit
                continue
            if limit < 1 << 60:  # version 1 writes a huge number instead
                statistics = group / "memory.stat"
                files = sum(_statistic(statistics, f"{prefix}{kind}_file") for kind in ("inactive", "active"))
                yield limit, max(0, limit - used + files)


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
    found: list[Gpu] = []
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
                shares_memory=kind == _INTEGRATED_GPU or backend in _SHARING,
                number=sum(gpu.kind == backend for gpu in found),
                integrated=kind == _INTEGRATED_GPU,
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
