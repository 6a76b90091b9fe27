from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompile.quant.arithmetic import dequantize, fake_quantize, quantize
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer
from qcompile.runtime.session import Session

QUANTIZERS = [Quantizer(unsigned(bits), scale, zero) for bits in range(2, 9)
              for scale in (0.25, float(np.float32(0.1)), float(np.float32(6 / 15)))
              for zero in (0, 1, (1 << bits) - 1)]  # fmt: skip


def onnx_quantizer(quantizer: Quantizer) -> Session:
    """QuantizeLinear -> Clip on uint8 -> DequantizeLinear, run as written."""
    constants = {
        "scale": np.float32(quantizer.scale),
        "zero": np.uint8(quantizer.zero_point),
        "least": np.uint8(0),
        "most": np.uint8(quantizer.grid.high),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("Clip", ["q", "least", "most"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantizer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, ["n"]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return Session(model, level="off", threads=1, fuse_qdq=False)


def interesting_values(quantizer: Quantizer) -> NDArray[np.float32]:
    """Random values, every tie of the grid and its neighbours, and values far outside."""
    random = np.random.default_rng(0).normal(0, 2 * quantizer.grid.high * quantizer.scale, 20_000).astype(np.float32)
    ties = ((np.arange(-300, 300) + 0.5) * quantizer.scale).astype(np.float32)
    around = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    far = np.array([0, -0.0, 1e30, -1e30, 3e38, -3e38], np.float32)
    return np.concatenate([random, ties, *around, far])


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_bit_for_bit_onnx_runtime(quantizer: Quantizer) -> None:
    x = interesting_values(quantizer)
    expected = onnx_quantizer(quantizer).run({"x": x})
    codes = quantize(x, quantizer)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, expected["codes"])
    real = fake_quantize(x, quantizer)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, expected["y"])


def test_ties_go_to_even_before_the_zero_point_is_added() -> None:
    codes = quantize(np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), Quantizer(unsigned(4), 1.0, 3))
    assert codes.tolist() == [3, 5, 5, 3, 1]


@given(st.integers(2, 8), st.floats(2.0**-20, 2.0**20, width=32), st.data())
def test_codes_survive_the_round_trip(bits: int, scale: float, data: st.DataObject) -> None:
    quantizer = Quantizer(unsigned(bits), scale, data.draw(st.integers(0, (1 << bits) - 1)))
    codes = np.arange(quantizer.grid.high + 1, dtype=np.uint8)
    np.testing.assert_array_equal(quantize(dequantize(codes, quantizer), quantizer), codes)
    assert dequantize(codes, quantizer)[quantizer.zero_point] == 0
