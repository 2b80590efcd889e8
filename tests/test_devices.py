"""What the machine has, read from a faked system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_embed.engine import devices
from edge_embed.engine.devices import cgroup_quota, cpu_name_and_flags, default_threads, peak_rss_bytes, physical_cores


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("", None), ("x", None),
     ("0 100000", None), ("100000 0", None)],
)  # fmt: skip
def test_a_quota_of_cgroup_v2_is_rounded_up(text: str, expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert expected == cgroup_quota(tmp_path / "cpu.max", tmp_path / "none")


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("300000", "100000", 3), ("250000", "100000", 3), ("-1", "100000", None), ("", "", None)],
)
def test_a_quota_of_cgroup_v1_is_rounded_up(quota: str, period: str, expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu.cfs_period_us").write_text(period + "\n")
    assert expected == cgroup_quota(tmp_path / "none", tmp_path)


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert None is cgroup_quota(tmp_path / "none", tmp_path / "none")


@pytest.mark.parametrize(("cores", "quota", "expected"), [(8, 3, 3), (2, 6, 2), (4, None, 4), (0, None, 1)])
def test_threads_are_the_cores_within_the_quota(
    cores: int, quota: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "physical_cores", lambda _: cores)
    monkeypatch.setattr(devices, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert expected == default_threads()


def test_this_machine_has_a_thread_and_not_more_than_its_cpus() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


def test_the_cpu_is_described_the_same_way_twice() -> None:
    assert cpu_name_and_flags() == cpu_name_and_flags()


def test_peak_memory_is_in_bytes() -> None:
    """A Python process with NumPy holds more than 10 MB and less than a terabyte."""
    peak = peak_rss_bytes()
    assert peak is None or 10e6 < peak < 1e12
