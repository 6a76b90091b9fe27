"""The rules of an emitted file: a good file has no violation, and each broken rule is found under its name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from qcompile.backends import check
from qcompile.backends.ort_cpu.rules import RULES
from qcompile.emission.emitted import Emitted
from qcompile.targets.schema import Target

TARGET = Target.load("ort-cpu")

# Conv (8-bit output) + shortcut -> Add (4-bit grid, Clip) -> Flatten on codes -> Gemm with float output.
GOOD = """<ir_version: 8, opset_import: ["": 18]>
net (float[N,2,1,1] x) => (float[N,3] logits) <
  float xs = {0.02}, uint8 xz = {128}, float ys = {0.05}, uint8 yz = {0}, float as = {0.1}, uint8 az = {8},
  uint8 low = {0}, uint8 high = {15},
  int8[2,2,1,1] w = {1, -2, 3, 4}, float[2] ws = {0.5, 0.25}, int32[2] b = {100, -100}, float[2] bs = {0.01, 0.005},
  int8[3,2] v = {1, -2, 3, -4, 5, -6}, float[3] vs = {0.5, 0.25, 0.125},
  int8[3] vz = {0, 0, 0}, int32[3] c = {1, 2, 3}, float[3] cs = {0.05, 0.025, 0.0125}
