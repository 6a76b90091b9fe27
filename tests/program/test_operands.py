"""What nodes read and what they do with it."""

from __future__ import annotations

import numpy as np
import pytest
from single_nodes import node_of

from qcompile.program.operands import clip_bounds, data_inputs, float_bias, operands, told_apart, weight_axis


@pytest.mark.parametrize(
    "node, bounds",
    [
        ("Relu(x)", (0, np.inf)),
        ("Clip(x)", (-np.inf, np.inf)),
        ("Clip(x, zero)", (0, np.inf)),
        ("Clip(x, , two)", (-np.inf, 2)),
        ("Clip(x, zero, ones)", (0, 1)),  # a bound of one element is a number
        ("Clip(x, weight)", None),
        ("Clip(x, B)", None),
    ],
)
def test_clip_bounds(node: str, bounds: tuple[float, float] | None) -> None:
    assert clip_bounds(node_of(node)) == bounds


@pytest.mark.parametrize(
    "node, all_operands, data",
    [
        ("Conv(x, W, B)", ["x"], ["x"]),
        ("Mul(K, x)", ["K", "x"], ["x"]),
        ("Add(x, x)", ["x", "x"], ["x", "x"]),
        ("Concat<axis = 1>(x, u, x)", ["x", "u", "x"], ["x", "u", "x"]),
        ("Resize(x, , s)", ["x"], ["x"]),
        ("Clip(x, zero, two)", ["x"], ["x"]),
    ],
)
def test_operands(node: str, all_operands: list[str], data: list[str]) -> None:
    made = node_of(node)
    assert [tensor.name for tensor in operands(made)] == all_operands
    assert [tensor.name for tensor in data_inputs(made)] == data


@pytest.mark.parametrize(
    "node, axis", [("Conv(x, W)", 0), ("Gemm(rows, M)", 1), ("Gemm<transB = 1>(rows, MT)", 0), ("MatMul(rows, M)", 1)]
)
def test_weight_axis_is_that_of_the_output_channels(node: str, axis: int) -> None:
    assert weight_axis(node_of(node)) == axis


def test_float_bias() -> None:
    assert float_bias(node_of("Conv(x, W)")) is None
    assert float_bias(node_of("MatMul(rows, M)")) is None
    assert float_bias(node_of("Conv(x, W, BROW)")).shape == (3,)
    assert float_bias(node_of("Gemm(rows, M, BM)")).dtype == np.float32


@pytest.mark.parametrize(
    ("node", "ends"),
    [
        ("HardSwish(x)", (-3, np.inf)),
        ("HardSigmoid<alpha = 0.25>(x)", (-2, 2)),
        ("Relu(x)", (0, np.inf)),
        ("Clip(x, zero, two)", (0, 2)),
        ("Sigmoid(x)", (-np.inf, np.inf)),
        ("Conv(x, W)", (-np.inf, np.inf)),
    ],
)
def test_values_that_an_operator_tells_apart(node: str, ends: tuple[float, float]) -> None:
    assert told_apart(node_of(node)) == pytest.approx(ends)
