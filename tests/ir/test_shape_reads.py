"""Shape arithmetic that reads the shapes of inputs instead of those of inner tensors, where both are proven equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from qcompile.ir import Graph
from qcompile.ir.load import to_graph, to_model
from qcompile.ir.prepare import prepare
from qcompile.ir.shape_reads import read_shapes_of_inputs
from qcompile.runtime.session import Session

Build = Callable[..., ModelProto]
HEAD = "g (float[N,S,4] x, float[N,S] m, float[4,6] W) => (float[A,B,C] y) <int64[1] first = {0}, int64 one = {1}, \
  int64[2] both = {0,1}, int64[1] rest = {-1}, int64[1] three = {3}, float[1,1,6] K = {1,2,3,4,5,6}>"

# what is read, and the nodes that read the shapes of x or m in its place
READS = {
    "one size": ("s = Shape(h) n = Gather(s, first) t = Concat<axis = 0>(n, rest, three) y = Reshape(h, t)",
                 "Gather Concat MatMul Relu Reshape Shape"),
    "a size as a scalar": ("s = Shape(h) n = Gather(s, one) u = Unsqueeze(n, first)"
                           "t = Concat<axis = 0>(u, rest, three) y = Reshape(h, t)",
                           "Gather Concat MatMul Relu Reshape Shape Unsqueeze"),
    "two sizes": ("s = Shape(h) n = Gather(s, both) t = Concat<axis = 0>(n, rest) y = Reshape(h, t)",
                  "Gather Concat MatMul Relu Reshape Shape"),
    "a slice": ("s = Shape(h) n = Slice(s, first, rest) t = Concat<axis = 0>(n, rest) y = Reshape(h, t)",
                "Gather Concat MatMul Relu Reshape Shape"),
    "the shape of another input's result": ("c = Neg(m) s = Shape(c) n = Gather(s, first)"
                                            "t = Concat<axis = 0>(n, rest, three) y = Reshape(h, t)",
                                            "Gather Concat MatMul Relu Reshape Shape"),
}  # fmt: skip


def outputs(model: ModelProto, rows: int, tokens: int) -> Any:
    random = np.random.default_rng(0)
    feeds = {"x": random.normal(size=(rows, tokens, 4)), "m": random.normal(size=(rows, tokens))}
    return Session(model, threads=1).run({name: array.astype(np.float32) for name, array in feeds.items()})["y"]


def readers(graph: Graph) -> set[str]:
    return {node.inputs[0].name for node in graph.nodes if node.op == "Shape"}


@pytest.mark.parametrize("name", READS)
def test_the_shape_of_an_input_is_read(name: str, model_of: Build) -> None:
    body, expected = READS[name]
    source = model_of(f"{HEAD} {{ p = MatMul(x, W) h = Relu(p) {body} }}")
    graph = prepare(source, 18)
    assert read_shapes_of_inputs(graph) == 1
    assert readers(graph) <= {"x", "m"}
    assert sorted(node.op for node in graph.nodes) == sorted(expected.split())
    assert read_shapes_of_inputs(graph) == 0
    for rows, tokens in ((1, 3), (2, 4)):
        np.testing.assert_array_equal(outputs(to_model(graph), rows, tokens), outputs(source, rows, tokens))


@pytest.mark.parametrize(
    "body",
    [
        "u = Shape(h)",  # a number is among them
        "t = Concat<axis = 1>(h, h) s = Shape(t) n = Gather(s, one) u = Unsqueeze(n, first)",  # twice the tokens
        "c = Add(h, m3) m3 = Unsqueeze(k, rest) k = Compress<axis = 1>(m, b) b = Not(z) z = Cast<to = 9>(K6)"
        "K6 = Flatten<axis = 0>(K) s = Shape(k) n = Gather(s, one) u = Unsqueeze(n, first)",  # as many as are kept
    ],
)
def test_a_size_that_no_input_has_is_read_where_it_was(body: str, model_of: Build) -> None:
    graph = to_graph(model_of(f"{HEAD} {{ p = MatMul(x, W) h = Relu(p) {body} y = Expand(K, u) }}"))
    assert read_shapes_of_inputs(graph) == 0


def test_what_a_file_says_about_inner_tensors_is_no_proof(model_of: Build) -> None:
    """The output is said to have N rows; it has as many as are positive."""
    model = model_of(
        """g (float[N,4] x) => (float[N,4] y, int64[1] n)
          <float zero = {0}, int64[1] first = {0}, int64[1] axis = {1}> {
          m = ReduceMax<keepdims = 0>(x, axis) b = Greater(m, zero) y = Compress<axis = 0>(x, b)
          s = Shape(y) n = Gather(s, first)
        }"""
    )
    graph = prepare(model, 18)
    assert read_shapes_of_inputs(graph) == 0
    assert readers(graph) == {"y"}
