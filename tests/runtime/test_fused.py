"""What ONNX Runtime makes of Q/DQ text graphs, as found by the fusion self-check."""

from __future__ import annotations

import pytest
from graph_checks import fused_kernels
from onnx import parser

from qcompile.runtime.fused import GONE, is_integer, kernel_counts, optimized_nodes

HEAD = """<ir_version: 8, opset_import: ["": 18]>
net (float[N,2,4,4] x) => (float[N,2,4,4] y) <
  float s = {0.02}, uint8 z = {0}, int8[2,2,1,1] w = {1, -2, 3, 4}, float[2] ws = {0.5, 0.25}, uint8 high = {15}
>"""
INPUT = """[q_x] xq = QuantizeLinear(x, s, z)  [dq_x] xd = DequantizeLinear(xq, s, z)
  [dq_w] wd = DequantizeLinear<axis = 0>(w, ws)"""

CHAINS = {
    "between pairs": (
        "[conv] a = Conv(xd, wd) [q] q = QuantizeLinear(a, s, z) [dq] y = DequantizeLinear(q, s, z)", True,
    ),
    "Clip on codes behind": (
        "[conv] a = Conv(xd, wd) [q] b = QuantizeLinear(a, s, z) [clip] q = Clip(b, z, high) "
        "[dq] y = DequantizeLinear(q, s, z)", True,
    ),
    "no Q behind": ("[conv] y = Conv(xd, wd)", False),
    "float reader besides": (
        "[conv] a = Conv(xd, wd) [q] q = QuantizeLinear(a, s, z) [dq] d = DequantizeLinear(q, s, z) "
        "[tanh] t = Tanh(a) [div] y = Div(d, t)", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("chain, integer", CHAINS.values(), ids=CHAINS)
def test_convolution(chain: str, integer: bool) -> None:
    found = fused_kernels(parser.parse_model(f"{HEAD} {{ {INPUT} {chain} }}"), ["conv"])
    assert is_integer(found["conv"]) is integer, found


def test_absorbed_and_unknown_nodes_are_gone() -> None:
    chain = """[conv] a = Conv(xd, wd) [relu] r = Relu(a) [q] q = QuantizeLinear(r, s, z)
      [dq] y = DequantizeLinear(q, s, z)"""
    found = fused_kernels(parser.parse_model(f"{HEAD} {{ {INPUT} {chain} }}"), ["conv", "relu", "never there"])
    assert found == {"conv": "QLinearConv", "relu": GONE, "never there": GONE}


def test_counts() -> None:
    model = parser.parse_model(f"{HEAD} {{ {INPUT} {CHAINS['between pairs'][0]} }}")
    assert kernel_counts(optimized_nodes(model)) == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    assert list(kernel_counts([("a", "Rare"), ("b", "Often"), ("c", "Often")])) == ["Often", "Rare"]


@pytest.mark.parametrize("op_type", ["QLinearConv", "QLinearAdd", "QGemm", "MatMulIntegerToFloat", "MatMulNBits"])
def test_integer_kernels(op_type: str) -> None:
    assert is_integer(op_type)


@pytest.mark.parametrize("op_type", ["Conv", "FusedConv", "Gemm", "MatMul", "QuantizeLinear", "Clip", GONE])
def test_other_kernels(op_type: str) -> None:
    assert not is_integer(op_type)


def test_gemm_whose_weight_zero_point_is_written_out() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[N,2] x) => (float[N,3] y) <
          float s = {0.02}, uint8 z = {9}, int8[3,2] w = {1, -2, 3, 4, 5, 6}, float[3] ws = {1, 2, 4},
          int8[3] wz = {0, 0, 0}
        > { [q_x] xq = QuantizeLinear(x, s, z)  [dq_x] xd = DequantizeLinear(xq, s, z)
          [dq_w] wd = DequantizeLinear<axis = 0>(w, ws, wz)  [gemm] y = Gemm<transB = 1>(xd, wd) }"""
    )
    assert fused_kernels(model, ["gemm"]) == {"gemm": "QGemm"}
