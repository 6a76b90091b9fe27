from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.calibration.observers import BINS, Histogram, MinMax
from qcompile.calibration.ranges import Distribution, choose, entropy_bins
from qcompile.config import CalibrationMethod
from qcompile.errors import InputError
from qcompile.quant.arithmetic import dequantize, fake_quantize
from qcompile.quant.grid import unsigned
from qcompile.quant.params import ActivationSpec, Quantizer

METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)
BITS = range(2, 9)
LP_POWER = 2.4  # that of the papers, written once more: the search is judged by it
NUMBERS = st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**20, width=32), st.floats(-(2.0**20), -(2.0**-20), width=32))
BOUNDS = [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-0.5, 6.0), (-math.inf, 3.0), (-0.1, 0.3), (-3.0, 0.001)]


def observed(values: NDArray[np.float32] | list[float]) -> Histogram:
    histogram = Histogram("x")
    histogram.update(np.asarray(values, np.float32))
    return histogram


def grid(quantizer: Quantizer) -> NDArray[np.float32]:
    """Every real value of a quantizer, in the arithmetic of the emitted file."""
    return dequantize(np.arange(quantizer.grid.high + 1, dtype=np.uint8), quantizer)


def lp_error(values: NDArray[np.float32], quantizer: Quantizer) -> float:
    error = np.abs(fake_quantize(values, quantizer).astype(np.float64) - values)
    return float(np.mean(error**LP_POWER))


def worst_error(values: NDArray[np.float32], quantizer: Quantizer) -> float:
    return float(np.abs(fake_quantize(values, quantizer).astype(np.float64) - values).max())


def samples(kind: str, size: int = 20_000) -> NDArray[np.float32]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(size)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "laplace": rng.laplace(size=size),
        "swish": 3 * normal / (1 + np.exp(-3 * normal)),
        "uniform": rng.uniform(-1, 3, size),
        "negative": -np.abs(normal),
        "outlier": np.append(normal, 40),
    }[kind].astype(np.float32)


KINDS = ["normal", "relu", "laplace", "swish", "uniform", "negative", "outlier"]


# Constraints


@settings(max_examples=300)
@given(
    st.lists(NUMBERS, min_size=1, max_size=30),
    st.sampled_from(BITS),
    st.sampled_from(METHODS),
    st.sampled_from([(-math.inf, math.inf), *BOUNDS]),
    st.booleans(),
)
def test_every_quantizer_obeys_its_spec(
    values: list[float], bits: int, method: CalibrationMethod, bounds: tuple[float, float], even: bool
) -> None:
    spec = ActivationSpec(unsigned(bits), *bounds, even_zero_point=even)
    quantizer = choose(observed(values), spec, method, 99.0)
    assert quantizer.bits == bits
    assert 0 <= quantizer.zero_point <= quantizer.grid.high
    assert quantizer.scale > 0 and quantizer.scale == float(np.float32(quantizer.scale))
    assert not (even and quantizer.zero_point % 2)
    real = grid(quantizer)
    assert real[quantizer.zero_point] == 0
    assert np.float32(bounds[0]) <= real[0] and real[-1] <= np.float32(bounds[1])
    assert bounds[0] <= quantizer.low and quantizer.high <= bounds[1]


