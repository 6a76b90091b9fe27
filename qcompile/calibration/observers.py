"""Observers: what calibration remembers of a tensor. Their memory does not grow with the data, and updates commute."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError

BINS = 2048  # on each side of zero
CHUNK = 1 << 16  # values at a time: all intermediate results stay in the second-level cache
LEAST_REACH = 2.0**-100  # BINS / reach must be a float32 number


class MinMax:
    """Exact range of a tensor: `lo`, `hi` and `count` of all values seen (lo > hi while count is 0)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.lo, self.hi = math.inf, -math.inf

    def update(self, values: NDArray[np.float32]) -> None:
        """Take in values of any shape; raises InputError on NaN or infinity."""
        if not values.size:
            return
        lo, hi = float(values.min()), float(values.max())  # both are NaN if any value is
        if not math.isfinite(lo) or not math.isfinite(hi):
            raise InputError(
                f"tensor {self.name!r} holds NaN or infinity",
                where="calibration, float model",
                remedy="check the samples and their preprocessing, or keep the node that makes it in float",
            )
        self.count += values.size
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)


class Largest(MinMax):
    """Largest value of a tensor whose quantizer begins at 0: values below count as 0, so `lo` is no more than that."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lo = 0.0


class Histogram(MinMax):
    """Distribution of a tensor: exact range, count, and a histogram of the values that are not 0.

    `counts` int64 [2 * BINS]: bins [e, e + width) of equal width over [-reach, reach); zero is an edge. `reach` is the
    least power of two above every |x|, so it does not depend on the order of the data; when it doubles, pairs of bins
    merge, which is exact: the counts are those of a histogram taken with the last reach from the start (for |x| in
    float32's normal range after scaling by BINS / reach).
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.counts: NDArray[np.int64] = np.zeros(2 * BINS, np.int64)
        self.reach = LEAST_REACH

    @property
    def width(self) -> float:
        """The width of one bin, in the tensor's unit."""
        return self.reach / BINS

    def update(self, values: NDArray[np.float32]) -> None:
        """Take in float32 values of any shape; raises InputError on NaN or infinity."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            chunk = flat[start : start + CHUNK]
            super().update(chunk)
            self._widen(reach_of(self.lo, self.hi))
            self._add(chunk)

    def _add(self, chunk: NDArray[np.float32]) -> None:
        position = chunk * np.float32(BINS / self.reach)  # exact: a power of two
        np.floor(position, out=position)
        position += np.float32(BINS)  # after the floor, or the sum would round values up across an edge
        counts = np.bincount(position.astype(np.intp), minlength=2 * BINS)
        counts[BINS] -= np.count_nonzero(chunk == 0)
        self.counts += counts

    def _widen(self, reach: float) -> None:
        if reach > self.reach:
            self.counts = coarsened(self.counts, reach / self.reach)
            self.reach = reach


def reach_of(lo: float, hi: float) -> float:
    """Return the least power of two above max(-lo, hi), at least LEAST_REACH."""
    largest = max(-lo, hi)
    return max(2.0 ** math.frexp(largest)[1], LEAST_REACH) if largest else LEAST_REACH


def coarsened(counts: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
    """Merge groups of `factor` (a power of two) neighbouring bins towards zero; the number of bins stays."""
    group = int(min(factor, BINS))  # beyond that each side is one bin anyway
    merged = counts.reshape(-1, group).sum(axis=1)
    result = np.zeros_like(counts)
    result[BINS - BINS // group : BINS + BINS // group] = merged
    return result
