"""Shapes: inference, tracing, and the integers computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from qcompile.ir import Constant, Graph
from qcompile.ir.load import to_graph
from qcompile.ir.prepare import prepare
from qcompile.ir.shapes import infer_shapes, known_integers, rank_of, shape_of, static_dims, trace_shapes
from qcompile.runtime.session import Session

Build = Callable[..., ModelProto]


def run(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return Session(model, threads=1).run(feeds)


def made(graph: Graph, name: str) -> Any:
    return graph.tensors()[name]


@pytest.mark.parametrize(
    ("chain", "known"),
    [
        ("r = Shape(x)", ["N", 4, "H", 8]),
        ("r = Shape<start = 1, end = -1>(x)", [4, "H"]),
        ("s = Shape(x) r = Gather<axis = 0>(s, two)", "H"),
        ("s = Shape(x) r = Gather<axis = 0>(s, pair)", [8, "N"]),
        ("s = Shape(x) r = Slice(s, one, three)", [4, "H"]),
        ("s = Shape(x) r = Slice(s, last, zero, axis, back)", [8, "H", 4]),
        ("s = Shape(x) g = Gather<axis = 0>(s, two) u = Unsqueeze(g, axis) r = Concat<axis = 0>(u, pair)", ["H", 3, 0]),
        ("s = Shape(x) g = Slice(s, one, two1) r = Squeeze(g)", 4),
        ("s = Shape(x) c = Cast<to = 6>(s) r = Cast<to = 7>(c)", ["N", 4, "H", 8]),
        ("s = Shape(x) r = Cast<to = 1>(s)", None),
        ("s = Shape(x) r = Mul(s, one)", ["N", 4, "H", 8]),
        ("s = Shape(x) r = Mul(s, three)", [None, 12, None, 24]),
        ("s = Shape(x) a = Add(s, three) r = Div(a, two1)", [None, 3, None, 5]),
        ("s = Shape(x) r = Neg(s)", None),
        ("s = Shape(x) r = Size(s)", 4),
        ("r = Size(x)", None),
    ],
)
def test_known_integers(chain: str, known: Any, model_of: Build) -> None:
    text = f"""g (float[N,4,H,8] x) => (int64[K] r) <
        int64 two = {{2}}, int64[1] two1 = {{2}}, int64[2] pair = {{3, 0}}, int64[1] one = {{1}},
        int64[1] three = {{3}},
        int64[1] last = {{-1}}, int64[1] zero = {{0}}, int64[1] axis = {{0}}, int64[1] back = {{-1}}
    > {{ {chain} }}"""
    found = known_integers(made(to_graph(model_of(text)), "r"))
    assert (None if found is None else found.tolist()) == known


def test_division_truncates_like_onnx(model_of: Build) -> None:
    graph = to_graph(model_of("g () => (int64[2] r) <int64[2] a = {-7, 7}, int64 b = {2}> { r = Div(a, b) }"))
    found = known_integers(made(graph, "r"))
    assert found is not None
    assert found.tolist() == [-3, 3]


def test_inference_fills_what_the_exporter_left_out(model_of: Build) -> None:
    graph = prepare(model_of("g (float[N,4] x, float[4,6] W) => (float[N,6] y) { a = MatMul(x, W) y = Relu(a) }"), 18)
    assert shape_of(made(graph, "a")) == ["N", 6]
    made(graph, "a").shape = None
    infer_shapes(graph)
    assert shape_of(made(graph, "a")) == ["N", 6]
    assert static_dims(made(graph, "a"), 1) == [6]
    assert static_dims(made(graph, "a")) is None


def test_inference_returns_large_constants_untouched(model_of: Build) -> None:
    graph = prepare(model_of("g (float[N,40] x, float[40,60] W) => (float[N,60] y) { y = MatMul(x, W) }"), 18)
    weight = graph.nodes[0].inputs[1]
    values = weight._values
    infer_shapes(graph)
    assert isinstance(weight, Constant)
    assert weight._values is values
    assert [tensor.name for tensor in graph.inputs] == ["x"]


UNKNOWN = """g (float[N,4] x) => (float[P,Q] y) <int64 zero = {0}> {
    s = SplitToSequence<axis = 1>(x)  a = SequenceAt(s, zero)  b = Relu(a)  y = Identity(b)
}"""


def untyped(model_of: Build) -> Graph:
    """A graph in which the rank behind a sequence is not known."""
    graph = prepare(model_of(UNKNOWN), 18)
    for name in ("a", "b"):
        made(graph, name).shape = None
    return graph


def feed(rows: int) -> dict[str, NDArray[Any]]:
    return {"x": np.zeros((rows, 4), np.float32)}


def test_one_run_gives_the_rank_only(model_of: Build) -> None:
    graph = untyped(model_of)
    assert trace_shapes(graph, run, [feed(2)]) >= 2
    assert shape_of(made(graph, "b")) == [None, None]
    assert rank_of(made(graph, "b")) == 2


def test_two_runs_tell_fixed_dimensions_from_dynamic_ones(model_of: Build) -> None:
    graph = untyped(model_of)
    trace_shapes(graph, run, [feed(2), feed(3)])
    assert shape_of(made(graph, "b")) == [None, 1]


def test_two_equal_runs_tell_nothing_more(model_of: Build) -> None:
    graph = untyped(model_of)
    trace_shapes(graph, run, [feed(2), feed(2)])
    assert shape_of(made(graph, "b")) == [None, None]


def test_known_shapes_need_no_run(model_of: Build) -> None:
    graph = prepare(model_of("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), 18)
    assert trace_shapes(graph, lambda model, feeds: pytest.fail("ran"), [feed(1)]) == 0