@given(
    st.floats(-1e6, 0),
    st.floats(0, 1e6),
    st.sampled_from(BITS),
    st.booleans(),
    st.lists(NUMBERS, min_size=1, max_size=9),
)
@example(-5.960464477539063e-08, 0.0, 3, False, [0.0])
@example(-1.0, 1.401298464324817e-45, 3, False, [0.0, -1.0])
def test_any_bounds_hold(lower: float, upper: float, bits: int, even: bool, values: list[float]) -> None:
    assume(upper > 1e-20 or lower < -1e-20)
    assume(upper > 1e-20 or not even)  # an all-negative grid has an odd zero point
    quantizer = choose(observed(values), ActivationSpec(unsigned(bits), lower, upper, even), "max")
    real = grid(quantizer).astype(np.float64)
    assert lower <= real[0] and real[-1] <= upper


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", METHODS)
def test_an_absorbed_relu_has_zero_point_0_wherever_it_is_observed(method: CalibrationMethod, bits: int) -> None:
    before = 4 * samples("normal") + 2
    spec = ActivationSpec(unsigned(bits), 0.0, 6.0)
    from_before = choose(observed(before), spec, method)
    assert from_before.zero_point == 0 and from_before.high <= 6
    from_behind = choose(observed(np.clip(before, 0, 6)), spec, method)
    assert from_before.scale == pytest.approx(from_behind.scale, rel=0.01)  # the reach, so the bins, may differ


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("even", [False, True])
def test_max_errs_by_at_most_half_a_step_and_wastes_no_step(kind: str, bits: int, even: bool) -> None:
    values = samples(kind)
    quantizer = choose(observed(values), ActivationSpec(unsigned(bits), even_zero_point=even), "max")
    assert worst_error(values, quantizer) <= quantizer.scale / 2 * (1 + 1e-4)  # float32 division
    lo, hi = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    least = (hi - lo) / quantizer.grid.high
    if not even:
        assert quantizer.scale == np.float32(least)
        assert quantizer.zero_point == round(-lo / least)
    allowed = [
        max(least, -lo / (zero + 0.5), hi / (quantizer.grid.high - zero + 0.5))
        for zero in range(0, quantizer.grid.high + 1, 1 + even)
    ]
    assert quantizer.scale <= min(allowed) * (1 + 1e-6)  # float32 rounding: no other zero point does better


@settings(max_examples=200)
@given(st.sampled_from(BOUNDS), st.sampled_from(BITS), st.booleans(), st.floats(0.05, 1), st.floats(0.05, 1))
def test_bounds_cost_no_more_than_they_must(
    bounds: tuple[float, float], bits: int, even: bool, low: float, high: float
) -> None:
    ends = [bound if math.isfinite(bound) else math.copysign(10, bound) for bound in bounds]
    data = np.array([low * ends[0], high * ends[1]], np.float32)
    quantizer = choose(observed(data), ActivationSpec(unsigned(bits), *bounds, even_zero_point=even), "max")
    levels = quantizer.grid.high
    best = math.inf
    for zero in range(0, levels + 1, 1 + even):
        limit = min(-bounds[0] / zero if zero else math.inf, bounds[1] / (levels - zero) if zero < levels else math.inf)
        scale = min(limit, max(-data[0] / (zero + 0.5), data[1] / (levels - zero + 0.5)))  # clips half a step, or more
        best = min(best, max(scale / 2, -data[0] - zero * scale, data[1] - (levels - zero) * scale))
    ours = max(quantizer.scale / 2, quantizer.low - data[0], data[1] - quantizer.high)
    # The scale is at least (hi - lo) / levels; clipping half a step at both ends could save one step in levels + 1.
    assert ours <= best * (levels + 1) / levels * (1 + 1e-5)  # float32


def test_fixed_quantizers_are_left_alone() -> None:
    fixed = Quantizer(unsigned(8), 1 / 256, 0)
    assert choose(MinMax("x"), ActivationSpec(unsigned(8), fixed=fixed), "mse") is fixed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), *BOUNDS])
def test_a_constant_zero_tensor_gets_a_sane_scale(method: CalibrationMethod, bounds: tuple[float, float]) -> None:
    quantizer = choose(observed(np.zeros(10)), ActivationSpec(unsigned(4), *bounds), method)
    assert quantizer.zero_point == 0
    assert quantizer.scale == pytest.approx(min(1, bounds[1] / 15), rel=1e-6)  # float32


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_without_values_is_an_error(method: CalibrationMethod) -> None:
    with pytest.raises(InputError, match="'x'"):
        choose(Histogram("x"), ActivationSpec(unsigned(8)), method)


@pytest.mark.parametrize("method", METHODS)
def test_bounds_that_leave_no_grid_are_an_error(method: CalibrationMethod) -> None:
    for spec in (ActivationSpec(unsigned(4), 0.0, 0.0), ActivationSpec(unsigned(4), -1.0, 0.0, even_zero_point=True)):
        with pytest.raises(InputError, match="no 4-bit grid for tensor 'x'"):
            choose(observed([-1, 0.5]), spec, method)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", METHODS)
def test_a_clip_far_inside_the_observed_range_is_filled(method: CalibrationMethod, bits: int) -> None:
    values = 500 * samples("normal")  # a bin is 1 wide: coarser than the steps of 6 / 255
    quantizer = choose(observed(values), ActivationSpec(unsigned(bits), 0.0, 6.0), method)
    assert 5 < quantizer.high <= 6


