"""What this machine gives a process: CPU features, cores and memory, within its control groups."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

CGROUPS = pathlib.Path("/sys/fs/cgroup")


def cpu_flags() -> frozenset[str]:
    """Feature flags of the processor, as Linux names them."""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def usable_cores() -> int:
    """Cores this process may run on: its affinity, or less where a control group grants less time."""
    cores = len(os.sched_getaffinity(0))
    for group in _cgroups():
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit():
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def total_bytes() -> int:
    """Memory there is, or less where a control group grants less."""
    limits = [int(limit) for group in _cgroups() if (limit := _read(group / "memory.max")).isdigit()]
    return min([_fields(pathlib.Path("/proc/meminfo"))["MemTotal:"] * 1024, *limits])


def available_bytes() -> int:
    """Memory that can be had without swapping; page cache counts as free."""
    available = _fields(pathlib.Path("/proc/meminfo"))["MemAvailable:"] * 1024
    for group in _cgroups():
        limit = _read(group / "memory.max")
        if limit.isdigit():
            stat = _fields(group / "memory.stat")
            used = int(_read(group / "memory.current") or 0) - stat.get("inactive_file", 0) - stat.get("active_file", 0)
            available = min(available, int(limit) - used)
    return max(0, available)


def _cgroups() -> Iterator[pathlib.Path]:
    """This process's control group (version 2) and those around it."""
    entry = next((line for line in _read(pathlib.Path("/proc/self/cgroup")).splitlines() if line.startswith("0::/")), None)
    if entry is None:
        return
    group = CGROUPS / entry[4:]
    while group != CGROUPS.parent:
        yield group
        group = group.parent


def _fields(path: pathlib.Path) -> dict[str, int]:
    """The file's lines "name number ..."."""
    return {parts[0]: int(parts[1]) for line in _read(path).splitlines() if len(parts := line.split()) > 1}


def _read(path: pathlib.Path) -> str:
    """The text of a file of the kernel's, "" where this machine has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
