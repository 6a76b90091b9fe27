"""Operator traits: the form of every operator, the reasons against it, and which inputs carry data."""

from __future__ import annotations

import numpy as np
import pytest
from networks import network

from qcompile.ir import Graph, Node
from qcompile.ir.prepare import prepare
from qcompile.program.forms import (
    CHECKS,
    HARD_SIGMOID,
    HARD_SWISH_SLOPE,
    SHIFTED_SIGMOID,
    clip_bounds,
    data_inputs,
    dictated,
    float_bias,
    integer_form,
    operands,
    told_apart,
    weight_axis,
)
from qcompile.quant.plan import Form
from qcompile.targets.schema import Target

TARGET = Target.load("ort-cpu")
CONSTANTS = """float zero = {0}, float one = {1}, float two = {2}, float[0] nothing = {}, float[4,0] none = {},
  int64[8] p = {0,0,1,0,0,0,0,1}, int64[1] i0 = {0}, int64[1] i2 = {2}, int64[1] last = {-1}, int64[4] grow = {1,1,2,2},
  float[4] s = {1,1,2,2}, int64[3] sizes = {0,0,-1}, float[1] ones = {1}, int64[4] whole = {2,4,6,6}"""


def node_of(node: str) -> Node:
    """Return one node on x, u [2,4,6,6], rows [4,4] (float), d (double); K and the like are random weights."""
    text = f"""net (float[2,4,6,6] x, float[2,4,6,6] u, float[4,4] rows, double[2,4,6,6] d, float[4,4,1,1] weight,
      float[3,4,1,1] W, float[3] B, float[1,3] BROW, float[4,5] M, float[5,4] MT, float[5] BM, float[2,4,5] M3,
      float[1,4,1,1] K, int64[1] axes) => (y) <{CONSTANTS}> {{ y = {node} }}"""
    graph: Graph = prepare(network(text), TARGET.opset)
    return graph.nodes[0]


INTEGER = {
    "Conv(x, W)": Form.COMPUTE,
    "Conv(x, W, B)": Form.COMPUTE,
    "Gemm(rows, M)": Form.COMPUTE,
    "Gemm<transB = 1>(rows, MT, BM)": Form.COMPUTE,
    "MatMul(x, u)": Form.COMPUTE,
    "MatMul(rows, M)": Form.COMPUTE,
    "Add(x, u)": Form.ARITHMETIC,
    "Add(x, K)": Form.ARITHMETIC,
    "Mul(K, x)": Form.ARITHMETIC,
    "Concat<axis = 1>(x, u)": Form.ARITHMETIC,
    "AveragePool<kernel_shape = [2,2], pads = [1,1,1,1], count_include_pad = 1>(x)": Form.ARITHMETIC,
    "GlobalAveragePool(x)": Form.ARITHMETIC,
    "LeakyRelu(x)": Form.ARITHMETIC,
    "Sigmoid(x)": Form.ARITHMETIC,
    "HardSigmoid(x)": Form.ARITHMETIC,
    "HardSwish(x)": Form.ARITHMETIC,
    "PRelu(x, K)": Form.ARITHMETIC,
    "Relu(x)": Form.CODES,
    "Clip(x)": Form.CODES,
    "Clip(x, zero, two)": Form.CODES,
    "Reshape(x, sizes)": Form.CODES,
    "Flatten(x)": Form.CODES,
    "Transpose(x)": Form.CODES,
    "Squeeze(x, last)": Form.CODES,
    "Unsqueeze(x, last)": Form.CODES,
    "Slice(x, i0, i2)": Form.CODES,
    "Pad(x, p)": Form.CODES,
    "Pad(x, p, zero)": Form.CODES,
    'Pad<mode = "reflect">(x, p)': Form.CODES,
    "Split<num_outputs = 2>(x)": Form.CODES,
    "Gather(x, i0)": Form.CODES,
    "Tile(x, grow)": Form.CODES,
    "Expand(x, whole)": Form.CODES,
    "MaxPool<kernel_shape = [2,2], ceil_mode = 1>(x)": Form.CODES,
    "ReduceMax(x, last)": Form.CODES,
    "Resize(x, , s)": Form.CODES,
}


@pytest.mark.parametrize("node, form", INTEGER.items(), ids=INTEGER)
def test_integer_form(node: str, form: Form) -> None:
    assert integer_form(node_of(node), TARGET) == (form, "")