def test_max_needs_no_histogram() -> None:
    observer = MinMax("x")
    observer.update(np.array([-1, 2], np.float32))
    assert choose(observer, ActivationSpec(unsigned(2)), "max") == Quantizer(unsigned(2), 1.0, 1)


# Percentile


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [90, 99, 99.9, 99.99])
def test_percentile_is_numpy_s_within_a_bin(kind: str, percentile: float) -> None:
    values = samples(kind, 19_997)  # so that no percentile falls exactly between two values
    histogram = observed(values)
    quantizer = choose(histogram, ActivationSpec(unsigned(8)), "percentile", percentile)
    two_sided = values.min() < 0 < values.max()
    miss = (100 - percentile) / (2 if two_sided else 1)
    exact = np.percentile(values.astype(np.float64), [miss, 100 - miss], method="inverted_cdf")
    lo = exact[0] if values.min() < 0 else 0.0
    hi = exact[1] if values.max() > 0 else 0.0
    if values.size * miss / 100 < 1:
        lo, hi = min(values.min(), 0), max(values.max(), 0)
    assert quantizer.low == pytest.approx(lo, abs=histogram.width + quantizer.scale / 2)  # zero point is rounded
    assert quantizer.high == pytest.approx(hi, abs=histogram.width + quantizer.scale / 2)
    assert quantizer.scale * 255 == pytest.approx(hi - lo, abs=2 * histogram.width)


def test_percentile_interpolates_inside_the_bin() -> None:
    values = np.concatenate([np.full(1, 2047.0), np.linspace(0.001, 0.999, 1000)])  # reach 2048: all but one in a bin
    quantizer = choose(observed(values), ActivationSpec(unsigned(8), 0.0), "percentile", 75)
    assert quantizer.high == pytest.approx(0.75, abs=0.01)


def test_percentile_falls_back_to_max_where_less_than_one_value_may_stay_outside() -> None:
    values = np.append(np.linspace(0, 1, 999), 100)
    assert choose(observed(values), ActivationSpec(unsigned(8)), "percentile", 99.99).high == pytest.approx(
        100, rel=1e-6
    )
    assert choose(observed(values), ActivationSpec(unsigned(8)), "percentile", 99).high < 1


def test_percentile_of_a_tensor_that_is_nearly_always_zero_keeps_its_range() -> None:
    values = np.append(np.zeros(100_000), [1.0, 5.0])
    assert choose(observed(values), ActivationSpec(unsigned(8)), "percentile", 99.9).high == pytest.approx(5, rel=1e-6)


# Entropy


def entropy_by_loops(counts: list[float], levels: int) -> int:
    """The algorithm of the TensorRT talk as it is told: candidate by candidate, group by group, bin by bin."""
    total, best, winner = sum(counts), math.inf, len(counts)
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept]
        tail = total - sum(p)
        p[-1] += tail
        q = [0.0] * kept
        for level in range(levels):
            group = range(kept * level // levels, kept * (level + 1) // levels)
            filled = [index for index in group if counts[index] > 0]
            for index in filled:
                q[index] = sum(counts[i] for i in group) / len(filled)
        divergence = 0.0
        for a, b in zip(p, q):
            if a > 0:
                divergence += a / total * math.log(a / total / (b / sum(q))) if b > 0 else math.inf
        if divergence <= best + 1e-12:
            best, winner = min(best, divergence), kept
    return winner


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.sampled_from([2, 3, 4, 8, 16]))
def test_entropy_equals_the_loops(counts: list[int], levels: int) -> None:
    assume(counts[-1] > 0)
    expected = entropy_by_loops([float(count) for count in counts], levels) if len(counts) > levels else len(counts)
    assert entropy_bins(np.array(counts, np.float64), levels) == expected


def test_entropy_does_not_collapse() -> None:
    """Adding the clipped mass to Q as well makes the smallest candidate win: 128 of 2048 bins, here 0.75."""
    rng = np.random.default_rng(0)
    values = np.minimum(np.abs(rng.normal(0, 2.4, 1_000_000)), 12).astype(np.float32)
    counts, _ = np.histogram(values, BINS, (0, 12))
    threshold = entropy_bins(counts.astype(np.float64), 128) * 12 / BINS
    assert 8 < threshold <= 12


