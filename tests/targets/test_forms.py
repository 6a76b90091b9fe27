"""The form of every operator on its target, and the reasons against it."""

from __future__ import annotations

import pytest
from networks import network
from single_nodes import node_of

from qcompile.ir.prepare import prepare
from qcompile.quant.plan import Form
from qcompile.targets.forms import CHECKS, integer_form
from qcompile.targets.schema import Target

TARGET = Target.load("ort-cpu")

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
    assert CHECKS.keys() | TARGET.checks.keys() <= declined
