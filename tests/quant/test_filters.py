"""The search for short filters: against all codes of one grid, never worse than before, on the int8 lattice."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.quant.filters import LONGEST, MOST_BITS, RIDGE, better_filters, fit_filters, is_short
from qcompile.quant.grid import WEIGHTS
from qcompile.quant.params import WeightQuantizer
from qcompile.quant.scales import quantize_weight

Array = NDArray[Any]


def covariances(rng: np.random.Generator, filters: int, length: int) -> Array:
    """Return covariances of inputs that are alike, as neighbouring pixels are."""
    mixed = rng.standard_normal((filters, length, length)) + 3 * rng.standard_normal((filters, 1, length))
    return mixed.transpose(0, 2, 1) @ mixed / length + 0.01 * np.eye(length)


def ridged(covariance: Array) -> Array:
    """Return covariances with what the search adds to them."""
    length = covariance.shape[1]
    return covariance + RIDGE * np.einsum("rii->r", covariance)[:, None, None] / length * np.eye(length)


def errors(weight: Array, covariance: Array, quantized: WeightQuantizer) -> Array:
    """Return the error of each filter with the slope that correction would give it."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    codes = quantized.integers().reshape(rows.shape).astype(np.float64)
    power, match, own = (
        np.einsum("ri,rij,rj->r", a, ridged(covariance), b) for a, b in ((codes, codes), (codes, rows), (rows, rows))
    )
    return own - np.where(power > 0, np.maximum(match, 0) ** 2 / np.maximum(power, 1e-30), 0)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(2, MOST_BITS), st.sampled_from([(5, 1, 3, 3), (300, 1, 2, 2), (3, 2, 1, 5)]))
def test_never_worse_and_on_the_lattice(seed: int, bits: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    covariance = covariances(rng, shape[0], int(np.prod(shape[1:])))
    before = quantize_weight(weight, bits=bits, axis=0)
    after = fit_filters(weight, covariance, before)
    assert (errors(weight, covariance, after) <= errors(weight, covariance, before) * 1.0001 + 1e-9).all()
    lattice = after.codes.astype(int) * after.along(after.step.astype(int)) + after.along(after.offset.astype(int))
    assert lattice.min() >= WEIGHTS.low and lattice.max() <= WEIGHTS.high
    assert after.codes.max() < 1 << bits and (after.scale > 0).all() and np.isfinite(after.scale).all()
    assert (after.codes.dtype, after.scale.dtype, after.step.dtype) == (np.uint8, np.float32, np.int8)


@pytest.mark.parametrize("bits", [2, 3])
def test_close_to_the_best_of_all_codes(bits: int) -> None:
    """All codes of four weights, on every offset in quarters: the error of all filters together is within 10 %."""
    rng = np.random.default_rng(bits)
    weight = rng.standard_normal((40, 1, 2, 2)).astype(np.float32)
    covariance = covariances(rng, 40, 4)
    nearest = quantize_weight(weight, bits=bits, axis=0)
    codes = np.array(list(product(range(1 << bits), repeat=4)))
    lattice = np.concatenate([4.0 * codes + quarters for quarters in range(-4 << bits, 1)])
    best = 0.0
    for row, form in zip(weight.reshape(40, 4).astype(np.float64), ridged(covariance)):
        power, match = np.einsum("ni,ij,nj->n", lattice, form, lattice), np.maximum(lattice @ form @ row, 0)
        best += row @ form @ row - (match**2 / np.maximum(power, 1e-30)).max()
    assert errors(weight, covariance, fit_filters(weight, covariance, nearest)).sum() <= best * 1.1
    assert errors(weight, covariance, nearest).sum() > best * 2


def test_one_covariance_for_all_filters_is_that_for_each() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((300, 1, 3, 3)).astype(np.float32)
    covariance = covariances(rng, 1, 9)
    before = quantize_weight(weight, bits=3, axis=0)
    shared, own = (fit_filters(weight, form, before) for form in (covariance, np.repeat(covariance, 300, 0)))
    assert (shared.codes == own.codes).all() and (shared.scale == own.scale).all()


def test_dead_channels_stay_as_they_are() -> None:
    """No weights, or no input that varies: there is nothing to choose by."""
    weight = np.zeros((2, 1, 3, 3), np.float32)
    weight[1] = np.arange(9).reshape(3, 3)
    before = quantize_weight(weight, bits=2, axis=0)
    after = fit_filters(weight, np.stack([np.eye(9), np.zeros((9, 9))]), before)
    assert (after.integers()[0] == 0).all() and np.isfinite(after.dequantize()).all()
    assert np.abs(after.dequantize()[1] - weight[1]).max() <= np.abs(before.dequantize()[1] - weight[1]).max() * 1.5


def test_what_is_short() -> None:
    assert is_short(np.zeros((8, 1, 7, 7), np.float32))
    assert not is_short(np.zeros((8, LONGEST + 1, 1, 1), np.float32))
    assert not is_short(np.zeros((8, 4), np.float32)), "a matrix"


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_filter_is_the_one_that_errs_less_on_others(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.standard_normal((40, 1, 3, 3)).astype(np.float32)
    plain = quantize_weight(weight, bits=bits, axis=0)
    few = covariances(rng, 40, 9)
    fitted = fit_filters(weight, few, plain)
    others = covariances(rng, 40, 9)
    found, count = better_filters(weight, others, plain, fitted)
    old, new, best = (errors(weight, others, item) for item in (plain, fitted, found))
    np.testing.assert_allclose(best, np.minimum(old, new), rtol=1e-9)
    assert count == (new < old).sum() and 0 < count < 40
    for channel, better in enumerate(new < old):
        chosen = fitted if better else plain
        assert found.scale[channel] == chosen.scale[channel]
        np.testing.assert_array_equal(found.codes[channel], chosen.codes[channel])
