"""Affine correction: slope and shift are recovered exactly, degenerate channels are left alone, codes are numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.calibration.affine import PLACES, SLOPES, AffineKernels, JudgedFit, Places
from qcompile.quant.arithmetic import quantize
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer

SHAPE = (6, 3, 20)  # samples, channels, positions


@pytest.fixture(scope="module")
def kernels() -> AffineKernels:
    return AffineKernels(threads=1)


def fitted(kernels: AffineKernels, f: np.ndarray, q: np.ndarray, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return looked(kernels, f, q, parts).whole.solve()


def looked(
    kernels: AffineKernels, f: np.ndarray, q: np.ndarray, parts: int = 1, behind: Quantizer | None = None
) -> JudgedFit:
    fit = JudgedFit(behind)
    for some in np.array_split(np.arange(len(f)), parts):
        kernels.look(f[some].astype(np.float32), q[some].astype(np.float32), len(some), fit)
    return fit


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


@pytest.mark.parametrize("parts", [1, 3, 6])
def test_every_fourth_sample_judges_a_fit_to_the_others(parts: int, kernels: AffineKernels) -> None:
    """Where all positions have the same energy: the mean square of what each correction leaves on those samples."""
    random = np.random.default_rng(0)
    q = random.normal(1, 2, (12, 3, 20))
    f = np.sign(q)  # of every position the energy is that of three ones
    fit = looked(kernels, f, q, parts)
    judges = np.arange(12) % 4 == 3
    slope, shift = looked(kernels, f[~judges], q[~judges]).whole.solve()
    judge = Places.of(fit.judging)
    for found, left in (
        (judge.errors(np.ones(3), np.zeros(3)), (f - q)[judges]),
        (judge.errors(*fit.trial.solve()), (f - slope[:, None] * q - shift[:, None])[judges]),
    ):
        np.testing.assert_allclose(found, np.square(left).mean((0, 2)), rtol=1e-4)
    result = fit.solve(3)
    np.testing.assert_allclose(result.slope, fit.whole.solve()[0])
    expected = np.square(f - slope[:, None] * q - shift[:, None])[judges].sum() / np.square(f - q)[judges].sum()
    assert result.error == pytest.approx(expected, rel=1e-4) and result.error < 1


def test_a_fit_that_does_not_hold_for_others_is_refused(kernels: AffineKernels) -> None:
    """Samples that judge err in the other direction than the rest."""
    random = np.random.default_rng(0)
    f = random.normal(size=(16, 3, 50))
    q = f + np.where(np.arange(16) % 4 == 3, 0.5, -0.5)[:, None, None]
    result = looked(kernels, f, q).solve(3)
    assert result.error == 1
    assert result.slope.tolist() == [1] * 3 and result.shift.tolist() == [0] * 3


def test_a_shift_alone_where_the_slope_does_not_hold(kernels: AffineKernels) -> None:
    random = np.random.default_rng(0)
    f = random.normal(size=(16, 3, 50))
    q = f * np.where(np.arange(16) % 4 == 3, 0.8, 1.25)[:, None, None] - 1
    result = looked(kernels, f, q).solve(3)
    assert result.slope.tolist() == [1] * 3
    np.testing.assert_allclose(result.shift, (f - q).mean((0, 2)), rtol=1e-4)


@pytest.mark.parametrize("outlier, refused", [(30.0, True), (0.0, False)])
def test_the_mean_that_a_clipped_outlier_takes_along_is_not_given_to_all(
    outlier: float, refused: bool, kernels: AffineKernels
) -> None:
    """One token in eight carries a large value that its quantizer clips to a third; squared errors would be lower."""
    random = np.random.default_rng(0)
    f = random.normal(size=(16, 3, 64))
    large = outlier * (np.arange(64) % 8 == 0)
    q = f + large / 3 + 0.1 + random.normal(0, 0.05, f.shape)
    f = f + large
    result = looked(kernels, f, q).solve(3)
    assert np.square(f - q - (f - q).mean((0, 2))[:, None]).sum() < np.square(f - q).sum()
    assert (result.error == 1) == refused
    if not refused:
        np.testing.assert_allclose(result.shift, -0.1, atol=0.01)


def test_what_a_quantizer_cuts_off_does_not_count(kernels: AffineKernels) -> None:
    """Far below the range q is wrong by its own slope, which a line through all values would take over."""
    random = np.random.default_rng(0)
    f = random.normal(0, 2, (16, 3, 400)) - 30 * (np.arange(400) % 3 > 0)
    q = np.where(f < -15, 0.5 * f, f - 0.4) + random.normal(0, 0.05, f.shape)
    quantizer = Quantizer(unsigned(8), 0.05, 60)
    plain, behind = looked(kernels, f, q).solve(3), looked(kernels, f, q, behind=quantizer).solve(3)
    np.testing.assert_allclose(behind.slope, 1, atol=0.02)
    np.testing.assert_allclose(behind.shift, 0.4, atol=0.03)
    assert (plain.slope > 1.5).all()
    cut = [np.clip(found.slope[:, None] * q + found.shift[:, None], -3, 9.75) for found in (plain, behind)]
    errors = [np.square(np.clip(f, -3, 9.75) - values).mean() for values in cut]
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_behind_a_clip_at_zero_it_is_never_worse(noise: float, kernels: AffineKernels) -> None:
    random = np.random.default_rng(1)
    f = random.normal(0, 1, (16, 3, 500))
    q = 0.8 * f + 0.2 + random.normal(0, noise, f.shape)
    quantizer = Quantizer(unsigned(8), 5 / 255, 0)
    found = [looked(kernels, f, q).solve(3), looked(kernels, f, q, behind=quantizer).solve(3)]
    cut = [np.clip(item.slope[:, None] * q + item.shift[:, None], 0, 5) for item in found]
    errors = [np.square(np.clip(f, 0, 5) - values).mean() for values in cut]
    assert errors[1] < errors[0] * 1.002


@pytest.mark.parametrize("samples", [5, 300])
def test_kept_places_are_bounded(samples: int, kernels: AffineKernels) -> None:
    q = np.random.default_rng(0).normal(size=(samples, 2, 300))
    fit = looked(kernels, q + 1, q, parts=5)
    assert 0 < sum(part.f.shape[1] for part in (*fit.fitted, *fit.judging)) <= PLACES
    np.testing.assert_allclose(fit.solve(2).shift, 1, rtol=1e-5)


def test_kept_places_are_of_all_samples(kernels: AffineKernels) -> None:
    """Tokens may be folded into the batch: 200 samples of 700 rows, each of which holds its number."""
    fit = JudgedFit()
    for number in range(200):
        f = np.full((700, 2), number, np.float32)
        kernels.look(f, f, 1, fit)
    kept = np.concatenate([part.f[0] for part in (*fit.fitted, *fit.judging)]).astype(int)
    assert len(kept) <= PLACES and len(set(kept.tolist())) == 200
    assert np.bincount(kept).max() <= 4 * np.bincount(kept).min()


def test_one_sample_judges_itself(kernels: AffineKernels) -> None:
    f = np.random.default_rng(0).normal(size=(1, 3, 50))
    result = looked(kernels, f, f - 1).solve(3)
    np.testing.assert_allclose(result.shift, 1, rtol=1e-5)


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
    quantizer = Quantizer(unsigned(bits), scale, zero_point)
    y = q * slope.astype(np.float32)[:, None] + shift.astype(np.float32)[:, None]
    np.testing.assert_array_equal(kernels.apply(q, slope, shift, None), y)
    codes = kernels.apply(q, slope, shift, quantizer)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, quantize(y, quantizer))