> {
  [q_x] xq = QuantizeLinear(x, xs, xz)
  [dq_x] xd = DequantizeLinear(xq, xs, xz)
  [dq_w] wd = DequantizeLinear<axis = 0>(w, ws)
  [dq_b] bd = DequantizeLinear<axis = 0>(b, bs)
  [conv] y = Conv(xd, wd, bd)
  [q_y] yq = QuantizeLinear(y, ys, yz)
  [dq_y] yd = DequantizeLinear(yq, ys, yz)
  [add] a = Add(yd, xd)
  [q_a] au = QuantizeLinear(a, as, az)
  [clip] aq = Clip(au, low, high)
  [flatten] fq = Flatten(aq)
  [dq_f] fd = DequantizeLinear(fq, as, az)
  [dq_v] vd = DequantizeLinear<axis = 0>(v, vs, vz)
  [dq_c] cd = DequantizeLinear<axis = 0>(c, cs)
  [gemm] logits = Gemm<transB = 1>(fd, vd, cd)
}"""


def model(text: str = GOOD) -> onnx.ModelProto:
    """Parse a model; bias scales become exact float32 products (text holds decimal fractions)."""
    parsed = parser.parse_model(text)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in parsed.graph.initializer}
    for tensor in parsed.graph.initializer:
        inputs, weights = {"bs": ("xs", "ws"), "cs": ("as", "vs")}.get(tensor.name, ("", ""))
        if inputs and weights in arrays and np.allclose(arrays[tensor.name], arrays[inputs] * arrays[weights]):
            tensor.CopyFrom(numpy_helper.from_array(arrays[inputs] * arrays[weights], tensor.name))
    return parsed


def test_good_file_has_no_violation() -> None:
    onnx.checker.check_model(model(), full_check=True)
    assert check(model(), TARGET, planned=["add"]) == []


# rule, node it is reported at, and what to replace in GOOD
BROKEN = {
    "conv reads float": ("dequantized-inputs", "add", "[add] a = Add(yd, xd)", "[add] a = Add(yd, x)"),
    "conv without Q": (
        "one-quantizer", "conv", "[q_y] yq = QuantizeLinear(y, ys, yz)",
        "[neg] z = Neg(y)  [q_y] yq = QuantizeLinear(z, ys, yz)",
    ),
    "conv with two Q": (
        "one-quantizer", "conv", "[dq_y] yd = DequantizeLinear(yq, ys, yz)",
        "[q_y2] yq2 = QuantizeLinear(y, as, az)  [dq_y] yd = DequantizeLinear(yq2, as, az)",
    ),
    "conv with a float reader": (
        "one-quantizer", "conv", "[add] a = Add(yd, xd)", "[n] m = Neg(y) [add] a = Add(yd, xd)",
    ),
    "conv is an output": (
        "one-quantizer", "conv", "(float[N,3] logits)", "(float[N,3] logits, float[N,2,1,1] y)",
    ),
    "conv read in a branch": (
        "one-quantizer", "conv", "[add] a = Add(yd, xd)",
        "[add] a = Add(yd, xd) [i] t = Constant<value = bool {1}>() "
        "[if] e = If(t)<then_branch = g () => (float u) { u = Neg(y) }, "
        "else_branch = h () => (float o) { o = Abs(xs) }>",
    ),
    "add without Q": (
        "one-quantizer", "add", "[q_a] au = QuantizeLinear(a, as, az)",
        "[neg] z = Neg(a)  [q_a] au = QuantizeLinear(z, as, az)",
    ),
    "requantized twice": (
        "no-double-requantization", "q_r", "[add] a = Add(yd, xd)",
        "[q_r] r = QuantizeLinear(yd, as, az) [dq_r] rd = DequantizeLinear(r, as, az) [add] a = Add(rd, xd)",
    ),
    "Relu in float": (
        "no-float-clip", "conv", "[q_y] yq = QuantizeLinear(y, ys, yz)",
        "[relu] r = Relu(y)  [q_y] yq = QuantizeLinear(r, ys, yz)",
    ),
    "Relu behind a float output": (
        "no-float-clip", "gemm", "[gemm] logits = Gemm<transB = 1>(fd, vd, cd)",
        "[gemm] l = Gemm<transB = 1>(fd, vd, cd) [relu] logits = Relu(l)",
    ),
    "sum with a product": (
        "no-merged-sum", "gemm", "[gemm] logits = Gemm<transB = 1>(fd, vd, cd)",
        "[gemm] l = MatMul(fd, vd) [sum] logits = Add(l, cd)",
    ),
    "int8 activation": ("unsigned-activations", "q_y", "uint8 yz = {0}", "int8 yz = {0}"),
    "uint8 weight": ("signed-weights", "conv", "int8[2,2,1,1] w = {1, -2, 3, 4}", "uint8[2,2,1,1] w = {1, 2, 3, 4}"),
    "int4 weight": ("signed-weights", "gemm", "int8[3,2] v", "int4[3,2] v"),
    "weight zero point": (
        "signed-weights", "conv", "[dq_w] wd = DequantizeLinear<axis = 0>(w, ws)",
        "[z] wz = Constant<value = int8[2] {1, 0}>() [dq_w] wd = DequantizeLinear<axis = 0>(w, ws, wz)",
    ),
    "Gemm weight without zero point": (
        "signed-weights", "gemm", "[dq_v] vd = DequantizeLinear<axis = 0>(v, vs, vz)",
        "[id] u = Identity(vz)  [dq_v] vd = DequantizeLinear<axis = 0>(v, vs)",
    ),
    "weight of -128": ("no-lowest-weight", "conv", "w = {1, -2, 3, 4}", "w = {1, -128, 3, 4}"),
    "unpacked weight of -128": (
        "no-lowest-weight", "conv", "[dq_w] wd = DequantizeLinear<axis = 0>(w, ws)",
        """[i] i = Constant<value = int32 {-129}>() [wide] wi = Cast<to = 6>(w) [at] wa = Add(wi, i)
        [narrow] wn = Cast<to = 3>(wa) [dq_w] wd = DequantizeLinear<axis = 0>(wn, ws)""",
    ),
    "weight axis": ("signed-weights", "conv", "DequantizeLinear<axis = 0>(w, ws)", "DequantizeLinear<axis = 1>(w, ws)"),
    "float bias": ("exact-bias", "conv", "[conv] y = Conv(xd, wd, bd)", "[conv] y = Conv(xd, wd, ws)"),
    "bias scale": ("exact-bias", "conv", "float[2] bs = {0.01, 0.005}", "float[2] bs = {0.01, 0.0055}"),
    "bias scale of another input": ("exact-bias", "gemm", "[dq_f] fd = DequantizeLinear(fq, as, az)",
                                    "[dq_f] fd = DequantizeLinear(fq, ys, az)"),
    "odd zero point": ("even-zero-points", "add", "uint8 az = {8}", "uint8 az = {7}"),
    "clip with one bound": ("clip-bounds", "clip", "Clip(au, low, high)", "Clip(au, low)"),
    "clip bound not a scalar": ("clip-bounds", "clip", "uint8 high = {15}", "uint8[1] high = {15}"),
    "clip leaves out zero": ("clip-bounds", "clip", "uint8 high = {15}", "uint8 high = {7}"),
    "scale of rank 1": ("scalar-parameters", "q_x", "float xs = {0.02}", "float[1] xs = {0.02}"),
    "scale 0": ("scalar-parameters", "q_x", "float xs = {0.02}", "float xs = {0.0}"),
    "unused initializer": ("no-unused-initializer", "spare", "uint8 low = {0}", "uint8 low = {0}, float spare = {1.0}"),
    "two nodes of one name": ("unique-names", "dq_x", "[dq_w]", "[dq_x]"),
    "node without a name": ("unique-names", "(no name)", "[dq_w]", ""),
}  # fmt: skip


@pytest.mark.parametrize("rule, node, old, new", BROKEN.values(), ids=BROKEN)
def test_broken_rule_is_found(rule: str, node: str, old: str, new: str) -> None:
    assert GOOD.count(old) == 1
    found = check(model(GOOD.replace(old, new)), TARGET, planned=["add"])
    assert (rule, node) in [(item.rule, item.node) for item in found]


def test_every_rule_is_tested() -> None:
    assert {rule for rule, *_ in BROKEN.values()} == set(RULES)


def test_narrow_second_quantizer_needs_its_clip() -> None:
    second = """[q_r] ru = QuantizeLinear(yd, as, az) [clip_r] r = Clip(ru, low, high)
      [dq_r] rd = DequantizeLinear(r, as, az) [add] a = Add(rd, xd)"""
    assert check(model(GOOD.replace("[add] a = Add(yd, xd)", second)), TARGET, planned=["add"]) == []


def test_float_nodes_are_held_to_nothing() -> None:
    """A convolution with a float weight was left float on purpose, whatever stands around it."""
    text = GOOD.replace("Conv(xd, wd, bd)", "Conv(xd, wf)").replace("int8[2,2,1,1] w =", "float[2,2,1,1] wf =")
    for line in (
        "  [dq_w] wd = DequantizeLinear<axis = 0>(w, ws)\n",
        "  [dq_b] bd = DequantizeLinear<axis = 0>(b, bs)\n",
    ):
        text = text.replace(line, "")
    text = text.replace(", float[2] ws = {0.5, 0.25}, int32[2] b = {100, -100}, float[2] bs = {0.01, 0.005}", "")
    text = text.replace(
        "[q_y] yq = QuantizeLinear(y, ys, yz)", "[relu] r = Relu(y)  [q_y] yq = QuantizeLinear(r, ys, yz)"
    )
    assert check(model(text), TARGET) == []


def test_unplanned_add_may_stay_float() -> None:
    text = GOOD.replace("[add] a = Add(yd, xd)", "[n] m = Neg(x) [add] a = Add(yd, m)")
    assert check(model(text), TARGET) == []
    assert [item.rule for item in check(model(text), TARGET, planned=["add"])] == ["dequantized-inputs"]


def test_weight_unpacked_by_nodes_counts_as_int8() -> None:
    unpack = """[u1] p = BitwiseAnd(wp, m)  [u2] i = Cast<to = 6>(p)  [u3] o = Add(i, half)  [u4] w = Cast<to = 3>(o)
      [dq_w] wd = DequantizeLinear<axis = 0>(w, ws)"""
    text = GOOD.replace(
        "int8[2,2,1,1] w = {1, -2, 3, 4}", "uint8[2,2,1,1] wp = {1, 2, 3, 4}, uint8 m = {15}, int32 half = {-8}"
    )
    text = text.replace("[dq_w] wd = DequantizeLinear<axis = 0>(w, ws)", unpack)
    assert check(model(text), TARGET) == []


def test_nodes_on_codes() -> None:
    assert Emitted(model(), TARGET).on_codes() == {"clip", "flatten"}