@pytest.mark.parametrize("kind", ["relu", "normal", "laplace", "outlier"])
def test_entropy_keeps_the_bulk_and_costs_little_error_at_8_bits(kind: str) -> None:
    values = samples(kind, 200_000)
    quantizer = choose(observed(values), ActivationSpec(unsigned(8)), "entropy")
    best = choose(observed(values), ActivationSpec(unsigned(8)), "mse")
    assert lp_error(values, quantizer) < 2 * lp_error(values, best)  # a collapse costs orders of magnitude


def test_zeros_of_a_relu_do_not_move_the_entropy_threshold() -> None:
    values = samples("relu", 100_000)
    spec = ActivationSpec(unsigned(8))
    assert choose(observed(values), spec, "entropy") == choose(observed(values[values > 0]), spec, "entropy")


# L_p


def exhaustive_lp_error(values: NDArray[np.float32], spec: ActivationSpec) -> float:
    """Every zero point times 100 ranges, as QDrop's MSEObserver searches."""
    levels = (1 << spec.bits) - 1
    lo, hi = min(float(values.min()), 0), max(float(values.max()), 0)
    zeros = [0] if lo == 0 else [levels] if hi == 0 else range(0, levels + 1, 1 + spec.even_zero_point)
    return min(
        lp_error(values, Quantizer(unsigned(spec.bits), float(np.float32((hi - lo) / levels * i / 100)), zero))
        for zero in zeros
        for i in range(1, 101)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("even", [False, True])
def test_mse_is_as_good_as_the_exhaustive_search(kind: str, bits: int, even: bool) -> None:
    values = samples(kind, 3000)
    if even and values.max() <= 0:
        pytest.skip("the exhaustive search over a one-sided grid knows no even zero point")
    spec = ActivationSpec(unsigned(bits), even_zero_point=even)
    ours = lp_error(values, choose(observed(values), spec, "mse"))
    assert ours <= 1.02 * exhaustive_lp_error(values, spec)  # bins of the histogram, spacing of both searches


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_mse_errs_least_of_all_methods(kind: str, bits: int) -> None:
    values = samples(kind)
    errors = {
        method: lp_error(values, choose(observed(values), ActivationSpec(unsigned(bits)), method)) for method in METHODS
    }
    assert errors["mse"] <= 1.02 * min(errors.values())  # bins


def test_mse_survives_an_outlier() -> None:
    values = np.append(samples("relu", 1_000_000), np.float32(60))
    quantizer = choose(observed(values), ActivationSpec(unsigned(4)), "mse")
    assert quantizer.high < 12


def test_distribution_counts_what_lies_beyond_a_bound_as_the_bound() -> None:
    inside = Distribution.inside(observed([-2, -0.5, 0, 1, 5, 7]), -1.0, 6.0)
    assert (inside.lo, inside.hi, inside.size) == (-1, 6, 6)
    points, shares = inside.points()
    for value in (-1, -0.5, 1, 5, 6):
        assert shares[np.abs(points - value) <= inside.width].sum() == pytest.approx(1 / 6)
    relu = Distribution.inside(observed([-2, -0.5, 0, 1]), 0.0, np.inf)
    assert relu.negative.sum() == 0 and relu.positive.sum() == 1 and relu.size == 4


@pytest.mark.parametrize("method", ["max", "mse", "percentile", "entropy"])
def test_levels_are_for_values_that_readers_tell_apart(method: str) -> None:
    """What lies beyond counts as the end, and other than a bound of the spec that does not limit the grid."""
    values = np.random.default_rng(0).normal(-4, 6, 4000)
    everything = choose(observed(values), ActivationSpec(unsigned(8)), method, 99.99)
    within = choose(observed(values), ActivationSpec(unsigned(8)), method, 99.99, (-3.0, np.inf))
    assert everything.low < -15 and -3 - within.scale <= within.low <= -3 + within.scale
    assert within.high < 1.1 * values.max() and within.scale < 0.7 * everything.scale


def test_at_8_bits_squared_errors_cut_off_stragglers_and_no_outliers() -> None:
    random = np.random.default_rng(0)
    stragglers, outliers = (np.append(random.normal(0, 1, 4_000_000), [far, -far]) for far in (7, 12))
    assert choose(observed(stragglers), ActivationSpec(unsigned(8)), "mse").high < 6
    assert choose(observed(outliers), ActivationSpec(unsigned(8)), "mse").high == pytest.approx(12, rel=0.01)
    assert choose(observed(outliers), ActivationSpec(unsigned(4)), "mse").high < 6, "below 8 bits as before"
