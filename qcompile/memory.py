"""Memory: how much the process has had, how much is free, and how to give freed parts back to the system."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had so far, or 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> int | None:
    """Return the bytes that processes may still take without swapping, or None where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:  # not Linux
        return None
    return int(found[1]) * 1024 if found else None


def release_freed_memory() -> None:
    """Give freed memory back to the system, where its C library keeps it (glibc): peaks of two passes do not add up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
