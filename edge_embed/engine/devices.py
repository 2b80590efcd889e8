"""What this machine has: the cores that this process may really use.

More threads than physical cores slow the engine down, and a container's quota is not visible in the core count.
"""

from __future__ import annotations

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


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


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held at once, in bytes, or None where the system does not say."""
    try:
        import resource
        import sys
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
