"""A float graph that computes something else than its source is found, and what rounding may do is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from qcompile.ir import Graph
from qcompile.ir.prepare import prepare
from qcompile.runtime.equivalence import first_difference, relative_error
from qcompile.runtime.session import Session

Build = Callable[..., ModelProto]
NAN, INF = np.nan, np.inf

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((4, 6)).astype(np.float32)
CHAIN = """g (float[N,6] x, float[6,6] W1, float[6,6] W2, float[6,6] W3) => (float[N,6] y, float[N,6] z) {
    [a] a = MatMul(x, W1)  [r] r = Relu(a)  [b] b = MatMul(r, W2)  [n] n = Neg(b)  [s] s = Add(n, r)
    [y] y = MatMul(s, W3)  [z] z = Sigmoid(a) }"""


def compared(source: ModelProto, graph: Graph, **feeds: Any) -> tuple[str, float] | None:
    arrays = {name: np.asarray(array) for name, array in feeds.items()} or {"x": ROWS}
    return first_difference(source, graph, arrays, Session(source, threads=1).run(arrays), threads=1)


@pytest.mark.parametrize(
    ("expected", "made", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0),
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.0, 0.0], [0.0, 1e-9], 1),
        ([NAN, INF, -INF, 3.0], [NAN, INF, -INF, 3.0], 0),
        ([NAN, 3.0], [0.0, 3.0], INF),
        ([1.0, 3.0], [NAN, 3.0], INF),
        ([INF, 3.0], [-INF, 3.0], INF),
        ([[3.0, 4.0]], [3.0, 4.0], INF),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, False], 0),
        ([], [], 0),
    ],
)
def test_relative_error(expected: Any, made: Any, error: float) -> None:
    assert relative_error(np.array(expected), np.array(made)) == pytest.approx(error)


def test_an_equal_graph(model_of: Build) -> None:
    source = model_of(CHAIN)
    assert compared(source, prepare(source, 18)) is None


@pytest.mark.parametrize(
    ("node", "op"), [("a", "Identity"), ("n", "Abs"), ("s", "Sub"), ("y", "Identity"), ("z", "Tanh")]
)
def test_the_tensor_that_differs_first_is_named(node: str, op: str, model_of: Build) -> None:
    source = model_of(CHAIN)
    graph = prepare(source, 18)
    (wrong,) = (item for item in graph.nodes if item.name == node)
    wrong.op, wrong.inputs = op, wrong.inputs[: 2 if op == "Sub" else 1]
    found = compared(source, graph)
    assert found is not None and found[0] == node and found[1] > 0.1


def test_tensors_that_are_rescaled_inside_are_not_blamed(model_of: Build) -> None:
    """As equalised or rotated channels are: `a` and `r` are others, the output is not, until `n` behind is wrong."""
    source = model_of(
        CHAIN.replace(", float[N,6] z)", ")").replace("[z] z = Sigmoid(a)", "").replace("Add(n, r)", "Abs(n)")
    )
    graph = prepare(source, 18)
    nodes = {node.name: node for node in graph.nodes}
    nodes["a"].inputs[1].values = nodes["a"].inputs[1].values * 4
    nodes["b"].inputs[1].values = nodes["b"].inputs[1].values / 4
    assert compared(source, graph) is None
    nodes["n"].op, nodes["s"].op = "Relu", "Neg"
    found = compared(source, graph)
    assert found is not None and found[0] == "n"


@pytest.mark.parametrize(
    "last",
    [
        "r = RandomNormalLike(x)  y = Add(x, r)",
        "k = Constant<value = int64[1] {2}>()  v, i = TopK(t, k)  y = Cast<to=1>(i)",
        "i = ArgMax<axis=1>(t)  y = Cast<to=1>(i)",
        "y = Hardmax(t)",
    ],
)
def test_ties_and_random_numbers_are_not_blamed(last: str, model_of: Build) -> None:
    start = "one = Constant<value = float {1.0}>()  d = Div(x, x)  t = Mul(d, one)"
    source = model_of(f"g (float[N,6] x) => (float[P,Q] y) {{ {start} {last} }}")
    graph = prepare(source, 18)
    (product,) = (node for node in graph.nodes if node.op == "Mul")
    spread = np.array([1, 1 + 6e-8, 1, 1, 1 + 1.2e-7, 1], np.float32)  # as another order of sums gives
    product.inputs[1] = type(product.inputs[1])("spread", spread) if "Random" not in last else product.inputs[1]
    assert compared(source, graph) is None


def test_half_precision_is_rounded_more(model_of: Build) -> None:
    source = model_of(
        "g (float16[N,6] x, float16[6,6] W) => (float16[N,6] y) { a = MatMul(x, W) b = Exp(a) y = Log(b) }"
    )
    assert compared(source, prepare(source, 18), x=ROWS.astype(np.float16)) is None
