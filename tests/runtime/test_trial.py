"""Does a model take two samples in one run?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompile.runtime.session import Session
from qcompile.runtime.trial import refusal_to_stack


@pytest.mark.parametrize(
    ("body", "shape", "expected"),
    [
        ("y = Relu(x)", (1, 3), ""),
        (
            "one = Constant<value = int64[2] {1, 3}>() y = Reshape(x, one)",
            (1, 3),
            "it cannot run two at once: its Reshape fails",
        ),
        (
            "one = Constant<value = int64[2] {1, -1}>() y = Reshape(x, one)",
            (1, 3),
            "two at once change each other's output 'y'",
        ),
        ("m = ReduceMax<keepdims = 0>(x) y = Div(x, m)", (1, 3), "two at once change each other's output 'y'"),
        (
            "y = Transpose<perm = [1, 0]>(x)",
            (1, 1),
            "two at once change each other's output 'y'",
        ),  # [1, 2] where it was [1, 1]
        ("y = Constant<value = float[1, 2] {1, 2}>()", (1, 3), ""),  # a table is the same for every sample
        ("m = ReduceMax<keepdims = 0>(x) y = Equal(x, m)", (1, 3), "two at once change each other's output 'y'"),
        ("n = RandomNormalLike(x) y = Add(x, n)", (1, 3), ""),
        ("y = ReduceSum<keepdims = 0>(x)", (1, 3), ""),  # says nothing of single samples
        ("k = NonZero(x) y = Transpose<perm = [1, 0]>(k)", (1, 3), ""),
    ],
)
def test_refusal_to_stack(body: str, shape: tuple[int, ...], expected: str) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N, K] x) => (y) {{ {body} }}'
    pair = np.random.default_rng(0).standard_normal((2, *shape[1:])).astype(np.float32)
    found = refusal_to_stack(Session(onnx.parser.parse_model(text), threads=1), {"x": pair})
    assert found.startswith(expected) if expected else not found
