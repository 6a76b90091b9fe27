"""Float nodes behind integer kernels are spelled so that the kernels stay integer; what they compute stays too."""

from __future__ import annotations

import numpy as np
import pytest
from networks import EMIT, compiled, network, samples

from qcompile.backends import check
from qcompile.backends.ort_cpu.spelling import REPEATING
from qcompile.quant.plan import Form
from qcompile.runtime.fused import is_integer, optimized_nodes
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

ROWS = "net (float[N,32] x, float[32,32] W, float[32] B, float[32,32] V) => (float[N,32] y)"
TOKENS = "net (float[N,6,32] x, float[32,32] W, float[32] B, float[32,32] V) => (float[N,6,32] y)"
BOUNDS = "<float low = {-0.5}, float zero = {0}, float half = {0.5}, float six = {6}, float[32] G = {" + ",".join(
    ["1"] * 32
)
BOUNDS += "}>"

# name: graph, operators of the optimized graph behind the first product
CASES = {
    "Gemm, Relu": (ROWS + "{ a = Gemm(x, W, B) r = Relu(a) y = Exp(r) }", "Max Exp"),
    "Gemm, Clip": (ROWS + BOUNDS + "{ a = Gemm(x, W, B) r = Clip(a, zero, six) y = Exp(r) }", "Max Min Exp"),
    "Gemm, Clip from below": (ROWS + BOUNDS + "{ a = Gemm(x, W, B) r = Clip(a, low) y = Exp(r) }", "Max Exp"),
    "Gemm, Clip from above": (ROWS + BOUNDS + "{ a = Gemm(x, W, B) r = Clip(a, , half) y = Exp(r) }", "Min Exp"),
    "Gemm, Clip without bounds": (ROWS + "{ a = Gemm(x, W, B) r = Clip(a) y = Exp(r) }", "Exp"),
    "two clips": (
        ROWS + BOUNDS + "{ a = Gemm(x, W, B) b = Clip(a, low, six) r = Relu(b) y = Exp(r) }", "Max Min Relu Exp",
    ),
    "MatMul, Relu": (ROWS + "{ a = MatMul(x, W) r = Relu(a) y = Exp(r) }", "Max Exp"),
    "MatMul of tokens, Relu": (TOKENS + "{ a = MatMul(x, W) r = Relu(a) y = Exp(r) }", "Max Exp"),
    "MatMul, PRelu with a slope above 1": (
        ROWS + "<float[32] s = {" + ", ".join(["0.5", "2"] * 16) + "}> { a = MatMul(x, W) p = PRelu(a, s) y = Sin(p) }",
        "Min Mul Sum Sin",
    ),
    "MatMul of tokens, a Transpose, Relu": (
        "net (float[N,6,32] x, float[32,32] W) => (float[N,32,6] y)"
        "{ a = MatMul(x, W) t = Transpose<perm = [0,2,1]>(a) r = Relu(t) e = Exp(r) y = Neg(e) }",
        "Max Transpose Exp Neg",
    ),
    "the clip is an output": (ROWS + "{ a = Gemm(x, W, B) y = Relu(a) }", "Max"),
    "a mover behind the clip": (
        TOKENS + "{ a = MatMul(x, W) r = Relu(a) t = Transpose<perm = [0,2,1]>(r) s = ReduceSum(t)"
        " y = Mul(x, s) }",
        "Max Transpose ReduceSum Mul",
    ),
    "a clip without zero, then a layer": (
        ROWS + BOUNDS + "{ a = Gemm(x, W, B) r = Clip(a, half, six) y = MatMul(r, V) }",
        "Max Min QuantizeLinear MatMulIntegerToFloat",
    ),
    "a clip below zero, then a layer": (
        ROWS + BOUNDS + "{ a = MatMul(x, W) r = Clip(a, , low) y = MatMul(r, V) }",
        "Min QuantizeLinear MatMulIntegerToFloat",
    ),
    "a sum of a product and rows": (
        "net (float[N,32] x, float[N,32] h, float[32,32] W) => (float[N,32] y)"
        "{ a = MatMul(x, W) b = Add(h, a) y = Exp(b) }",
        "Sum Exp",
    ),
    "a gate of two products": (
        "net (float[N,32] x, float[N,32] h, float[32,32] W, float[32,32] V, float[32] B) => (float[N,32] y)"
        "{ a = MatMul(x, W) c = MatMul(h, V) b = Add(a, c) d = Add(b, B) y = Sigmoid(d) }",
        "QuantizeLinear MatMulIntegerToFloat Sum Add Sigmoid",
    ),
    "a residual in front of LayerNormalization": (
        TOKENS + BOUNDS + "{ a = MatMul(x, W) b = Add(a, x) y = LayerNormalization(b, G) }",
        "Sum LayerNormalization",
    ),
}  # fmt: skip


@pytest.mark.parametrize("text, operators", CASES.values(), ids=CASES)
def test_kernels_and_values(text: str, operators: str) -> None:
    source = network(text)
    model = compiled(source, EMIT, w=8, a=8)
    assert model.emitted is not None
    made = optimized_nodes(model.emitted)
    planned = {name for name, node in model.plan.nodes.items() if node.form is Form.COMPUTE}
    assert planned and planned == {name for name, op in made if is_integer(op)}
    ran = [op for _, op in made]
    first = next(i for i, op in enumerate(ran) if is_integer(op))
    assert sorted(ran[first + 1 :]) == sorted(operators.split())
    assert check(model.emitted, model.target, planned) == []
    feeds = samples(source)
    found, expected = (Session(file, threads=1).run(feeds)["y"] for file in (model.emitted, source))
    np.testing.assert_allclose(
        found, simulate(model.graph, model.plan, "integer").run(feeds)["y"], rtol=1e-4, atol=1e-5
    )
    assert np.mean((found - expected) ** 2) < 0.001 * np.mean(expected**2)


