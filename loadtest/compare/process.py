"""Processor time and memory of a process and all its descendants, from /proc (Linux; proc(5))."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> list[int]:
    """The process and all below it; those that end meanwhile are left out."""
    found, todo = [], [pid]
    while todo:
        process = todo.pop()
        try:
            tasks = list(Path(f"/proc/{process}/task").iterdir())
            todo += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
        found.append(process)
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time that the living of the tree have used, to a clock tick (10 ms)."""
    return sum(_cpu_ticks(process) for process in descendants(pid)) / _TICK


def rss_mib(pid: int) -> float:
    """Resident memory of the tree in MiB; pages that its processes share count for each."""
    return sum(_pages(process) for process in descendants(pid)) * _PAGE / 2**20


def machine_busy_seconds() -> float:
    """Processor time that all processes together have used since boot, time stolen by other machines included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICK


def clients_busy_seconds() -> float:
    """Processor time of this process and of its children that have ended: the load generators."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])  # utime, stime


def _pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