def test_every_operator_of_the_target_is_tested() -> None:
    tested = {node.split("(")[0].split("<")[0] for node in INTEGER}
    assert tested == TARGET.compute | TARGET.arithmetic | TARGET.codes | TARGET.clips


FLOAT = {
    "Conv(x, weight)": "its weight is not a float32 constant",
    "Conv(x, W, BROW)": "",  # one per channel in another shape
    "Conv(x, W, BM)": "its bias is not one constant per output channel",
    "Gemm<transA = 1>(rows, M)": "Gemm with transA, alpha or beta",
    "Gemm<alpha = 2.0>(rows, M)": "Gemm with transA, alpha or beta",
    "Gemm<beta = 2.0>(rows, M, BM)": "Gemm with transA, alpha or beta",
    "Gemm(rows, rows)": "its weight is not a float32 constant",
    "Gemm(rows, M, ones)": "its bias is not one constant per output channel",
    "MatMul(M3, x)": "its first operand is constant",
    "MatMul(x, M3)": "its weight is not a matrix",
    "MatMul(rows, none)": "its weight has no values",
    "Gemm(rows, none)": "its weight has no values",
    "Add(d, d)": "not float32",
    "Add(x, nothing)": "not float32",
    "Mul(d, d)": "not float32",
    "Concat<axis = 1>(x, K)": "it joins a constant",
    "AveragePool<kernel_shape = [2,2], ceil_mode = 1>(x)": "dilated or ceil_mode",
    "AveragePool<kernel_shape = [2,2], dilations = [2,1]>(x)": "dilated or ceil_mode",
    "Pad(x, p, one)": "pads with another value than zero",
    "Pad(x, p, weight)": "pads with another value than zero",
    'Resize<mode = "linear">(x, , s)': "linear Resize truncates on uint8",
    'Resize<mode = "cubic">(x, , s)': "linear Resize truncates on uint8",
    "Clip(x, one, two)": "its interval does not contain zero",
    "Clip(x, zero, zero)": "its interval does not contain zero",
    "Clip(x, weight)": "its bounds are not constant",
    "PRelu(x, weight)": "its slopes are not constant",
    "HardSigmoid<beta = 0.4>(x)": "the integer form needs beta = 0.5",
    "ReduceMax(x, axes)": "its axes are not constant",
    "Relu(d)": "not float32",
    "Relu(K)": "reads constants only",
    "Softmax(x)": "the integer kernel rounds differently from the operator",
    "Erf(x)": "no integer kernel",
    "Neg(x)": "no integer kernel",
    "custom.Conv(x, W)": "operator of the custom domain custom",
}  # fmt: skip


@pytest.mark.parametrize("node, reason", FLOAT.items(), ids=FLOAT)
def test_float_form_and_its_reason(node: str, reason: str) -> None:
    form, found = integer_form(node_of(node), TARGET)
    assert found == reason
    assert (form is Form.FLOAT) == bool(reason)


def test_max_pool_that_gives_indices() -> None:
    graph = prepare(
        network("net (float[1,4,6,6] x) => (y, z) { y, z = MaxPool<kernel_shape = [2,2]>(x) }"), TARGET.opset
    )
    assert integer_form(graph.nodes[0], TARGET) == (Form.FLOAT, "gives indices")


def test_every_check_has_a_reason_that_is_tested() -> None:
    declined = {node.split("(")[0].split("<")[0] for node, reason in FLOAT.items() if reason} | {"MaxPool"}
    assert CHECKS.keys() <= declined


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


def test_hard_sigmoid_is_an_integer_product() -> None:
    """What its zero points say: codes of clip(slope*x + 1/2, 0, 1), written with zero point 128 and read with 0."""
    assert dictated(node_of("HardSigmoid(x)")) == HARD_SIGMOID and dictated(node_of("HardSwish(x)")) is None
    x = np.linspace(-6, 6, 49)
    written = np.clip(
        np.rint(HARD_SWISH_SLOPE * x / HARD_SIGMOID.scale) + SHIFTED_SIGMOID.zero_point, 0, HARD_SIGMOID.levels
    )
    read = (written - HARD_SIGMOID.zero_point) * HARD_SIGMOID.scale
    # Half a step of rounding; at the top a whole one, for the largest code is 255/256.
    np.testing.assert_allclose(read, np.clip(x / 6 + 0.5, 0, 1), rtol=0, atol=1 / 256)


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
