"""Which form a gradient takes, and what it does at ties and borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autodiff.cases import Case, distinct, normal
from autodiff.graphs import gradients_of, model_of, random_weights, relative_error, results

from qcompile.autodiff import NoGradientRule, gradients, record


def weight_nodes(case: Case) -> set[str]:
    """The operators between x, dy and the gradient of the weight."""
    tape = record(model_of(case, random_weights(case)))
    found = gradients(tape, {"y0": tape.value(results(case)[0].astype(np.float32))}, ["x1"])
    return {node.op_type for node in tape.assemble([found["x1"]]).graph.node}


@pytest.mark.parametrize(
    ("kernel", "attributes", "kinds"),
    [
        ([1, 1], {}, {"MatMul"}),
        ([3, 3], {"pads": [1, 1, 1, 1]}, {"MatMul", "Pad"}),
        ([3, 2], {"auto_pad": "SAME_LOWER"}, {"MatMul", "Pad"}),
        ([3, 3], {"pads": [2, 2, 2, 2], "dilations": [2, 2]}, {"MatMul", "Pad"}),
        ([3, 3], {"pads": [1, 1, 1, 1], "group": 4}, {"MatMul", "Pad"}),
        ([3, 3], {}, {"Conv"}),
        ([1, 1], {"strides": [2, 2]}, {"Conv", "Slice"}),
        ([3, 3], {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 4}, {"Conv", "Slice"}),
    ],
)
def test_form_of_a_weight_gradient(kernel: list[int], attributes: dict[str, Any], kinds: set[str]) -> None:
    group = attributes.get("group", 1)
    attributes = {"strides": [1, 1], "dilations": [1, 1], "group": 1} | attributes
    case = Case("Conv", (normal(0, [2, 4, 6, 5]), normal(1, [8, 4 // group, *kernel])), attributes)
    assert weight_nodes(case) & {"MatMul", "Conv", "Pad", "Slice"} == kinds
    weights = random_weights(case)
    found = gradients_of(case, weights)["x1"]
    expected = np.zeros_like(found)
    for index in np.ndindex(found.shape):  # y is linear in the weight, so its slope is y for a weight of one 1
        one = np.zeros_like(found)
        one[index] = 1
        expected[index] = (results(Case("Conv", (case.inputs[0], one), attributes))[0] * weights[0]).sum()
    assert relative_error(found, expected) <= 1e-5  # float32 sums of 60 terms


def test_the_first_of_equal_maxima_receives_the_gradient() -> None:
    case = Case("MaxPool", (np.zeros((1, 1, 4, 4), np.float32),), {"kernel_shape": [2, 2], "strides": [2, 2]})
    found = gradients_of(case, [np.ones((1, 1, 2, 2), np.float32)])["x0"]
    np.testing.assert_array_equal(found[0, 0], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_rows_that_a_stride_leaves_over_receive_zero() -> None:
    case = Case("AveragePool", (distinct(0, [1, 1, 5, 5]),), {"kernel_shape": [2, 2], "strides": [2, 2]})
    for symbolic in ("", "image"):
        found = gradients_of(case, [np.ones((1, 1, 2, 2), np.float32)], symbolic)["x0"]
        np.testing.assert_array_equal(found[0, 0, 4], np.zeros(5))
        np.testing.assert_array_equal(found[0, 0, :4, :4], np.full((4, 4), 0.25))


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "hangs over the border"),
        ("MaxPool", {"kernel_shape": [2, 2], "storage_order": 1}, "column order"),
    ],
)
def test_forms_without_a_rule(op: str, attributes: dict[str, Any], reason: str) -> None:
    case = Case(op, (distinct(0, [1, 1, 5, 5]),), attributes)
    with pytest.raises(NoGradientRule, match=reason):
        gradients_of(case, [np.ones((1,), np.float32)])
