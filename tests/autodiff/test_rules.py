"""Every rule of the registry against finite differences of the ONNX reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
from autodiff.cases import Case, unary
from autodiff.graphs import feeds_of, gradients_of, random_weights, slope
from autodiff.moving_cases import CASES
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from qcompile.autodiff import RULES

STANDARD = sorted(op for domain, op in RULES if not domain)
NEEDS_CHANNELS = {"Conv", "ConvTranspose", "AveragePool", "DepthToSpace", "Resize"}
TOLERANCE = 1e-4  # float32 gradients of sums of some tens of terms


@pytest.mark.parametrize("op", STANDARD)
@given(data=st.data())
@settings(max_examples=8)
def test_gradient_is_the_slope(op: str, data: DataObject) -> None:
    """An operator that has no row in CASES is tested as a function of one float tensor."""
    check(data.draw(CASES.get(op, unary(op))), data.draw(st.sampled_from(["", "batch"])))


@pytest.mark.parametrize("op", STANDARD)
@given(data=st.data())
@settings(max_examples=4)
def test_no_size_need_be_known(op: str, data: DataObject) -> None:
    case = data.draw(CASES.get(op, unary(op)))
    assume(not case.attributes.get("auto_pad", "").startswith("SAME"))  # which depends on sizes
    check(case, "image" if op in NEEDS_CHANNELS else "all")


def check(case: Case, symbolic: str) -> None:
    weights = random_weights(case)
    found = gradients_of(case, weights, symbolic)
    feeds = feeds_of(case)
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in feeds.items()}
    random = np.random.default_rng(0)
    for _ in range(3):
        directions = {name: random.normal(size=value.shape) for name, value in feeds.items()}
        expected = slope(case, weights, directions)
        products = [(found[name] * direction).ravel() for name, direction in directions.items()]
        size = max(float(np.abs(np.concatenate(products)).sum()), 1e-2)  # what the float32 errors are relative to
        assert abs(sum(float(part.sum()) for part in products) - expected) <= TOLERANCE * size


@pytest.mark.parametrize("op", ["Sqrt", "ReduceL2"])
def test_nothing_has_the_slope_nothing(op: str) -> None:
    """A band of a spectrum in which nothing happens must not make all gradients NaN."""
    case = Case(op, (np.array([[0, 4], [0, 0]], np.float32), None)[: 1 if op == "Sqrt" else 2], {})
    found = gradients_of(case, [np.ones((2, 2) if op == "Sqrt" else (1, 1), np.float32)])
    np.testing.assert_allclose(found["x0"], [[0, 0.25 if op == "Sqrt" else 1], [0, 0]])
