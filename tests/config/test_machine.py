from __future__ import annotations

from pathlib import Path

import pytest

from octavo.config import machine

GIB = 1 << 30
V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
V1 = (
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    base = {
        "proc/meminfo": "MemTotal:       16777216 kB\nMemFree:  1048576 kB\nMemAvailable:    8388608 kB\n"
    }
    for name, text in (base | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cores(*groups: str) -> dict[str, str]:
    """One topology file for each logical CPU: which CPUs share its core."""
    return {f"sys/devices/system/cpu/cpu{i}/topology/core_cpus_list": f"{g}\n" for i, g in enumerate(groups)}


def test_fast_cores_come_first(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu"
    speeds = {0: 3_700_000, 1: 3_700_000, 2: 5_100_000, 3: 5_100_000, 4: 5_200_000, 5: 5_100_000}
    clocks = {f"{folder}{cpu}/cpufreq/cpuinfo_max_freq": f"{khz}\n" for cpu, khz in speeds.items()}
    root = tree(tmp_path, cores("0", "1", "2-3", "2-3", "4-5", "4-5") | clocks)
    assert machine.physical_cpus(root, range(6)) == (2, 4, 0, 1)
    tree(tmp_path, {f"{folder}{cpu}/cpu_capacity": f"{1024 - 400 * (cpu > 2)}\n" for cpu in range(6)})
    assert machine.physical_cpus(root, range(6)) == (0, 1, 2, 4)
    assert machine.physical_cpus(root, (4, 5, 1)) == (1, 4)


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    root = tree(tmp_path, {})
    assert machine.total_memory_bytes(root) == 16 * GIB
    assert machine.free_memory_bytes(root) == 8 * GIB


def test_an_old_kernel_without_memavailable(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": "MemTotal: 4 kB\nMemFree: 1 kB\nBuffers: 1 kB\nCached: 1 kB\n"})
    assert machine.free_memory_bytes(root) == 3 * 1024


def test_version_2_counts_every_parent_and_gives_back_file_pages(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/a"
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "proc/self/mountinfo": V2,
        f"{group}/b/memory.max": "max\n",
        f"{group}/b/memory.current": f"{GIB}\n",
        f"{group}/memory.max": f"{4 * GIB}\n",
        f"{group}/memory.current": f"{3 * GIB}\n",
        f"{group}/memory.stat": f"anon 1\nactive_file {GIB // 2}\ninactive_file {GIB // 2}\n",
    }
    root = tree(tmp_path, files)
    assert machine.total_memory_bytes(root) == 4 * GIB
    assert machine.free_memory_bytes(root) == 2 * GIB
    tree(tmp_path, files | {f"{group}/b/memory.high": f"{GIB + 5}\n"})
    assert machine.free_memory_bytes(root) == 5
    tree(tmp_path, files | {f"{group}/b/memory.high": "7\n"})
    assert machine.free_memory_bytes(root) == 0


def test_version_1_and_its_unlimited_number(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
        "proc/self/mountinfo": V1,
        f"{group}/job/memory.limit_in_bytes": "9223372036854771712\n",
        f"{group}/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = tree(tmp_path, files)
    assert machine.free_memory_bytes(root) == 8 * GIB
    limited = {
        f"{group}/job/memory.limit_in_bytes": f"{2 * GIB}\n",
        f"{group}/job/memory.usage_in_bytes": f"{GIB}\n",
        f"{group}/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n",
    }
    tree(tmp_path, files | limited)
    assert machine.total_memory_bytes(root) == 2 * GIB
    assert machine.free_memory_bytes(root) == GIB + GIB // 4


@pytest.mark.parametrize("mounted", ["/docker/abc", "/elsewhere"])
def test_in_a_container_the_mount_is_the_group(tmp_path: Path, mounted: str) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n",
            "proc/self/mountinfo": V1.replace("0:32 / ", f"0:32 {mounted} "),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
        },
    )
    assert machine.free_memory_bytes(root) == GIB


@pytest.mark.parametrize("group", ["/../../etc", "", "nonsense"])
def test_strange_files_do_no_harm(tmp_path: Path, group: str) -> None:
    files = {
        "proc/self/cgroup": f"0::{group}\ngarbage\n::\n",
        "proc/self/mountinfo": V2 + "x - cgroup2\n\n",
        "sys/fs/cgroup/memory.max": "lots\n",
        "sys/fs/cgroup/cpu.max": "1 0\n",
    }
    root = tree(tmp_path, files)
    assert machine.free_memory_bytes(root) == 8 * GIB
    assert machine.cpu_count(root, mask={0, 1}) == 2


def test_cores_are_counted_not_hyperthreads(tmp_path: Path) -> None:
    root = tree(tmp_path, cores("0,2", "1,3", "0,2", "1,3"))
    assert machine.physical_cpus(root, mask=range(4)) == (0, 1)
    assert machine.physical_cpus(root, mask={2, 3}) == (2, 3)
    assert machine.cpu_count(root, mask={0, 2}) == 1
    assert machine.cpu_count(tree(tmp_path / "bare", {}), mask=range(3)) == 3


@pytest.mark.parametrize(
    ("said", "count"),
    [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("", 4)],
)
def test_a_version_2_quota_bounds_the_threads(tmp_path: Path, said: str, count: int) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2, "sys/fs/cgroup/a/cpu.max": said}
    root = tree(tmp_path, files | {"sys/fs/cgroup/a/b/cpu.max": "max 100000"})
    assert machine.cpu_count(root, mask=range(4)) == count


@pytest.mark.parametrize(("quota", "count"), [("-1", 4), ("300000", 3)])
def test_a_version_1_quota_bounds_the_threads(tmp_path: Path, quota: str, count: int) -> None:
    files = {
        "proc/self/cgroup": "1:cpu,cpuacct:/\n",
        "proc/self/mountinfo": V1,
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert machine.cpu_count(tree(tmp_path, files), mask=range(4)) == count


def test_this_machine_answers() -> None:
    assert 0 < machine.free_memory_bytes() <= machine.total_memory_bytes()
    assert 1 <= machine.cpu_count() <= len(machine.affinity())


def test_vm_stat_is_understood() -> None:
    said = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:      100.\n"
        "Pages active:    7.\nPages inactive:  10.\nPages speculative: 1.\nPages purgeable: 2.\n"
    )
    assert machine.parse_vm_stat(said) == 113 * 16384
    assert machine.parse_vm_stat("") == 0
