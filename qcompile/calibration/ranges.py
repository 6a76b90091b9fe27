"""Ranges: from what calibration saw of a tensor to the quantizer of that tensor.

A method wishes for a range; `grids` is the one place where a range becomes a scale and an integer zero point that obey
the spec.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcompile.calibration.observers import BINS, Histogram, MinMax
from qcompile.config import CalibrationMethod
from qcompile.errors import InputError
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.powers import power_above

LEAST_SCALE = 1e-8
LP_POWER = 2.4  # LAPQ (Nahshan et al., arXiv 1911.07190), kept by BRECQ, QDrop and MRECG
SHRINKS = 0.05 * np.arange(1, 25)  # up to 1.2: with few levels the best grid can be wider than the data
LEAST_SHARE = 0.5  # of a range, that squared errors may leave at 8 bits
REFINEMENTS = (0.0125, 0.003125)  # spacing of the two finer rounds of the L_p search, as a share of the range
POINTS_PER_BIN = 2
CANDIDATES_AT_ONCE = 16  # times 2 * BINS * POINTS_PER_BIN float32: half a megabyte

Range = tuple[float, float]
ANY: Final[Range] = (-np.inf, np.inf)


@dataclass(frozen=True)
class Ranges:
    """How ranges are chosen: by which method (None: `at_8_bits` there, mse below), and the percentile of one."""

    method: CalibrationMethod | None = None
    percentile: float = 99.99
    at_8_bits: CalibrationMethod = "max"

    def method_for(self, spec: ActivationSpec) -> CalibrationMethod:
        """Return the method for one tensor."""
        searched = spec.power_of_two or not spec.serves(8)  # a power of two that holds all may be twice too large
        return self.method or ("mse" if searched else self.at_8_bits)


BY_BITS = Ranges()
Reals = NDArray[np.float64]


def choose(
    observed: MinMax,
    spec: ActivationSpec,
    method: CalibrationMethod,
    percentile: float = 99.99,
    told_apart: Range = ANY,
) -> Quantizer:
    """Choose the quantizer of a tensor from its observed values.

    Parameters
    ----------
    observed : MinMax
        What calibration saw; every method but "max" needs a Histogram. Values beyond the spec's bounds count as the
        bound, so a tensor may be observed in front of the clip that its quantizer absorbs.
    spec : ActivationSpec
        Bits and constraints; lower <= 0 <= upper.
    method : "max", "percentile", "entropy" or "mse"
    percentile : float
        For "percentile": the share of the values, in percent, that the range holds.
    told_apart
        The interval of values that the tensor's readers tell apart: what lies beyond an end counts as that end. Other
        than the spec's bounds, it does not limit the grid.

    Returns
    -------
    Quantizer
        Zero is on its grid; the grid's real values lie inside [spec.lower, spec.upper], also in float32 arithmetic.

    Raises
    ------
    InputError
        No value was observed, or no grid obeys the spec.
    """
    if spec.fixed is not None:
        return spec.fixed
    if not observed.count:
        raise InputError(
            f"calibration saw no value of tensor {observed.name!r}",
            remedy="give samples that reach it, or keep the node that makes it in float",
        )
    least, most = max(spec.lower, told_apart[0]), min(spec.upper, told_apart[1])
    if method == "max":
        lo, hi = np.clip([observed.lo, observed.hi], least, most)
    else:
        assert isinstance(observed, Histogram), f"{method} needs a histogram"
        lo, hi = METHODS[method](Distribution.inside(observed, least, most), spec, percentile)
    found = _of_range(lo, hi, spec)
    if spec.centred > 1 and lo < 0 < hi:
        middle = _of_range(lo, hi, replace(spec, symmetric=True))
        found = middle if found.scale < middle.scale <= spec.centred * found.scale else found
    found = _within_bounds(found, spec) if spec.power_of_two else found
    if not (found.scale > 0 and found.grid.is_held):
        raise InputError(
            f"no {spec.bits}-bit grid for tensor {observed.name!r} lies inside [{spec.lower:g}, {spec.upper:g}]",
            remedy="keep the node that makes it in float",
        )
    return found


def _of_range(lo: float, hi: float, spec: ActivationSpec) -> Quantizer:
    scale, zero_point = grids(np.array([lo]), np.array([hi]), spec)
    return Quantizer(spec.grid, float(scale[0]), spec.grid.low + int(zero_point[0]))


def _within_bounds(found: Quantizer, spec: ActivationSpec) -> Quantizer:
    """Return a quantizer whose scale the bounds had no say in, with the codes between them alone."""
    lowest, highest = (found.zero_point + bound / found.scale for bound in (spec.lower, spec.upper))
    low, high = max(found.grid.low, lowest), min(found.grid.high, highest)
    return replace(found, grid=replace(found.grid, low=math.ceil(low), high=math.floor(high)))


def grids(lo: Reals, hi: Reals, spec: ActivationSpec) -> tuple[Reals, NDArray[np.int64]]:
    """Return scale (float32 values) and zero point of the grids for ranges [lo, hi], arrays of one shape.

    The zero point counts from the lowest code. Without constraints: scale = (hi - lo) / steps, zero_point =
    rint(-lo / scale). A constraint may force another zero point; then the scale grows until no value of the range errs
    by more than half a step, as far as the bounds allow. The scale is 0 where no grid obeys the bounds. A power of two
    is the next one above what the range asks for; it has nothing to do with the bounds.
    """
    steps = float(spec.grid.steps)
    lower, upper = -float32_below(-spec.lower), float32_below(spec.upper)
    lo, hi = np.clip(lo, lower, 0), np.clip(hi, 0, upper)
    constant = hi == lo  # all zeros: a scale of 1, or what fits
    hi = np.where(constant, min(steps, upper), hi)
    lo = np.where(constant & (hi == 0), max(-steps, lower), lo)
    scale = np.maximum((hi - lo) / steps, LEAST_SCALE)
    if spec.power_of_two:
        scale = power_above(scale)
        lower, upper = -np.inf, np.inf

    stride = 2 if spec.even_zero_point else 1
    below = np.floor(-lo / scale / stride) * stride
    # Where nothing above 0 is allowed, or less than any scale, the highest code is 0.
    highest = np.full_like(below, steps) if upper < LEAST_SCALE else below
    zero_point = np.clip(np.stack([below, below + stride, highest]), 0, steps - steps % stride)
    if spec.symmetric:
        zero_point = np.full_like(zero_point[:1], spec.grid.middle - spec.grid.low)
    above = steps - zero_point
    scale = np.maximum(scale, np.maximum(-lo / (zero_point + 0.5), hi / (above + 0.5)))
    if spec.power_of_two:
        scale = power_above(scale)
    scale = np.minimum(scale, np.minimum(quotient(-lower, zero_point), quotient(upper, above)))
    rounded = scale.astype(np.float32).astype(np.float64)
    outside = (rounded * zero_point > -lower) | (rounded * above > upper)
    scale = np.where(outside, np.nextafter(rounded.astype(np.float32), np.float32(0)), rounded)

    worst = np.maximum(scale / 2, np.maximum(hi - above * scale, -lo - zero_point * scale))
    best = np.argmin(np.where(scale > 0, worst, np.inf), axis=0)[None]
    return (
        np.take_along_axis(scale, best, 0)[0],
        np.take_along_axis(zero_point, best, 0)[0].astype(np.int64),
    )


def float32_below(bound: float) -> float:
    """Return the largest float32 value that is not above `bound`."""
    rounded = np.float32(bound)
    return float(rounded if float(rounded) <= bound else np.nextafter(rounded, np.float32(-np.inf)))


def quotient(bound: float, steps: Reals) -> Reals:
    """Return the largest scale at which `steps` steps stay within `bound`: bound / steps, any float32 at 0 steps."""
    unlimited = np.full_like(steps, np.finfo(np.float32).max)
    return np.minimum(np.divide(bound, steps, out=unlimited.copy(), where=steps > 0), unlimited)


@dataclass(frozen=True)
class Distribution:
    """A histogram within bounds: what lay beyond a bound counts as the bound; lo <= 0 <= hi.

    `counts` float64 [2 * BINS] of the values that are not 0, `size` the number of all values.
    """

    lo: float
    hi: float
    width: float
    size: int
    counts: Reals = field(repr=False)

    @classmethod
    def inside(cls, histogram: Histogram, least: float, most: float) -> Distribution:
        """Clip the values of a histogram to the bounds `least` and `most`."""
        lo, hi = np.clip([histogram.lo, histogram.hi], least, most)
        counts: Reals = histogram.counts.astype(np.float64)
        if least >= 0:
            counts[:BINS] = 0
        if most <= 0:
            counts[BINS:] = 0
        first, last = np.floor(np.array([lo, hi]) / histogram.width) + BINS
        target = np.clip(np.arange(2 * BINS), first, last).astype(np.intp)
        counts = np.bincount(target, counts, minlength=2 * BINS).astype(np.float64)
        return cls(min(lo, 0.0), max(hi, 0.0), histogram.width, histogram.count, counts)

    @property
    def positive(self) -> Reals:
        """Counts above 0, from zero outwards."""
        return self.counts[BINS:]

    @property
    def negative(self) -> Reals:
        """Counts below 0, from zero outwards."""
        return self.counts[BINS - 1 :: -1]

    def points(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return representative values and their shares of the data: POINTS_PER_BIN per bin that is not empty."""
        inside = np.arange(0.5, POINTS_PER_BIN) / POINTS_PER_BIN
        bins = np.flatnonzero(self.counts)
        points = ((bins - BINS)[:, None] + inside) * self.width
        shares = np.repeat(self.counts[bins] / (POINTS_PER_BIN * self.size), POINTS_PER_BIN)
        return np.clip(points.reshape(-1), self.lo, self.hi).astype(np.float32), shares.astype(np.float32)


