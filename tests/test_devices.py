"""What the machine has, read from a faked system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.engine import backends, devices
from edge_embed.engine.devices import (
    Gpu,
    Memory,
    cgroup_quota,
    cpu_name_and_flags,
    default_threads,
    gpus,
    memory,
    peak_rss_bytes,
    performance_cpus,
    physical_cores,
)
from edge_embed.model_shape import Matrix


def sysfs(root: Path, siblings: dict[int, str]) -> Path:
    """A tree like /sys/devices/system/cpu."""
    for cpu, text in siblings.items():
        topology = root / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    return root


FOUR_BY_TWO = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.mark.parametrize(
    ("siblings", "allowed", "expected"),
    [
        (FOUR_BY_TWO, list(range(8)), 4),
        (FOUR_BY_TWO, [0, 4], 1),
        (FOUR_BY_TWO, [0, 1, 5], 2),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 1, 2, 3], 2),
        ({0: "0", 1: "1"}, [0, 1], 2),
        ({}, [0, 1, 2], 3),
        ({0: "0"}, [0, 1], 2),
    ],
    ids=["hyper-threads", "one core", "part", "ranges", "no hyper-threads", "no sysfs", "half a sysfs"],
)
def test_hyper_threads_of_a_core_count_once(
    siblings: dict[int, str], allowed: list[int], expected: int, tmp_path: Path
) -> None:
    assert expected == physical_cores(allowed, sysfs(tmp_path, siblings))


def cores(root: Path, name: str, values: list[int]) -> Path:
    """A tree like /sys/devices/system/cpu with a number for each CPU."""
    for cpu, value in enumerate(values):
        file = root / f"cpu{cpu}" / name
        file.parent.mkdir(parents=True)
        file.write_text(f"{value}\n")
    return root


@pytest.mark.parametrize(
    ("name", "values", "allowed", "expected"),
    [
        ("cpu_capacity", [400, 400, 400, 400, 1024, 1024, 1024, 1024], range(8), [4, 5, 6, 7]),
        ("cpu_capacity", [250, 250, 870, 870, 1024], range(5), [2, 3, 4]),
        ("cpu_capacity", [256, 256, 1024, 1024], [0, 1], [0, 1]),
        ("cpu_capacity", [1024] * 4, range(4), [0, 1, 2, 3]),
        ("cpufreq/cpuinfo_max_freq", [1_416_000] * 4 + [1_800_000] * 2, range(6), [0, 1, 2, 3, 4, 5]),
        ("cpufreq/cpuinfo_max_freq", [1_000_000] * 2 + [2_400_000] * 2, range(4), [2, 3]),
        ("cpufreq/cpuinfo_max_freq", [5_100_000] * 2 + [3_500_000] * 4, range(6), [0, 1, 2, 3, 4, 5]),
    ],
    ids=["RK3588", "three kinds", "slow ones alone", "alike", "a little slower", "by clock", "AMD's compact cores"],
)
def test_slow_cores_are_left_out(
    name: str, values: list[int], allowed: Any, expected: list[int], tmp_path: Path
) -> None:
    assert expected == performance_cpus(list(allowed), cores(tmp_path, name, values), tmp_path / "none")


@pytest.mark.parametrize(
    ("listed", "allowed", "expected"),
    [("0-3,8", range(12), [0, 1, 2, 3, 8]), ("0-7", [8, 9], [8, 9]), ("", [0, 1], [0, 1]), ("x", [0, 1], [0, 1])],
)
def test_intel_lists_its_fast_cores(listed: str, allowed: Any, expected: list[int], tmp_path: Path) -> None:
    (tmp_path / "cpus").write_text(listed + "\n")
    assert expected == performance_cpus(list(allowed), tmp_path / "none", tmp_path / "cpus")


def test_half_a_list_of_speeds_is_none(tmp_path: Path) -> None:
    assert [0, 1, 2] == performance_cpus([0, 1, 2], cores(tmp_path, "cpu_capacity", [1024, 256]), tmp_path / "none")


def quota_in(root: Path, groups: dict[str, dict[str, str]], own: str) -> int | None:
    """What is found in these control groups."""
    (root / "own").write_text(own)
    for group, files in groups.items():
        folder = root / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    return cgroup_quota(root / "cgroup", root / "own")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("", None), ("x", None),
     ("0 100000", None), ("100000 0", None)],
)  # fmt: skip
def test_a_quota_of_cgroup_v2_is_rounded_up(text: str, expected: int | None, tmp_path: Path) -> None:
    assert expected == quota_in(tmp_path, {"": {"cpu.max": text}}, "0::/\n")


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("300000", "100000", 3), ("250000", "100000", 3), ("-1", "100000", None), ("", "", None)],
)
def test_a_quota_of_cgroup_v1_is_rounded_up(quota: str, period: str, expected: int | None, tmp_path: Path) -> None:
    files = {"cpu.cfs_quota_us": quota + "\n", "cpu.cfs_period_us": period + "\n"}
    assert expected == quota_in(tmp_path, {"cpu": files}, "4:cpu,cpuacct:/\n")


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    """systemd's slices: CPUQuota= of a service, and of what it is in."""
    groups = {
        "system.slice/a.service": {"cpu.max": "400000 100000"},
        "system.slice": {"cpu.max": "300000 100000"},
        "other": {"cpu.max": "100000 100000"},
    }
    assert 3 == quota_in(tmp_path, groups, "0::/system.slice/a.service\n")


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert None is cgroup_quota(tmp_path / "none", tmp_path / "none")


