"""Memory: how much the process has had, how much is free, and how to give freed parts back to the system."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from qcompile.errors import InputError

UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True)
class Group:
    """Where a version of Linux control groups, which limit containers, keeps its numbers of bytes."""

    limit: str
    used: str
    statistics: str
    cached: str


MACHINE = Path("/proc/meminfo")
GROUP_FOLDER = Path("/sys/fs/cgroup")  # a container sees its own group there
GROUPS = (
    Group("memory.max", "memory.current", "memory.stat", "inactive_file"),
    Group("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had so far, or 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> int | None:
    """Return the bytes that processes may still take on the machine or in the container, or None if nothing says."""
    found = [_number(MACHINE, "MemAvailable:", 1024), *(_free_of_group(group) for group in GROUPS)]
    return min((free for free in found if free is not None), default=None)


def _free_of_group(group: Group) -> int | None:
    """Return what a control group leaves of its limit; files that are cached and unused count as free."""
    limit, used = (_number(GROUP_FOLDER / name) for name in (group.limit, group.used))
    cached = _number(GROUP_FOLDER / group.statistics, group.cached) or 0
    return None if limit is None or used is None else max(0, limit - used + cached)


def _number(path: Path, label: str = "", unit: int = 1) -> int | None:
    """Return the number behind a label that begins a line of a file, or None."""
    try:
        found = re.search(rf"^{label}\s*(\d+)", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:  # not Linux, or not this version of control groups
        return None
    return int(found[1]) * unit if found else None


def release_freed_memory() -> None:
    """Give freed memory back to the system, where its C library keeps it (glibc): peaks of two passes do not add up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def parse_size(where: str, text: str) -> int:
    """Return the bytes behind a size such as 1GB, 512 MB or 1.5GiB; `where` is the flag. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip(), re.IGNORECASE)
    units = {name.lower(): size for name, size in UNITS.items()}
    if not found or found[2].lower() not in units or float(found[1]) == math.inf:
        raise InputError(f"{where} {text!r} is not a size", remedy="give a number and a unit, such as 1GB or 512MB")
    return int(float(found[1]) * units[found[2].lower()])
