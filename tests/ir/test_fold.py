"""Constant folding: what is computed now, and what is left for run time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from qcompile.ir import Constant
from qcompile.ir.fold import ROOM, fold_constants
from qcompile.ir.load import to_graph, to_model
from qcompile.ir.prepare import prepare
from qcompile.ir.rewrites import sweep

Build = Callable[..., ModelProto]
Same = Callable[..., None]
ROWS = [{"x": (1, 6)}, {"x": (5, 6)}]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("c = Constant<value = float {2}>() y = Mul(x, c)", "Mul"),
        ("c = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]>() y = Mul(x, c)", "Mul"),
        ("a = Exp(v) b = Sqrt(a) c = Div(b, v) y = Add(x, c)", "Add"),
        ("s = Shape(x) g = Gather<axis = 0>(s, one) f = Cast<to = 1>(g) y = Div(x, f)", "Div"),
        ("s = Shape(x) g = Gather<axis = 0>(s, zero) f = Cast<to = 1>(g) y = Div(x, f)", "Shape Gather Cast Div"),
        ("c = ConstantOfShape<value = float[1] {2}>(six) y = Mul(x, c)", "Mul"),
        ("r = RandomUniformLike(v) z = Mul(r, zerof) y = Add(x, z)", "RandomUniformLike Mul Add"),
    ],
)
def test_folding(body: str, left: str, model_of: Build, same_outputs: Same) -> None:
    source = model_of(
        "g (float[N,6] x) => (float[N,6] y) <float[6] v = {1,2,3,4,5,6}, int64 zero = {0}, int64 one = {1},"
        f" int64[1] six = {{6}}, float zerof = {{0}}> {{ {body} }}"
    )
    graph = prepare(source, 18)
    fold_constants(graph)
    sweep(graph)
    assert [node.op for node in graph.nodes] == left.split()
    same_outputs(source, graph, ROWS)
    assert fold_constants(graph) == 0


@pytest.mark.parametrize(("count", "left"), [(ROOM // 8, []), (ROOM, ["Expand"])])
def test_constants_that_would_grow_stay_computed(count: int, left: list[str], model_of: Build) -> None:
    source = model_of(
        f"g (float[{count}] x) => (float[{count}] y) <float v = {{2}}, int64[1] n = {{{count}}}>"
        "{ c = Expand(v, n) y = Add(x, c) }"
    )
    graph = prepare(source, 18)
    fold_constants(graph)
    assert [node.op for node in graph.nodes] == [*left, "Add"]


def test_an_output_of_the_graph_is_not_turned_into_a_constant(model_of: Build) -> None:
    graph = prepare(model_of("g (float[6] x) => (float[6] y) <float[6] v = {1,2,3,4,5,6}> { y = Exp(v) }"), 18)
    assert fold_constants(graph) == 0
    assert not isinstance(graph.outputs[0], Constant)


def test_types_that_numpy_lacks_and_strings_are_left_alone() -> None:
    half = helper.make_tensor("h", TensorProto.BFLOAT16, [2], [1.0, 2.0])
    words = helper.make_tensor("w", TensorProto.STRING, [1], [b"word"])
    nodes = [
        helper.make_node("Identity", ["h"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["w"], ["z"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("z", TensorProto.STRING, [1]),
    ]
    source = helper.make_model(
        helper.make_graph(nodes, "g", [], outputs, [half, words]), opset_imports=[helper.make_opsetid("", 18)]
    )
    graph = to_graph(source)
    fold_constants(graph)
    weights = {tensor.name: tensor for tensor in to_model(graph).graph.initializer}
    assert weights["h"].data_type == TensorProto.BFLOAT16
    assert list(weights["w"].string_data) == [b"word"]


def test_folding_says_nothing(model_of: Build, capfd: pytest.CaptureFixture[str]) -> None:
    source = model_of(
        "g (float[6] x) => (float[6] y) <float[6] v = {0,2,3,4,5,6}, float zero = {0}>"
        "{ a = Log(v) b = Div(a, zero) c = custom.Op(v) d = Add(b, c) y = Add(x, d) }"
    )
    graph = prepare(source, 18)
    with np.errstate(all="raise"):
        fold_constants(graph)
    assert [node.op for node in graph.nodes] == ["Op", "Add", "Add"]
    assert capfd.readouterr() == ("", "")
