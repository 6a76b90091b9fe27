from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.calibration.observers import BINS, CHUNK, Histogram, MinMax
from qcompile.errors import InputError

# The normal range of float32 after scaling by BINS / reach, for which merging bins is promised to be exact.
NUMBERS = st.one_of(st.just(0.0), st.floats(2.0**-40, 2.0**40, width=32), st.floats(-(2.0**40), -(2.0**-40), width=32))
BATCHES = st.lists(st.lists(NUMBERS, max_size=20), min_size=1, max_size=6)


def observed(*batches: list[float] | NDArray[np.float32]) -> Histogram:
    histogram = Histogram("x")
    for batch in batches:
        histogram.update(np.array(batch, np.float32))
    return histogram


def counted_with(reach: float, values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count non-zero values with the last reach from the start, in exact float64 arithmetic."""
    edges = np.arange(-BINS, BINS + 1) * (reach / BINS)
    bins = np.searchsorted(edges, values[values != 0].astype(np.float64), side="right") - 1
    return np.bincount(bins, minlength=2 * BINS)


@given(BATCHES)
def test_any_batching_equals_one_histogram_with_the_last_reach(batches: list[list[float]]) -> None:
    histogram = observed(*batches)
    values = np.array([value for batch in batches for value in batch], np.float32)
    assert histogram.count == values.size
    np.testing.assert_array_equal(histogram.counts, counted_with(histogram.reach, values))
    if values.size:
        assert (histogram.lo, histogram.hi) == (values.min(), values.max())


@given(BATCHES, st.data())
def test_the_order_of_updates_does_not_matter(batches: list[list[float]], data: st.DataObject) -> None:
    straight, other = observed(*batches), observed(*data.draw(st.permutations(batches)))
    np.testing.assert_array_equal(other.counts, straight.counts)
    assert (other.lo, other.hi, other.count, other.reach) == (straight.lo, straight.hi, straight.count, straight.reach)


def test_a_value_just_under_an_edge_stays_under_it() -> None:
    below, edge = np.nextafter(np.float32(0.5), np.float32(0)), np.float32(0.5)
    histogram = observed([below, edge, -below, -edge])  # reach 1
    half = BINS // 2
    assert histogram.counts[[BINS + half - 1, BINS + half]].tolist() == [1, 1]
    assert histogram.counts[[BINS - half, BINS - half - 1]].tolist() == [2, 0]  # open above: -0.5 opens its bin


def test_negative_values_that_come_late_do_not_change_the_positive_side() -> None:
    positive = np.linspace(0.001, 0.9, 1000, dtype=np.float32)
    before, after = observed(positive), observed(positive, [-0.5])
    np.testing.assert_array_equal(before.counts[BINS:], after.counts[BINS:])
    assert after.counts[:BINS].sum() == 1


def test_more_values_than_one_chunk_and_any_shape() -> None:
    values = np.random.default_rng(0).standard_normal((3, CHUNK // 2, 2)).astype(np.float32)
    histogram = observed(values[:, ::-1])  # not contiguous
    np.testing.assert_array_equal(histogram.counts, counted_with(histogram.reach, values))


def test_tiny_and_huge_values_do_not_overflow() -> None:
    histogram = observed([1e-45, -1e-45], [3e38, -3e38])
    assert histogram.counts.sum() == 4
    assert histogram.counts[[0, -1]].sum() == 0  # 3e38 is below its reach 2**128


@pytest.mark.parametrize("observer", [MinMax, Histogram])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_tensor(observer: type[MinMax], bad: float) -> None:
    with pytest.raises(InputError, match="'layer1/out'"):
        observer("layer1/out").update(np.array([1, bad, 2], np.float32))


def test_min_max_is_exact_and_streaming() -> None:
    observer = MinMax("x")
    observer.update(np.zeros(0, np.float32))
    assert observer.count == 0
    observer.update(np.array([[0.1, -3]], np.float32))
    observer.update(np.array([2.5], np.float32))
    assert (observer.lo, observer.hi, observer.count) == (-3, 2.5, 3)
