"""What this machine lets the process use: memory and cores, inside its affinity mask and control groups.

Linux tells through /proc and /sys (`root` lets a test hand in a tree of its own); elsewhere the standard
library and macOS's `vm_stat` answer. Control groups are read at every level up to the mount, since a
parent's limit binds too: version 2 (memory.max, memory.high, cpu.max) and version 1 (memory.limit_in_bytes,
cpu.cfs_quota_us), as in the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as a number near 2**63."""


def total_memory_bytes(root: Path = ROOT) -> int:
    """Memory that the process could have if it were alone: the machine's, or the smallest group limit above
    it.
    """
    limits = [level.limit for level in _memory_levels(root)]
    return min([_machine_memory(root, "MemTotal"), *limits])


def free_memory_bytes(root: Path = ROOT) -> int:
    """Memory that can still be allocated without swapping or an out-of-memory kill; never negative.

    The least of the machine's MemAvailable and, for every group above the process, its limit minus what it
    uses (pages that only cache files count as free: the kernel drops them first).
    """
    rooms = [level.limit - level.used for level in _memory_levels(root)]
    return max(min([_machine_memory(root, "MemAvailable"), *rooms]), 0)


def affinity() -> frozenset[int]:
    """The logical CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cpus(root: Path = ROOT, mask: Iterable[int] | None = None) -> tuple[int, ...]:
    """One logical CPU of each core that `mask` (default: the affinity mask) touches: fast cores first, then
    ascending.

    Hyperthreads share the units that the kernels keep busy, so a second one on a core adds nothing.
    """
    cores: dict[str, int] = {}
    for cpu in sorted(affinity() if mask is None else mask):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        cores.setdefault(siblings or f"cpu{cpu}", cpu)
    return tuple(sorted(cores.values(), key=lambda cpu: (-core_speed(cpu, root), cpu)))


def core_speed(cpu: int, root: Path = ROOT) -> int:
    """How fast a logical CPU is beside the machine's others; only the order means something. 0: unknown.

    The kernel's own measure where it has one (ARM, and hybrid x86 since 6.12), else the highest clock. Clocks
    within an eighth of each other are one kind of core: favoured cores of a processor differ by a few steps.
    """
    folder = root / f"sys/devices/system/cpu/cpu{cpu}"
    speed = _number(folder / "cpu_capacity")
    if speed is None:
        speed = _number(folder / "cpufreq/cpuinfo_max_freq") or 0
    return round(math.log(speed, 1.125)) if speed > 0 else 0


def cpu_count(root: Path = ROOT, mask: Iterable[int] | None = None) -> int:
    """How many threads compute without waiting for each other: cores in the mask, at most the groups' CPU
    quota.

    A quota of 2.5 CPUs gives 2: a third thread would make all of them wait when the quota is used up. At
    least 1.
    """
    return max(min([len(physical_cpus(root, mask)), *(int(quota) for quota in _cpu_quotas(root))]), 1)


@dataclass(frozen=True)
class _MemoryLevel:
    """One control group: its limit and what it cannot give back, in bytes."""

    limit: int
    used: int


def _text(path: Path) -> str:
    """The file's words, or nothing where there is no such file (or none that may be read)."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def _fields(path: Path) -> dict[str, int]:
    """Lines of `name[:] number ...`."""
    pairs = re.findall(r"^(\S+?):?\s+(\d{1,20})\b", _text(path), re.MULTILINE)
    return {name: int(number) for name, number in pairs}


def _machine_memory(root: Path, field: str) -> int:
    """MemTotal or MemAvailable of /proc/meminfo in bytes, with what other systems have in its place."""
    meminfo = _fields(root / "proc/meminfo")
    if field in meminfo:
        return meminfo[field] * 1024
    if "MemFree" in meminfo:
        # Kernels before 3.14 have no MemAvailable.
        return sum(meminfo.get(part, 0) for part in ("MemFree", "Buffers", "Cached")) * 1024
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total if field == "MemTotal" else _darwin_free_bytes(total)


def _darwin_free_bytes(total: int) -> int:
    """Pages that macOS can hand out, from vm_stat; half of the machine when it does not answer."""
    try:
        said = subprocess.run(["vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return total // 2
    return parse_vm_stat(said) or total // 2


def parse_vm_stat(said: str) -> int:
    """Bytes of the free, inactive, speculative and purgeable pages in vm_stat's output; 0 if it has none."""
    page = re.search(r"page size of (\d+) bytes", said)
    counts = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)", said, re.MULTILINE)
    return sum(map(int, counts)) * (int(page.group(1)) if page else 4096)


def _levels(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of the process's groups, from its own up to the mount point."""
    paths: dict[int, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    for version, mounted, point in _mounts(root, controller):
        if version not in paths:
            continue
        top = root / point.lstrip("/")
        folder = top.joinpath(*_below(paths[version], mounted))
        folder = folder if folder.is_dir() else top
        while True:
            yield version, folder
            if folder == top:
                break
            folder = folder.parent


def _mounts(root: Path, controller: str) -> Iterator[tuple[int, str, str]]:
    """(version, group that is mounted, mount point) from /proc/self/mountinfo, proc(5)."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        place, kind = left.split(), right.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            yield 2, place[3], place[4]
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            yield 1, place[3], place[4]


def _below(path: str, mounted: str) -> tuple[str, ...]:
    """The group's path below the mounted group: in a container the mount often is the group itself."""
    group = PurePosixPath(path)
    if not group.is_relative_to(mounted) or ".." in group.parts:
        return ()
    return group.relative_to(mounted).parts


def _memory_levels(root: Path) -> Iterator[_MemoryLevel]:
    for version, folder in _levels(root, "memory"):
        stat = _fields(folder / "memory.stat")
        if version == 2:
            bounds = (_number(folder / "memory.max"), _number(folder / "memory.high"))
            used = _number(folder / "memory.current")
            cached = stat.get("inactive_file", 0) + stat.get("active_file", 0)
        else:
            bounds = (_number(folder / "memory.limit_in_bytes"), None)
            used = _number(folder / "memory.usage_in_bytes")
            cached = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        limits = [bound for bound in bounds if bound is not None and 0 <= bound < _UNLIMITED]
        if limits:
            yield _MemoryLevel(min(limits), max((used or 0) - cached, 0))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each group above the process may use."""
    for version, folder in _levels(root, "cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
