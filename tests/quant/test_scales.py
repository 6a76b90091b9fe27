from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import numpy_helper

from qcompile.errors import InputError
from qcompile.quant import scales
from qcompile.quant.grid import WEIGHTS
from qcompile.quant.params import WeightQuantizer, WeightSpec, largest_code, plain_offset
from qcompile.quant.scales import BLOCK, QUARTERS, grids, least_share, peaks, quantize_weight

BITS = range(2, 9)


def squared_errors(weight: NDArray[np.float32], quantizer: WeightQuantizer) -> NDArray[np.float64]:
    """Squared error per output channel."""
    difference = np.moveaxis(quantizer.dequantize().astype(np.float64) - weight, quantizer.axis, 0)
    return np.square(difference.reshape(len(difference), -1)).sum(axis=1)


def exhaustive(weight: NDArray[np.float32], bits: int) -> NDArray[np.float64]:
    """Least squared error per row of [C, n] over every grid and k/100 * max|w| / (largest code / 2), k = 20..120."""
    rows = weight.astype(np.float64)
    low, high = {8: (-127, 127)}.get(bits, (-(1 << bits - 1), (1 << bits - 1) - 1))
    unit = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-8) / ((high - low) / 2)
    best = np.full(len(rows), np.inf)
    for quarters, k in product(QUARTERS.get(bits, (0,)), range(20, 121)):
        step = unit * k / 100
        levels = np.clip(np.rint(rows / step - quarters / 4), low, high) + quarters / 4
        best = np.minimum(best, np.square(levels * step - rows).sum(axis=1))
    return best


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [9, 25, 64, 320, 1280])
@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform"])
def test_error_is_that_of_the_exhaustive_search(bits: int, size: int, kind: str) -> None:
    rng = np.random.default_rng(size)
    weight = {
        "normal": rng.standard_normal((64, size)),
        "laplace": rng.laplace(size=(64, size)),
        "uniform": rng.uniform(-1, 1.5, (64, size)),
    }[kind].astype(np.float32)
    ours = squared_errors(weight, quantize_weight(weight, bits=bits, axis=0))
    assert ours.sum() <= exhaustive(weight, bits).sum() * 1.005  # what the coarse steps of long rows may cost


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1, 9, 25, 256, 1280])
def test_grids_that_clip_too_much_are_never_the_best(bits: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the search leaves out change no bit of what it finds, dead channels and heavy tails included."""
    rng = np.random.default_rng(size)
    parts = (
        rng.standard_normal((16, size)),
        rng.standard_t(1.5, (16, size)),
        np.rint(2 * rng.standard_normal((16, size))),
    )
    weight = np.concatenate(parts).astype(np.float32)
    weight[:3] *= np.array([[0], [1e25], [1e-3]], np.float32)
    found = quantize_weight(weight, bits=bits, axis=0)
    monkeypatch.setattr(scales, "least_share", lambda *_: 0.0)
    expected = quantize_weight(weight, bits=bits, axis=0)
    for name in ("codes", "scale", "step", "offset"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_without_a_search_the_largest_weight_sets_the_scale() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    weight[3] = 0
    found, best = (quantize_weight(weight, bits=8, axis=0, search=search) for search in (False, True))
    expected = np.where(np.arange(16) == 3, 1, np.abs(weight).max(1) / 127)
    np.testing.assert_allclose(found.scale, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.integers(), np.rint(weight / found.scale[:, None]))
    assert 1 < squared_errors(weight, found).sum() / squared_errors(weight, best).sum() < 1.25


def test_at_8_bits_few_grids_may_be_the_best() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 9)).astype(np.float32)
    assert 0.95 < least_share(weight, peaks(weight), peaks(weight) / 127, 8) < 1


@pytest.mark.parametrize("bits", [2, 4])
def test_error_is_that_of_the_exhaustive_search_on_efficientnet_lite0(bits: int, shared_assets: Path) -> None:
    model = onnx.load(shared_assets / "models" / "efficientnet_lite0.onnx")
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for layer in ("1._depthwise", "3._depthwise", "1._project", "10._expand"):
        weight = weights[f"_blocks.{layer}_conv.weight"]
        ours = squared_errors(weight, quantize_weight(weight, bits=bits, axis=0))
        assert ours.sum() <= exhaustive(weight.reshape(len(weight), -1), bits).sum() * 1.005


@settings(max_examples=60)
@given(arrays(np.float32, (3, 2, 4), elements=st.floats(-1e4, 1e4, width=32)), st.sampled_from(BITS), st.integers(0, 2))
def test_codes_are_the_nearest_levels_of_an_int8_grid(weight: NDArray[np.float32], bits: int, axis: int) -> None:
    quantizer = quantize_weight(weight, bits=bits, axis=axis)
    channels = weight.shape[axis]
    assert quantizer.codes.shape == weight.shape and quantizer.codes.max() <= largest_code(bits)
    assert quantizer.scale.shape == quantizer.step.shape == quantizer.offset.shape == (channels,)
    assert (quantizer.scale > 0).all()
    codes = np.arange(largest_code(bits) + 1)
    lattice = quantizer.step.astype(int)[:, None] * codes + quantizer.offset.astype(int)[:, None]
    assert lattice.min() >= WEIGHTS.low and lattice.max() <= WEIGHTS.high
    assert {(int(a), int(b)) for a, b in zip(quantizer.step, quantizer.offset)} <= set(grids(bits))
    levels = lattice * quantizer.scale.astype(np.float64)[:, None]
    rows = np.moveaxis(weight, axis, 0).reshape(channels, -1, 1).astype(np.float64)
    nearest = np.abs(rows - levels[:, None]).min(axis=2)
    error = np.abs(np.moveaxis(quantizer.dequantize() - weight.astype(np.float64), axis, 0)).reshape(channels, -1)
    # float32 division moves ties; the value itself is rounded to float32 once
    np.testing.assert_allclose(error, nearest, rtol=1e-4, atol=1e-6 * max(1e-8, float(np.abs(weight).max())))


@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_zeros_is_exactly_zero_on_the_plain_grid(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    weight[1] = 0
    quantizer = quantize_weight(weight, bits=bits, axis=0)
    assert (quantizer.scale[1], quantizer.step[1], quantizer.offset[1]) == (1, 1, plain_offset(bits))
    assert not quantizer.integers()[1].any()


@pytest.mark.parametrize("bits", [2, 3])
def test_the_plain_grid_wins_ties(bits: int) -> None:
    half = 1 << bits - 1
    levels = np.tile(np.arange(-half + 1, half), 3).astype(np.float32)  # also on the grid with offset 1
    quantizer = quantize_weight(np.stack([levels, levels * np.float32(0.37)]), bits=bits, axis=0)
    assert quantizer.step.tolist() == [1, 1] and quantizer.offset.tolist() == [-half, -half]


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("quarters", QUARTERS[2])
def test_finds_the_grid_that_a_weight_lies_on(bits: int, quarters: int) -> None:
    half = 1 << bits - 1
    levels = np.tile(np.arange(-half, half) + quarters / 4, 50).astype(np.float32)
    quantizer = quantize_weight(levels[None] * np.float32(0.01), bits=bits, axis=0)
    np.testing.assert_allclose(quantizer.dequantize()[0], levels * 0.01, rtol=1e-5)  # float32 scale


def test_grids_lie_in_the_asked_order_and_reduce_to_small_integers() -> None:
    assert grids(2) == [(1, -2), (2, -5), (4, -9), (4, -7), (2, -3), (4, -5), (1, -1)]
    assert all(grids(bits) == [(1, -(1 << bits - 1))] for bits in range(4, 8))
    assert grids(8) == [(1, -127)]


def test_at_8_bits_no_weight_is_below_m127() -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (8, 1000)).astype(np.float32)
    integers = quantize_weight(weight, bits=8, axis=0).integers()
    assert (integers.min(), integers.max()) == (-127, 127)
    assert quantize_weight(-np.ones((1, 4), np.float32), bits=8, axis=0).integers().min() >= -127


def test_result_does_not_depend_on_blocks_or_layout() -> None:
    weight = np.random.default_rng(0).standard_normal((BLOCK // 100, 300)).astype(np.float32)
    whole = quantize_weight(weight, bits=3, axis=0)
    turned = quantize_weight(np.asfortranarray(weight.T), bits=3, axis=1)
    single = [quantize_weight(row[None], bits=3, axis=0) for row in weight[::100]]
    np.testing.assert_array_equal(turned.codes.T, whole.codes)
    np.testing.assert_array_equal(turned.scale, whole.scale)
    np.testing.assert_array_equal(np.concatenate([item.codes for item in single]), whole.codes[::100])


def test_dead_and_tiny_channels_keep_a_sane_scale() -> None:
    weight = np.array([[1e-30, -1e-30], [1e-9, 0], [1, 2]], np.float32)
    for bits in BITS:
        quantizer = quantize_weight(weight, bits=bits, axis=0)
        assert (quantizer.scale > 1e-10).all()
        assert np.abs(quantizer.dequantize() - weight).max(axis=1)[:2].max() <= 1e-8


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        quantize_weight(np.array([[1, bad]], np.float32), bits=4, axis=0)


def test_a_damaged_weight_as_large_as_float32_allows_has_a_grid() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    huge = weight * np.array([[1], [2.0**120], [1]], np.float32)
    expected, found = (quantize_weight(item, bits=8, axis=0) for item in (weight, huge))
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scale, expected.scale * np.array([1, 2.0**120, 1], np.float32))


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([2, 16]), st.sampled_from(BITS), st.sampled_from([0, 1]))
def test_blocks_are_quantized_like_filters_of_their_own(
    channels: int, count: int, block: int, bits: int, axis: int
) -> None:
    rows = np.random.default_rng(count).standard_normal((channels, count * block)).astype(np.float32)
    weight = rows if axis == 0 else np.ascontiguousarray(rows.T)
    found = quantize_weight(weight, bits=bits, axis=axis, spec=WeightSpec(block=block))
    alone = quantize_weight(rows.reshape(-1, block), bits=bits, axis=0)
    assert found.shared_shape == ((channels, count) if axis == 0 else (count, channels))
    assert found.channels == channels
    expected = alone.dequantize().reshape(rows.shape)
    np.testing.assert_array_equal(found.dequantize(), expected if axis == 0 else expected.T)
    np.testing.assert_array_equal(found.rows(weight), rows.reshape(-1, block) if axis == 0 else _by_group(rows, block))


def _by_group(rows: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Return the blocks of [C, K] with those of one place along K beside each other, as in a matrix [K, C]."""
    return rows.reshape(len(rows), -1, block).swapaxes(0, 1).reshape(-1, block)
