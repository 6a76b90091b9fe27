"""Affine correction: slope and shift are recovered exactly, degenerate channels are left alone, codes are numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.calibration.affine import SLOPES, AffineKernels, Fit
from qcompile.quant.arithmetic import quantize
from qcompile.quant.params import Quantizer

SHAPE = (6, 3, 20)  # samples, channels, positions


@pytest.fixture(scope="module")
def kernels() -> AffineKernels:
    return AffineKernels(threads=1)


def fitted(kernels: AffineKernels, f: np.ndarray, q: np.ndarray, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    fit = Fit()
    for some in np.array_split(np.arange(len(f)), parts):
        kernels.moments(f[some].astype(np.float32), q[some].astype(np.float32), fit)
    return fit.solve()


@settings(max_examples=40)
@given(
    slope=st.lists(st.floats(*SLOPES), min_size=3, max_size=3),
    shift=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    mean=st.floats(-3, 3),
    seed=st.integers(0, 2**16),
)
def test_affine_error_is_recovered(
    slope: list[float], shift: list[float], mean: float, seed: int, kernels: AffineKernels
) -> None:
    q = np.random.default_rng(seed).normal(mean, 1, SHAPE)
    f = np.array(slope)[:, None] * q + np.array(shift)[:, None]
    found, offset = fitted(kernels, f, q, parts=2)
    np.testing.assert_allclose(found, slope, rtol=1e-4)  # float32 means of squares around 10
    np.testing.assert_allclose(offset, shift, atol=1e-3)


def test_moments_are_those_of_least_squares(kernels: AffineKernels) -> None:
    """With noise between them: numpy's own line through all samples, whatever the batches."""
    random = np.random.default_rng(0)
    q = random.normal(1, 2, SHAPE)
    f = 1.2 * q - 0.3 + random.normal(0, 0.5, SHAPE)
    slope, shift = fitted(kernels, f, q, parts=4)
    for channel in range(3):
        expected = np.polyfit(q[:, channel].ravel(), f[:, channel].ravel(), 1)
        np.testing.assert_allclose([slope[channel], shift[channel]], expected, rtol=1e-4, atol=1e-4)


def test_batches_count_by_their_size(kernels: AffineKernels) -> None:
    random = np.random.default_rng(0)
    f, q = random.normal(size=(7, 2, 5)), random.normal(size=(7, 2, 5))
    one, several = fitted(kernels, f, q), fitted(kernels, f, q, parts=3)  # 3, 2 and 2 samples
    np.testing.assert_allclose(one, several, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor, bound", [(10.0, SLOPES[1]), (0.01, SLOPES[0]), (-1.0, SLOPES[0])])
def test_slope_is_clamped_and_means_still_agree(factor: float, bound: float, kernels: AffineKernels) -> None:
    q = np.random.default_rng(0).normal(3, 1, SHAPE)
    slope, shift = fitted(kernels, factor * q, q)
    assert slope.tolist() == [bound] * 3
    np.testing.assert_allclose((bound * q).mean((0, 2)) + shift, (factor * q).mean((0, 2)), rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 4.0, 1e-20, -1e6])
def test_channel_without_variance_keeps_its_slope(value: float, kernels: AffineKernels) -> None:
    q = np.full(SHAPE, value)
    f = np.random.default_rng(0).normal(size=SHAPE)
    slope, shift = fitted(kernels, f, q)
    assert slope.tolist() == [1, 1, 1]
    np.testing.assert_allclose(shift, f.mean((0, 2)) - value, rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(
    bits=st.sampled_from([2, 4, 8]),
    scale=st.floats(2.0**-6, 1, width=32),
    zero_point=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_codes_are_those_of_numpy(bits: int, scale: float, zero_point: int, seed: int, kernels: AffineKernels) -> None:
    random = np.random.default_rng(seed)
    q = random.normal(0, 2, SHAPE).astype(np.float32)
    slope, shift = random.uniform(0.5, 2, 3), random.normal(size=3)
    quantizer = Quantizer(bits, scale, zero_point)
    y = q * slope.astype(np.float32)[:, None] + shift.astype(np.float32)[:, None]
    np.testing.assert_array_equal(kernels.apply(q, slope, shift, None), y)
    codes = kernels.apply(q, slope, shift, quantizer)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, quantize(y, quantizer))
