"""Int32 biases: the kernel's own scale, the nearest code, and room for the accumulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompile.quant.bias import LARGEST, integer_bias, with_room_for_bias
from qcompile.quant.params import WeightQuantizer, largest_code
from qcompile.quant.scales import quantize_weight

SCALES = st.floats(2.0**-60, 2.0**10, width=32)


def weight_of(values: np.ndarray, bits: int = 8) -> WeightQuantizer:
    return quantize_weight(values.astype(np.float32), bits=bits, axis=0)


@given(
    arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)),
    st.floats(2.0**-12, 1, width=32),
    st.floats(2.0**-12, 1, width=32),
)
def test_scale_is_the_float32_product_and_the_code_the_nearest(bias: np.ndarray, data: float, weight: float) -> None:
    scales = np.full(5, weight, np.float32)
    codes, scale = integer_bias(bias, data, scales)
    assert codes.dtype == np.int32 and scale.dtype == np.float32
    np.testing.assert_array_equal(scale, np.float32(data) * scales)
    error = np.abs(codes * scale.astype(np.float64) - bias)
    assert (error <= 0.5 * scale.astype(np.float64) * (1 + 1e-12)).all()  # 1e-12: float64 quotients


def test_halves_go_to_even_codes() -> None:
    codes, _ = integer_bias(np.array([0.5, 1.5, -0.5, -2.5], np.float32), 0.5, np.full(4, 2, np.float32))
    assert codes.tolist() == [0, 2, 0, -2]


def test_what_does_not_fit_saturates() -> None:
    codes, _ = integer_bias(np.array([1e30, -1e30], np.float32), 1e-6, np.full(2, 1e-6, np.float32))
    assert codes.tolist() == [2**31 - 1, -(2**31)]


@given(
    arrays(np.float32, (4, 6), elements=st.floats(-1, 1, width=32)),
    arrays(np.float32, 4, elements=st.floats(-(2.0**40), 2.0**40, width=32)),
    SCALES,
    st.sampled_from([2, 3, 4, 8]),
)
def test_room_for_any_bias(values: np.ndarray, bias: np.ndarray, data: float, bits: int) -> None:
    before = weight_of(values, bits)
    weight = with_room_for_bias(before, bias, data)
    codes, scale = integer_bias(bias, data, weight.scale)
    assert (np.abs(codes.astype(np.int64)) <= LARGEST * (1 + 2.0**-22)).all()  # the product is rounded to float32
    assert (weight.scale >= before.scale).all() and weight.codes.max() <= largest_code(bits)
    np.testing.assert_allclose(codes * scale.astype(np.float64), bias, rtol=2.0**-22, atol=0.5 * scale.max())


def test_channels_with_room_are_left_alone() -> None:
    weight = weight_of(np.random.default_rng(0).normal(size=(3, 8)))
    assert with_room_for_bias(weight, np.array([1, -2, 3], np.float32), 0.01) is weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dead_channel(bits: int) -> None:
    """Weights of 1e-12 beside a bias of 1: the channel's grid widens until the bias fits; the others keep theirs."""
    values = np.random.default_rng(bits).normal(size=(3, 8))
    values[1] *= 1e-12
    before = weight_of(values, bits)
    weight = with_room_for_bias(before, np.ones(3, np.float32), 0.01)
    codes, scale = integer_bias(np.ones(3, np.float32), 0.01, weight.scale)
    np.testing.assert_array_less(np.abs(codes * scale - 1), 0.5 * scale * 1.001)  # 0.1 %: float32 products
    for channel in (0, 2):
        np.testing.assert_array_equal(weight.codes[channel], before.codes[channel])
        assert weight.scale[channel] == before.scale[channel]
    assert weight.scale[1] > before.scale[1]
    # What the weights are off now is nothing beside the bias: a step of the wider grid times the largest input, 255.
    assert np.abs(weight.dequantize()[1] - values[1]).max() * 0.01 * 255 * 8 < 1e-5


def test_weights_are_rounded_to_the_wider_grid() -> None:
    before = weight_of(np.array([[4.0, -3.0, 1.0, 0.0]]) * 1e-9)
    weight = with_room_for_bias(before, np.array([10.0], np.float32), 0.5)
    assert weight.scale[0] > before.scale[0]
    error = np.abs(weight.dequantize() - before.dequantize())
    assert (error <= 0.5 * weight.scale[0] * (1 + 1e-6)).all()


def test_scaling_along_another_axis() -> None:
    values = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    values[:, 0] *= 1e-12
    weight = with_room_for_bias(quantize_weight(values, bits=8, axis=1), np.ones(2, np.float32), 0.01)
    codes, scale = integer_bias(np.ones(2, np.float32), 0.01, weight.scale)
    np.testing.assert_array_less(np.abs(codes * scale - 1), 0.5 * scale * 1.001)
