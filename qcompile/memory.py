"""The process's memory: how much it has had, and how to give freed parts back to the system."""

from __future__ import annotations

import ctypes
import sys


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had so far, or 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release_freed_memory() -> None:
    """Give freed memory back to the system, where its C library keeps it (glibc): peaks of two passes do not add up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