def percentile_range(values: Distribution, spec: ActivationSpec, percentile: float) -> Range:
    """Return the range that leaves (100 - percentile) % of the values outside, half at each end if both ends exist.

    Interpolates inside the bins. Fewer than one value outside means the exact minimum or maximum.
    """
    outside = values.size * (1 - percentile / 100) / (2 if values.lo < 0 < values.hi else 1)
    if outside < 1:
        return values.lo, values.hi
    lo = max(values.lo, -values.width * bins_inside(values.negative, outside))
    hi = min(values.hi, values.width * bins_inside(values.positive, outside))
    return (lo, hi) if lo < hi else (values.lo, values.hi)  # nearly all zeros: a range of nothing helps nobody


def bins_inside(counts: Reals, outside: float) -> float:
    """Return how many bins from zero outwards hold all but `outside` of the counts, a fraction in the last one."""
    cumulative = np.cumsum(counts)
    inside = cumulative[-1] - outside
    if inside <= 0:
        return 0.0
    last = int(np.searchsorted(cumulative, inside))
    return float(last + 1 - (cumulative[last] - inside) / counts[last])


def entropy_range(values: Distribution, spec: ActivationSpec, percentile: float) -> Range:
    """Return the range [-T, T], within the data's, whose quantized distribution has the least KL divergence from it.

    The search runs over |x| with the number of levels that the grid of the full range has on its longer side: all for a
    one-sided tensor, half for a symmetric one. Zeros do not take part: behind a Relu they would hide everything else.
    Below 8 bits the criterion is a poor proxy of error.
    """
    if values.lo == values.hi:
        return values.lo, values.hi
    levels = round((spec.grid.steps + 1) * max(-values.lo, values.hi) / (values.hi - values.lo))
    threshold = values.width * entropy_bins(values.positive + values.negative, levels)
    return max(values.lo, -threshold), min(values.hi, threshold)