def test_sums_between_floats_stay() -> None:
    text = "net (float[N,32] x, float[32,32] W) => (float[N,32] y) { a = MatMul(x, W) e = Exp(a) y = Add(e, x) }"
    model = compiled(text, EMIT, w=8, a=8)
    assert model.emitted is not None
    assert [node.op_type for node in model.emitted.graph.node][-2:] == ["Exp", "Add"]


BETWEEN = """net (float[N,3,12,12] x, float[8,3,3,3] W, float[4,8,1,1] V) => (float[N,4,P,Q] y) <
  float[2] half = {0.5, 0.5}, float[4] halves = {1, 1, 0.5, 0.5}, int64[2] sizes = {20, 17}, int64[4] pads = {1,0,2,1},
  int64[2] axes = {3,2}> { a = Conv(x, W) b = Relu(a) c = MOVED y = Conv(c, V) }"""
MOVED = {
    'Resize<mode = "cubic">(b, , halves)': True,
    'Resize<mode = "cubic", axes = [2,3]>(b, , half)': True,
    'Resize<mode = "linear", axes = [2,3]>(b, , half)': False,
    "Resize<axes = [3,2]>(b, , half)": False,
    'Resize<mode = "linear", axes = [2,3]>(b, , , sizes)': False,
    'Resize<axes = [2,3], keep_aspect_ratio_policy = "not_larger">(b, , , sizes)': True,
    'Pad<mode = "reflect">(b, pads, , axes)': False,
}


@pytest.mark.parametrize("node", MOVED)
def test_what_has_axes_stands_between_integer_convolutions(node: str) -> None:
    """ONNX Runtime moves to channels-last around the convolutions, and must not move these along."""
    source = network(BETWEEN.replace("MOVED", node))
    model = compiled(source, EMIT, w=8, a=8)
    assert model.emitted is not None
    ran = [op for _, op in optimized_nodes(model.emitted)]
    assert ran.count("QLinearConv") == 2 and ("Reshape" in ran) == MOVED[node]
    feeds = samples(source)
    found, expected = (Session(file, threads=1).run(feeds)["y"] for file in (model.emitted, source))
    assert np.mean((found - expected) ** 2) < 0.001 * np.mean(expected**2)


@pytest.mark.parametrize("slopes, operators", [("0.5, -1, 0, 1", "Mul Max"), ("0.5, -1, 0, 2", "Min Mul Add")])
def test_float_prelu_is_written_without_its_slow_kernel(slopes: str, operators: str) -> None:
    text = f"""net (float[N,6,4] x, float[4,4] W) => (float[N,6,4] y) <float[4] s = {{{slopes}}}> {{
      e = Erf(x)  p = PRelu(e, s)  t = Sin(p)  y = MatMul(t, W) }}"""
    source = network(text)
    model = compiled(source, EMIT, w=8, a=8)
    assert model.emitted is not None
    ran = [op for _, op in optimized_nodes(model.emitted)]
    assert ran == ["Erf", *operators.split(), "Sin", "QuantizeLinear", "MatMulIntegerToFloat"]
    assert check(model.emitted, model.target, {"y"}) == []  # no slopes are left behind that nothing reads
    feeds = samples(source)
    found, expected = (Session(file, threads=1).run(feeds)["y"] for file in (model.emitted, source))
    assert np.mean((found - expected) ** 2) < 0.001 * np.mean(expected**2)


GRIDS = ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


@pytest.mark.parametrize("scales", ["1, 1, 2, 2", "1, 1, 3, 4", "1, 1, 1, 5", "1, 1, 1.5, 2", "1, 2, 2, 2"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("grid", GRIDS)
def test_nearest_neighbours_that_are_repeats_are_gathered(grid: str, rounding: str, scales: str) -> None:
    """What is written is what the Resize of the graph does, code for code."""
    sizes = "H,7" if "3" in scales else "5,7"  # an open one, where it is 8
    source = network(
        f"""net (float[N,3,{sizes}] x, float[4,3,1,1] W, float[4,4,1,1] V) => (float[N,4,P,Q] y, float[N,C,R,S] u)
      <float[4] s = {{{scales}}}, int64[1] zero = {{0}}, int64[1] four = {{4}}, int64[1] one = {{1}}> {{
      a = Conv(x, W) u = Resize<coordinate_transformation_mode = "{grid}", nearest_mode = "{rounding}">(a, , s)
      c = Slice(u, zero, four, one) y = Conv(c, V) }}"""
    )
    model = compiled(source, EMIT, w=8, a=8)
    assert model.emitted is not None
    gathered = "Resize" not in {node.op_type for node in model.emitted.graph.node}
    assert gathered == ((grid, rounding) in REPEATING and scales in ("1, 1, 2, 2", "1, 1, 3, 4", "1, 1, 1, 5"))
    feeds = samples(source, 2)
    found = Session(model.emitted, threads=1).run(feeds)
    for name, values in simulate(model.graph, model.plan, "integer").run(feeds).items():
        if name in found:
            np.testing.assert_array_equal(found[name], values)