@pytest.mark.parametrize(("cores", "quota", "expected"), [(8, 3, 3), (2, 6, 2), (4, None, 4), (0, None, 1)])
def test_threads_are_the_cores_within_the_quota(
    cores: int, quota: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "performance_cpus", lambda cpus: cpus)
    monkeypatch.setattr(devices, "physical_cores", lambda _: cores)
    monkeypatch.setattr(devices, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert expected == default_threads()


def test_this_machine_has_a_thread_and_not_more_than_its_cpus() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


def test_the_cpu_is_described_the_same_way_twice() -> None:
    assert cpu_name_and_flags() == cpu_name_and_flags()


def test_the_peak_of_a_process_is_not_its_parents() -> None:
    """A child of a process that holds much would otherwise begin with that."""
    held = np.ones(200 << 20, dtype=np.uint8)
    child = "from edge_embed.engine.devices import peak_rss_bytes; print(peak_rss_bytes() or 0)"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(held)


def test_peak_memory_is_in_bytes() -> None:
    """A Python process with NumPy holds more than 10 MB and less than a terabyte."""
    peak = peak_rss_bytes()
    assert peak is None or 10e6 < peak < 1e12


# Memory

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"


def memory_in(root: Path, groups: dict[str, dict[str, str]], own: str = "0::/\n") -> Memory:
    """What is found on a machine of 1,000 KiB with these control groups."""
    (root / "meminfo").write_text(MEMINFO)
    (root / "own").write_text(own)
    for group, files in groups.items():
        folder = root / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    return memory(root / "meminfo", root / "cgroup", root / "own")


def limited(limit: str, used: int, stat: str = "anon 5\n") -> dict[str, str]:
    return {"memory.max": limit, "memory.current": f"{used}\n", "memory.stat": stat}


KIB = 1024
MACHINE = Memory(1000 * KIB, 600 * KIB)


@pytest.mark.parametrize(
    ("groups", "own", "expected"),
    [
        ({}, "0::/\n", MACHINE),
        ({"": limited("max\n", 5)}, "0::/\n", MACHINE),
        ({"": limited(f"{500 * KIB}\n", 100 * KIB)}, "0::/\n", Memory(500 * KIB, 400 * KIB)),
        ({"": limited(f"{9000 * KIB}\n", 100 * KIB)}, "0::/\n", MACHINE),
        ({"": limited(f"{500 * KIB}\n", 500 * KIB)}, "0::/\n", Memory(500 * KIB, 0)),
        ({"": limited(f"{500 * KIB}\n", 400 * KIB, f"anon 1\ninactive_file {200 * KIB}\nactive_file {100 * KIB}\n")},
         "0::/\n", Memory(500 * KIB, 400 * KIB)),
        ({"a/b": limited(f"{300 * KIB}\n", 0), "a": limited(f"{200 * KIB}\n", 150 * KIB)}, "0::/a/b\n",
         Memory(200 * KIB, 50 * KIB)),
        ({"other": limited("1\n", 0)}, "0::/a\n", MACHINE),
        ({"memory": {"memory.limit_in_bytes": f"{400 * KIB}", "memory.usage_in_bytes": "0"}}, "3:memory:/x\n",
         Memory(400 * KIB, 400 * KIB)),
        ({"memory": {"memory.limit_in_bytes": f"{2**63 - 4096}", "memory.usage_in_bytes": "0"}}, "", MACHINE),
    ],
    ids=["none", "no limit", "limit", "above the machine", "full", "file pages", "nested", "another group", "v1",
         "v1 without limit"],
)  # fmt: skip
def test_memory_is_no_more_than_any_control_group_allows(
    groups: dict[str, dict[str, str]], own: str, expected: Memory, tmp_path: Path
) -> None:
    assert expected == memory_in(tmp_path, groups, own)


def test_without_proc_what_is_available_is_not_known(tmp_path: Path) -> None:
    found = memory(tmp_path / "none", tmp_path / "none", tmp_path / "none")
    assert found.available is None
    assert found.total is None or found.total > 10**6


def test_this_machine_has_memory() -> None:
    found = memory()
    assert found.total is None or found.total >= (found.available or 0) > 0


class FakeLibrary:
    """ggml's registry with a CPU, a card and Apple's GPU."""

    DEVICES = (
        (0, b"CPU", b"CPU", 0, 0),
        (1, b"CUDA0", b"CUDA", 3, 8),
        (1, b"MTL0", b"MTL", 5, 6),
        (2, b"V", b"Vulkan", 1, 2),
        (1, b"CUDA1", b"CUDA", 4, 9),
    )

    def ggml_backend_dev_count(self) -> int:
        return len(self.DEVICES)

    def ggml_backend_dev_get(self, index: int) -> int:
        return index

    def ggml_backend_dev_type(self, device: int) -> int:
        return self.DEVICES[device][0]

    def ggml_backend_dev_name(self, device: int) -> bytes:
        return self.DEVICES[device][1]

    def ggml_backend_dev_description(self, _: int) -> bytes:
        return b"a card \xff"

    def ggml_backend_dev_backend_reg(self, device: int) -> int:
        return device

    def ggml_backend_reg_name(self, device: int) -> bytes:
        return self.DEVICES[device][2]

    def ggml_backend_dev_memory(self, device: int, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.DEVICES[device][3:]


def test_gpus_are_what_the_library_lists_beside_the_cpu() -> None:
    library: Any = FakeLibrary()
    described = "a card \ufffd"
    assert gpus(library) == [
        Gpu("CUDA0", described, "CUDA", 8, 3, False),
        Gpu("MTL0", described, "Metal", 6, 5, True),
        Gpu("V", described, "Vulkan", 2, 1, True, integrated=True),
        Gpu("CUDA1", described, "CUDA", 9, 4, False, number=1),
    ]
    assert [gpu.device for gpu in gpus(library)] == ["cuda:0", "metal", "vulkan:0", "cuda:1"]


def test_the_real_registry_lists_the_cpu_and_answers() -> None:
    library = backends.registry()
    names = [
        ctypes.string_at(library.ggml_backend_dev_name(library.ggml_backend_dev_get(i)))
        for i in range(library.ggml_backend_dev_count())
    ]
    assert b"CPU" in names
    assert all(gpu.total >= gpu.free for gpu in gpus(library))


def test_matrices_of_floats_are_never_copied_into_another_order() -> None:
    """The types that are, depend on the processor; test_plan compares with what the library allocates."""
    asked = backends.repacks()
    assert not asked(Matrix("F32", 256, 256, 0))
    assert not asked(Matrix("", 256, 256, 0))