def entropy_bins(counts: Reals, levels: int) -> int:
    """Return how many of the bins to keep when `levels` levels stand for them: the last minimiser of KL(P || Q).

    P is the data with the clipped mass in the last kept bin. Q spreads the mass of each of `levels` groups of kept bins
    evenly over the group's non-empty bins, without the clipped mass: with it nothing would penalise clipping. Where the
    last kept bin is empty but something was clipped, the divergence is infinite.

    References
    ----------
    Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    bins = int(np.flatnonzero(counts)[-1]) + 1
    if bins <= levels:
        return bins
    share = counts[:bins] / counts.sum()
    mass, filled, negentropy = (
        np.concatenate([[0.0], np.cumsum(terms)]) for terms in (share, share > 0, x_log_y(share, share))
    )
    kept = np.arange(levels, bins + 1)
    edges = kept[:, None] * np.arange(levels + 1) // levels
    group = np.diff(mass[edges])
    tail = mass[-1] - mass[kept]
    last = share[kept - 1]
    target = group.copy()
    target[:, -1] += tail
    quantized = x_log_y(target, np.divide(group, np.diff(filled[edges]), out=np.zeros_like(group), where=group > 0))
    divergence = negentropy[kept - 1] + x_log_y(last + tail, last + tail) - quantized.sum(axis=1)
    divergence += np.log(np.maximum(mass[kept], np.finfo(float).tiny))
    divergence[(last == 0) & (kept < bins)] = np.inf
    return int(kept[np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]])


def x_log_y(x: Reals, y: Reals) -> Reals:
    """Return x * log(y), 0 where y is 0."""
    return x * np.log(y, out=np.zeros_like(y), where=y > 0)


def lp_range(values: Distribution, spec: ActivationSpec, percentile: float) -> Range:
    """Return the range whose grid has the least sum of |x - xhat|**LP_POWER over the data.

    A coarse search over both ends, then two finer rounds around the best. Errors come from scale and rounded zero
    point, never from the wished range. Where at 8 bits it would cut off more than half of a range, all of it stays:
    what lies that far out is no straggler, but carries what the network needs, as the outliers of transformers do.
    """
    ends = np.array([values.lo, values.hi])
    low, high = SHRINKS, SHRINKS
    for spacing in (*REFINEMENTS, 0.0):
        pairs = np.array(np.meshgrid(low if ends[0] else [0.0], high if ends[1] else [0.0])).reshape(2, -1)
        lo, hi = pairs * ends[:, None]
        best = pairs[:, np.argmin(lp_errors(values, *grids(lo, hi, spec), spec.grid.steps))]
        low, high = np.maximum(best[:, None] + spacing * np.arange(-4, 5), 0)
    lo, hi = best * ends
    if spec.serves(8) and _held(values, lo, hi, spec) < LEAST_SHARE * (values.hi - values.lo):
        return values.lo, values.hi
    return float(lo), float(hi)


def _held(values: Distribution, lo: float, hi: float, spec: ActivationSpec) -> float:
    """Return how long the part of a wished range, or of the data's, is that its grid holds.

    Around a zero point of 0 the longer end says what the grid is, whatever the other one is.
    """
    scale, zero_point = (float(found[0]) for found in grids(np.array([lo]), np.array([hi]), spec))
    above, below = (spec.grid.steps - zero_point) * scale, zero_point * scale
    return min(above, max(hi, values.hi)) + min(below, max(-lo, -values.lo))


def lp_errors(values: Distribution, scale: Reals, zero_point: NDArray[np.int64], steps: int) -> Reals:
    """Return the mean of |x - xhat|**LP_POWER for each grid.

    Infinite where a step is smaller than a bin, for there the histogram says nothing; if that is so for all, only the
    widest grid counts. A scale of 0 is no grid.
    """
    points, weights = values.points()
    resolved = scale >= min(values.width, scale.max())
    scale = np.where(scale > 0, scale, 1)
    errors = np.empty(scale.size)
    for start in range(0, scale.size, CANDIDATES_AT_ONCE):
        some = slice(start, start + CANDIDATES_AT_ONCE)
        zero = zero_point[some, None].astype(np.float32)
        place = points / scale[some, None].astype(np.float32)
        nearest = np.rint(place)
        np.clip(nearest, -zero, np.float32(steps) - zero, out=nearest)
        np.abs(np.subtract(place, nearest, out=place), out=place)
        errors[some] = np.power(place, np.float32(LP_POWER), out=place) @ weights * scale[some] ** LP_POWER
    return np.where(resolved, errors, np.inf)


METHODS: Final[dict[str, Callable[[Distribution, ActivationSpec, float], Range]]] = {
    "percentile": percentile_range,
    "entropy": entropy_range,
    "mse": lp_range,
}
