"""Memory that is free: of the machine, and of control groups of both versions."""

import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.machine import (
    Need,
    cores_here,
    free_memory_bytes,
    memory_limit_bytes,
    refuse_beyond_memory,
)

MIB = 2**20


def machine(root: Path, groups: str, files: dict[str, int | str]) -> Path:
    """A machine with 16,000 MiB free, its processes in `groups`."""
    free = f"MemFree: 7 kB\nMemAvailable:   {16_000 * 1024} kB\n"
    every = {"proc/meminfo": free, **files, "proc/self/cgroup": groups}
    for name, value in every.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value * MIB if isinstance(value, int) else value}\n")
    return root


def test_without_limits_the_machine_decides(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/user.slice", {"sys/fs/cgroup/user.slice/memory.max": "max"})
    assert free_memory_bytes(root) == 16_000 * MIB


def test_of_nested_groups_the_tightest_decides_and_pages_of_files_count_as_free(
    tmp_path: Path,
) -> None:
    inner, outer = "sys/fs/cgroup/job/step", "sys/fs/cgroup/job"
    files = f"anon 1\ninactive_file {300 * MIB}\nactive_file {100 * MIB}"
    limits = {f"{inner}/memory.max": 8_000, f"{inner}/memory.current": 1_000}
    limits |= {f"{outer}/memory.max": 2_000, f"{outer}/memory.current": 1_500}
    root = machine(tmp_path, "0::/job/step", limits | {f"{outer}/memory.stat": files})
    assert free_memory_bytes(root) == (2_000 - (1_500 - 400)) * MIB
    assert memory_limit_bytes(root) <= 2_000 * MIB


def test_a_group_of_version_1_that_is_mounted_as_the_root(tmp_path: Path) -> None:
    """As a container sees it: its own path is the host's, and not there."""
    top = "sys/fs/cgroup/memory"
    files: dict[str, int | str] = {
        f"{top}/memory.limit_in_bytes": 1_024, f"{top}/memory.usage_in_bytes": 1_000,
        f"{top}/memory.stat": f"total_inactive_file {50 * MIB}\ntotal_active_file 0",
    }  # fmt: skip
    root = machine(tmp_path, "4:cpu,cpuacct:/\n3:memory:/docker/abc\n0::/", files)
    assert free_memory_bytes(root) == 74 * MIB


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ("0::/pod/c", {"sys/fs/cgroup/pod/cpu.max": "25000 100000"}, 0.25),
        ("4:cpu,cpuacct:/\n0::/", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": 50000,
                                   "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000}, 0.5),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
    ],
)  # fmt: skip
def test_a_containers_limit_of_cores_counts_and_not_its_nodes(
    tmp_path: Path, groups: str, files: dict[str, int | str], cores: float | None
) -> None:
    assert cores_here(machine(tmp_path, groups, files)) == (cores or len(os.sched_getaffinity(0)))


def test_nobody_says_how_much_is_free(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) is None
    refuse_beyond_memory([Need("all", 2**60, "up")], None)


def test_a_limit_of_the_address_space_leaves_what_is_not_taken(tmp_path: Path) -> None:
    own = tmp_path / "proc/self"
    own.mkdir(parents=True)
    (own / "statm").write_text("1000 10 1 1 0 1 0")
    limits = "Max resident set          unlimited            unlimited            bytes\n"
    (own / "limits").write_text(
        f"{limits}Max address space         1073741824           unlimited            bytes\n"
    )
    assert free_memory_bytes(tmp_path) == 2**30 - 1000 * os.sysconf("SC_PAGE_SIZE")
    (own / "limits").write_text(limits.replace("resident set", "address space"))
    assert free_memory_bytes(tmp_path) is None


def test_this_machine_has_less_than_its_own_memory_free() -> None:
    free = free_memory_bytes()
    assert free is not None
    assert 0 < free < memory_limit_bytes() <= 2**50


def test_the_flag_of_the_need_that_is_too_large_is_named() -> None:
    needs = [Need("batches", 90 * 2**30, "a smaller --batch"), Need("model", 2**30, "no model")]
    refuse_beyond_memory(needs, 91 * 2**30)
    with pytest.raises(ConfigError) as refused:
        refuse_beyond_memory(needs, 8 * 2**30)
    assert str(refused.value) == (
        "memory: at least 91.0 GiB are needed here (90.0 GiB for batches, 1.0 GiB for model), and "
        "8.0 GiB can be had. Give a smaller --batch."
    )
