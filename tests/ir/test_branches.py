"""An If whose condition is constant: its branch stands in its place, and computes what it did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

from qcompile.ir.branches import deciding_inputs
from qcompile.ir.freeze import freeze
from qcompile.ir.load import to_model
from qcompile.ir.verify import verify
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session

Build = Callable[..., ModelProto]
AsQModel = Callable[[ModelProto], QModel]

HEAD = "g (float[N,6] x, bool flag, float[6,4] W, float[6,4] V) => (float[N,4] y)"
CASES = {  # graph, operators with flag true, and with flag false
    "the branch's last node makes the result": (
        HEAD + "{ y = If(flag) <then_branch = t () => (float[N,4] a) { a = MatMul(x, W) },"
        " else_branch = e () => (float[N,4] b) { c = MatMul(x, V) b = Relu(c) }> }", "MatMul", "MatMul Relu"),
    "names of the branch that the graph has too": (
        HEAD + "{ a = Relu(x) z = If(flag) <then_branch = t () => (float[N,4] r) { c = MatMul(a, W) r = Neg(c) },"
        " else_branch = e () => (float[N,4] r) { c = MatMul(x, V) r = Abs(c) }> c = Exp(z) y = Sigmoid(c) }",
        "Relu MatMul Neg Exp Sigmoid", "MatMul Abs Exp Sigmoid"),
    "a result that comes from outside": (
        HEAD + "{ m = MatMul(x, W) z = If(flag) <then_branch = t () => (float[N,4] a) { a = Identity(m) },"
        " else_branch = e () => (float[N,4] b) { b = Neg(m) }> y = Relu(z) }", "MatMul Relu", "MatMul Neg Relu"),
    "one tensor for two results": (
        "g (float[N,6] x, bool flag, float[6,4] W) => (float[N,4] y, float[N,4] z)"
        "{ y, z = If(flag) <then_branch = t () => (float[N,4] a, float[N,4] b) { a = MatMul(x, W) b = Identity(a) },"
        " else_branch = e () => (float[N,4] c, float[N,4] d) { c = MatMul(x, W) d = Neg(c) }> }",
        "MatMul Identity", "MatMul Neg"),
    "constants of the branch": (
        HEAD + "{ y = If(flag) <then_branch = t () => (float[N,4] a) {"
        "   k = Constant<value = float[6] {1,2,3,4,5,6}>() s = Mul(x, k) a = MatMul(s, W) },"
        " else_branch = e () => (float[N,4] b) { k = Constant<value = float {3}>() s = Sub(x, k) b = MatMul(s, V) }> }",
        "Mul MatMul", "Add MatMul"),
    "an If inside": (
        HEAD + "{ y = If(flag) <then_branch = t () => (float[N,4] a) {"
        "   a = If(flag) <then_branch = tt () => (float[N,4] p) { p = MatMul(x, W) },"
        "     else_branch = te () => (float[N,4] q) { q = MatMul(x, V) }> },"
        " else_branch = e () => (float[N,4] b) { n = Not(flag)"
        "   b = If(n) <then_branch = et () => (float[N,4] r) { s = MatMul(x, W) r = Neg(s) },"
        "     else_branch = ee () => (float[N,4] v) { v = MatMul(x, V) }> }> }", "MatMul", "MatMul Neg"),
}  # fmt: skip


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_branch_inlined(name: str, flag: bool, model_of: Build, as_qmodel: AsQModel) -> None:
    text, *expected = CASES[name]
    source = model_of(text)
    model = as_qmodel(freeze(source, [("flag", flag)]))
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == expected[not flag].split()
    verify(model.graph, after="normalize-graph")
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    exact = Session(source, threads=1).run({"x": x, "flag": np.array(flag)})
    for output, values in Session(to_model(model.graph), threads=1).run({"x": x}).items():
        np.testing.assert_allclose(values, exact[output], rtol=1e-5, atol=1e-6)


def test_an_if_that_the_data_decide_stays(model_of: Build, as_qmodel: AsQModel) -> None:
    model = as_qmodel(model_of(CASES["an If inside"][0]))
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["If"]
    assert deciding_inputs(model.graph, model.graph.nodes[0]) == ["flag"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("k = Constant<value = int64 {8000}>() c = Equal(rate, k)", ["rate"]),
        ("z = Cast<to = 9>(rate) n = Not(flag) c = And(z, n)", ["rate", "flag"]),
        ("s = Shape(x) k = Constant<value = int64[2] {1, 6}>() e = Equal(s, k) i = Constant<value = int64 {0}>()"
         " c = Gather(e, i)", []),
        ("m = ReduceSum<keepdims = 0>(x) k = Constant<value = float {0}>() c = Less(m, k)", []),
    ],
)  # fmt: skip
def test_deciding_inputs(condition: str, expected: list[str], model_of: Build, as_qmodel: AsQModel) -> None:
    text = (
        f"g (float[N,6] x, int64 rate, bool flag) => (float[N,6] y) {{ {condition} y = If(c)"
        " <then_branch = t () => (float[N,6] a) { a = Relu(x) }, else_branch = e () => (float[N,6] b) { b = Neg(x) }> }"
    )
    model = as_qmodel(model_of(text))
    NormalizeGraph().run(model)
    assert deciding_inputs(model.graph, model.graph.nodes[-1]) == expected
