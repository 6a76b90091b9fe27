"""A Loop with a constant number of trips: its body stands in the graph as often, and computes what it did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

from qcompile.ir.load import to_model
from qcompile.ir.loops import MOST_TRIPS
from qcompile.ir.verify import verify
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session

Build = Callable[..., ModelProto]
AsQModel = Callable[[ModelProto], QModel]

HEAD = "g (float[N,6] x, float[6,6] W) => (float[N,6] y) <int64 m = {3}, bool go = {1}>"
CASES = {  # graph, operators afterwards
    "a state that is handed on": (
        HEAD + "{ y = Loop(m, go, x) <body = b (int64 i, bool c, float[N,6] s) => (bool d, float[N,6] t)"
        " { d = Identity(c) p = MatMul(s, W) t = Relu(p) }> }",
        "MatMul Relu MatMul Relu MatMul Relu"),
    "without a condition, names that the graph has too": (
        HEAD + "{ p = Relu(x) z = Loop(m, , p) <body = b (int64 i, bool c, float[N,6] s) => (bool d, float[N,6] t)"
        " { d = Identity(c) q = MatMul(s, W) t = Neg(q) }> q_2 = Abs(z) y = Abs(q_2) }",
        "Relu MatMul Neg MatMul Neg MatMul Neg Abs Abs"),
    "the number of the trip, constants, and values of all trips": (
        "g (float[N,6] x, float[6,6] W) => (float[N,6] y, float[3,N,6] z) <int64 m = {3}>"
        "{ y, z = Loop(m, , x) <body = b (int64 i, bool c, float[N,6] s) => (bool d, float[N,6] t, float[N,6] r)"
        " { d = Constant<value = bool {1}>() f = Cast<to = 1>(i) k = Constant<value = float {2}>() e = Add(f, k)"
        "   p = Mul(s, e) t = MatMul(p, W) r = Relu(s) }> }",
        "Relu Unsqueeze Mul MatMul Relu Unsqueeze Mul MatMul Relu Unsqueeze Mul MatMul Concat"),
    "what comes from outside": (
        HEAD + "{ a = Relu(x) y, z = Loop(m, go, x) <body = b (int64 i, bool c, float[N,6] s) => (bool c, float[N,6] s,"
        " float[N,6] r) { r = MatMul(a, W) }> }", "Identity"),
    "a condition that is computed stays": (
        HEAD + "{ y = Loop(m, go, x) <body = b (int64 i, bool c, float[N,6] s) => (bool d, float[N,6] t)"
        " { k = Constant<value = int64 {1}>() d = Less(i, k) t = MatMul(s, W) }> }", "Loop"),
    "too many trips stay": (
        HEAD.replace("{3}", f"{{{MOST_TRIPS + 1}}}")
        + "{ y = Loop(m, go, x) <body = b (int64 i, bool c, float[N,6] s) => (bool d, float[N,6] t)"
        " { d = Identity(c) t = MatMul(s, W) }> }", "Loop"),
    "nothing to compile stays": (
        HEAD + "{ y = Loop(m, go, x) <body = b (int64 i, bool c, float[N,6] s) => (bool d, float[N,6] t)"
        " { d = Identity(c) t = Sin(s) }> }", "Loop"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loops(name: str, model_of: Build, as_qmodel: AsQModel) -> None:
    text, expected = CASES[name]
    source = model_of(text)
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert sorted(node.op for node in model.graph.nodes) == sorted(expected.split())
    verify(model.graph, after="normalize-graph")
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    exact = Session(source, threads=1).run({"x": x})
    found = Session(to_model(model.graph), threads=1).run({"x": x})
    assert list(found) == list(exact)
    for output, values in found.items():
        np.testing.assert_allclose(values, exact[output], rtol=1e-4, atol=1e-4)  # products of three matrices
