"""Ranges whose scales are powers of two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.calibration.observers import Histogram
from qcompile.calibration.ranges import Ranges, choose
from qcompile.errors import InputError
from qcompile.quant.arithmetic import dequantize, fake_quantize
from qcompile.quant.grid import signed, unsigned
from qcompile.quant.params import ActivationSpec
from qcompile.quant.plan_check import _quantizer_problem
from qcompile.quant.powers import is_power

BOUNDS = [(-np.inf, np.inf), (0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (-0.5, 6.0), (-np.inf, 3.0), (-3.0, 0.001)]
NUMBERS = st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=20)


def observed(values: object) -> Histogram:
    histogram = Histogram("x")
    histogram.update(np.asarray(values, np.float32))
    return histogram


@given(NUMBERS, st.sampled_from(BOUNDS), st.sampled_from([2, 4, 8]), st.booleans(), st.sampled_from(["mse", "max"]))
def test_a_quantizer_has_a_power_and_stays_within_its_bounds(
    values: list[float], bounds: tuple[float, float], bits: int, symmetric: bool, method: str
) -> None:
    grid = signed(bits) if symmetric else unsigned(bits)
    spec = ActivationSpec(grid, *bounds, symmetric=symmetric, power_of_two=True)
    found = choose(observed(values), spec, method)  # type: ignore[arg-type]
    assert is_power(found.scale) and not _quantizer_problem(found, spec)
    assert found.grid.is_within(grid) and spec.lower <= found.low <= 0 <= found.high <= spec.upper
    ends = np.clip([min(values), max(values)], *bounds)
    if method == "max":  # nothing is cut off but by half a step, or by what a bound leaves beside the grid
        far = np.abs(fake_quantize(ends.astype(np.float32), found) - ends).max()
        assert far <= found.scale * (0.5 if np.isinf(bounds).all() else 1)


def test_a_clip_is_the_end_of_the_codes() -> None:
    """Relu6 has the scale 1/16 in int8: 6 is the code 96."""
    spec = ActivationSpec(signed(8).half, 0.0, 6.0, symmetric=True, power_of_two=True)
    found = choose(observed(np.linspace(0, 9, 1000)), spec, "mse")
    assert (found.scale, found.grid.low, found.grid.high) == (1 / 16, 0, 96)
    assert dequantize(np.array([96]), found) == 6


def test_the_power_is_chosen_by_error() -> None:
    """A straggler just beyond the range does not double the scale, though all 8 bits are there."""
    spec = ActivationSpec(signed(8), symmetric=True, power_of_two=True)
    values = np.append(np.random.default_rng(0).uniform(-0.98, 0.98, 10_000), 1.03)
    assert Ranges().method_for(spec) == "mse"
    assert choose(observed(values), spec, "mse").scale == 2**-7
    assert choose(observed(values), spec, "max").scale == 2**-6


def test_bounds_without_a_code_are_refused() -> None:
    spec = ActivationSpec(signed(8).half, 0.0, 1e-9, symmetric=True, power_of_two=True)
    with pytest.raises(InputError, match="no 7-bit grid for tensor 'x'"):
        choose(observed([1.0]), spec, "max")
