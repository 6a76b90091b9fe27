"""Agreement figures against their definitions, in one piece and in batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompile.runtime.agreement import Agreement, class_axis

VALUES = st.floats(-100, 100, width=32)


@given(arrays(np.float32, (6, 5), elements=VALUES), arrays(np.float32, (6, 5), elements=VALUES), st.integers(1, 6))
def test_figures_in_batches(reference: np.ndarray, values: np.ndarray, batch: int) -> None:
    found = Agreement()
    for start in range(0, 6, batch):
        found.add(reference[start : start + batch], values[start : start + batch])
    figures = found.summary()
    one, two = reference.astype(np.float64), values.astype(np.float64)
    noise = ((one - two) ** 2).sum()
    assert found.samples == 6
    assert figures["argmax"] == pytest.approx((one.argmax(1) == two.argmax(1)).mean())
    assert figures["largest_difference"] == pytest.approx(np.abs(one - two).max())
    # 1e-9: float64 sums in another order
    if noise and one.any():
        assert figures["sqnr_db"] == pytest.approx(10 * np.log10((one**2).sum() / noise), rel=1e-9, abs=1e-9)
    if one.any() and two.any():
        norms = np.linalg.norm(one) * np.linalg.norm(two)
        assert figures["cosine"] == pytest.approx((one * two).sum() / norms, rel=1e-9, abs=1e-9)


def test_equal_outputs() -> None:
    found = Agreement()
    found.add(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    assert found.summary() == {"sqnr_db": None, "cosine": 1.0, "largest_difference": 0.0, "argmax": 1.0}


def test_zeros_do_not_divide_by_zero() -> None:
    found = Agreement()
    found.add(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert found.summary()["cosine"] == 1.0
    found.add(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert found.summary()["cosine"] == 0.0
    assert np.isfinite(found.summary()["sqnr_db"] or 0.0)


@pytest.mark.parametrize(
    "shape, axis",
    [((2, 10), 1), ((2, 7, 10), 2), ((2, 10, 4, 4), 1), ((2, 1), None), ((2, 1, 4, 4), None), ((2,), None)],
)
def test_class_axis(shape: tuple[int, ...], axis: int | None) -> None:
    assert class_axis(np.zeros(shape, np.float32)) == axis
    assert class_axis(np.zeros(shape, np.int64)) is None
