from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.quant.params import WeightSpec, largest_code
from qcompile.quant.scales import quantize_weight
from qcompile.training.rounding import LEANING, hardened, soft_start


def soft(variable: np.ndarray) -> np.ndarray:
    return np.clip(1.2 / (1 + np.exp(-variable.astype(np.float64))) - 0.1, 0, 1)


SPECS = [WeightSpec(), WeightSpec(power_of_two=True), WeightSpec(per_tensor=True)]


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]), st.sampled_from([0, 1]), st.sampled_from(SPECS))
def test_training_starts_at_the_float_weight_where_the_grid_has_it(
    seed: int, bits: int, axis: int, spec: WeightSpec
) -> None:
    exact = np.random.default_rng(seed).normal(0, 1, (5, 6, 3)).astype(np.float32)
    weight = quantize_weight(exact, bits=bits, axis=axis, spec=spec)
    scale, variable, base = soft_start(exact, weight)
    start = scale * (base + soft(variable))
    low, high = scale * base, scale * (base + 1)
    inside = (exact >= low) & (exact <= high)
    np.testing.assert_allclose(start[inside], exact[inside], atol=1e-5 * np.abs(exact).max())  # float32
    np.testing.assert_allclose(start, np.clip(exact, low, high), atol=1e-5 * np.abs(exact).max())


@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 8]))
def test_hard_codes_are_the_ends_that_the_variable_points_to(seed: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    exact = random.normal(0, 1, (4, 7)).astype(np.float32)
    weight = quantize_weight(exact, bits=bits, axis=0)
    scale, _, base = soft_start(exact, weight)
    decided = np.where(random.random(exact.shape) < 0.5, 20.0, -20.0)
    found = hardened(exact, weight, decided)
    assert found.codes.max() <= largest_code(bits)
    np.testing.assert_allclose(found.dequantize(), scale * (base + soft(decided)), rtol=1e-5, atol=1e-6)


def test_untrained_variables_round_to_nearest() -> None:
    exact = np.random.default_rng(0).normal(0, 1, (8, 32)).astype(np.float32)
    weight = quantize_weight(exact, bits=4, axis=0)
    _, variable, _ = soft_start(exact, weight)
    assert (hardened(exact, weight, variable).codes == weight.codes).mean() == pytest.approx(1.0, abs=0.01)  # ties


def test_a_stretched_weight_starts_stretched() -> None:
    exact = np.random.default_rng(0).normal(0, 1, (8, 32)).astype(np.float32)
    weight = quantize_weight(exact, bits=4, axis=0)
    factor = np.linspace(0.5, 2, 8, dtype=np.float32)
    scale, variable, base = soft_start(exact, weight)
    stretched, again, same_base = soft_start(exact, replace(weight, scale=weight.scale * factor))
    np.testing.assert_array_equal(again, variable)
    np.testing.assert_array_equal(same_base, base)
    np.testing.assert_allclose(stretched, scale * factor[:, None], rtol=1e-6)


def test_short_filters_start_closer_to_the_codes_that_were_fitted() -> None:
    random = np.random.default_rng(0)
    exact = random.normal(0, 1, (64, 1, 3, 3)).astype(np.float32)
    weight = quantize_weight(exact, bits=3, axis=0)
    moved = np.clip(weight.codes + random.integers(-1, 2, exact.shape), 0, 7).astype(np.uint8)
    fitted = replace(weight, codes=moved)
    scale, variable, base = soft_start(exact, fitted)
    low = np.rint(base - fitted.along(fitted.offset / fitted.step.astype(np.float32)))
    assert ((moved == low) | (moved == low + 1)).all(), "the code can be reached"
    share = LEANING * (moved - low)
    assert (soft(variable) >= share - 1e-5).all() and (soft(variable) <= share + 1 - LEANING + 1e-5).all()
    assert (hardened(exact, fitted, variable).codes == moved).all()
    assert scale.shape == (64, 1, 1, 1)
