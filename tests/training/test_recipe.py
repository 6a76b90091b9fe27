from __future__ import annotations

import numpy as np
import pytest

from qcompile.training.recipe import (
    FIRST_EXPONENT,
    FIRST_STRETCH,
    LAST_EXPONENT,
    LAST_STRETCH,
    RATES,
    STRENGTH,
    ParameterKind,
    draw_mask,
    settings_at,
)


def test_scales_fall_to_nothing_and_rounding_keeps_its_rate() -> None:
    start, end = settings_at(0.0), settings_at(1.0)
    assert start.rates == RATES
    assert end.rates[ParameterKind.ROUNDING] == RATES[ParameterKind.ROUNDING]
    assert max(rate for kind, rate in end.rates.items() if kind is not ParameterKind.ROUNDING) == pytest.approx(
        0, abs=1e-12
    )


def test_regulariser_begins_after_the_warm_up_and_hardens() -> None:
    assert settings_at(0.19).strength == 0 and settings_at(0.2).strength == STRENGTH
    assert settings_at(0.2).exponent == FIRST_EXPONENT and settings_at(1.0).exponent == LAST_EXPONENT
    assert settings_at(0.6).exponent == pytest.approx((FIRST_EXPONENT + LAST_EXPONENT) / 2)


def test_rounding_hardens() -> None:
    found = [settings_at(progress).stretch for progress in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert found[0] == FIRST_STRETCH and found[-1] == pytest.approx(LAST_STRETCH)
    assert found == sorted(found)


@pytest.mark.parametrize("shape", [(3,), (2, 5, 7), (1, 1)])
def test_masks_have_their_shape_and_share(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    assert draw_mask(random, shape, 1.0).all() and draw_mask(random, shape, 1.0).shape == shape
    for share in (0.25, 0.5, 0.75):
        found = np.mean([draw_mask(random, shape, share).mean() for _ in range(2000)])
        assert found == pytest.approx(share, abs=0.05)  # four standard errors of the smallest mask


def test_masks_are_reproducible_by_seed() -> None:
    one, two = (draw_mask(np.random.default_rng(3), (4, 9), 0.5) for _ in range(2))
    np.testing.assert_array_equal(one, two)
