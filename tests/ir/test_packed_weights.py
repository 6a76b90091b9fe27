"""Weights that are stored in few bits become float: what ONNX Runtime makes of the same file is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompile.api import compile
from qcompile.config import Config
from qcompile.errors import InputError, QCompileError
from qcompile.ir.floats import rounds_inside
from qcompile.ir.fold import fold_constants
from qcompile.ir.load import check_model, to_model
from qcompile.ir.prepare import prepare
from qcompile.runtime.session import Session, version

Array = NDArray[Any]
ROWS, COLUMNS, BLOCK = 48, 40, 16
RANGES = {"INT8": (-127, 128), "UINT8": (0, 256), "INT4": (-8, 8), "UINT4": (0, 16), "FLOAT8E4M3FN": (-8, 8)}
WRITABLE = [  # onnx before 1.19 makes no float8 tensor of an array
    kind for kind in RANGES if helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind)) != np.float32
]


def product(nodes: list[Any], constants: dict[str, Array], opset: int = 21) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", COLUMNS])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def stored(
    kind: str, scale_shape: tuple[int, ...], scale_type: Any = np.float32, *, zero: bool = True, **attributes: int
) -> ModelProto:
    random, (low, high) = np.random.default_rng(0), RANGES[kind]
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind))
    constants = {
        "codes": random.integers(low, high, (ROWS, COLUMNS)).astype(dtype),
        "scale": random.uniform(0.01, 0.02, scale_shape).astype(scale_type),
    }
    if zero:
        constants["zero"] = np.full(scale_shape, 0 if low else high // 2).astype(dtype)
    unpacked = "w" if scale_type is np.float32 else "half"
    nodes = [helper.make_node("DequantizeLinear", list(constants), [unpacked], **attributes)]
    if unpacked != "w":
        nodes.append(helper.make_node("Cast", [unpacked], ["w"], to=TensorProto.FLOAT))
    return product([*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])], constants)


def packed(bits: int, zeros: str = "", *, order: bool = False, bias: bool = False, **attributes: int) -> ModelProto:
    random, blocks = np.random.default_rng(0), ROWS // BLOCK
    constants = {
        "packed": random.integers(0, 256, (COLUMNS, blocks, BLOCK * bits // 8)).astype(np.uint8),
        "scales": random.uniform(0.01, 0.02, COLUMNS * blocks).astype(np.float32),
    }
    if zeros == "packed":
        constants["zeros"] = random.integers(0, 256, COLUMNS * -(-blocks * bits // 8)).astype(np.uint8)
    elif zeros == "float":
        constants["zeros"] = random.uniform(3, 9, COLUMNS * blocks).astype(np.float32)
    if order:
        constants["order"] = random.permutation(np.arange(ROWS) // BLOCK).astype(np.int32)
    if bias:
        constants["bias"] = random.standard_normal(COLUMNS).astype(np.float32)
    optional = [name if name in constants else "" for name in ("zeros", "order", "bias")]
    inputs = ["x", "packed", "scales", *optional][
        : 3 + max((i + 1 for i, name in enumerate(optional) if name), default=0)
    ]
    shape = {"K": ROWS, "N": COLUMNS, "bits": bits, "block_size": BLOCK}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **shape, **attributes)
    return product([node], constants, opset=18)


def outputs(model: ModelProto) -> Array:
    x = np.random.default_rng(1).standard_normal((4, ROWS)).astype(np.float32)
    return Session(model, level="off", threads=1).run({"x": x})["y"]


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [((), {}), ((COLUMNS,), {"axis": 1}), ((ROWS // BLOCK, COLUMNS), {"axis": 0, "block_size": BLOCK})],
)
@pytest.mark.parametrize("zero", [True, False])
def test_dequantized_weights_are_folded(
    kind: str, shape: tuple[int, ...], attributes: dict[str, int], *, zero: bool
) -> None:
    model = stored(kind, shape, zero=zero, **attributes)
    check_model(model)
    graph = prepare(model, 18)
    fold_constants(graph)
    assert [node.op for node in graph.nodes] == ["MatMul"]
    np.testing.assert_array_equal(outputs(to_model(graph)), outputs(model))
    assert vars(graph)["notes"] == ["weights that are stored in few bits are unpacked, and quantized anew"]


def test_scales_in_half_precision() -> None:
    model = stored("INT8", (COLUMNS,), np.float16, axis=1)
    graph = prepare(model, 18)
    fold_constants(graph)
    codes, scale = (numpy_helper.to_array(tensor).astype(np.float32) for tensor in model.graph.initializer[:2])
    assert [node.op for node in graph.nodes if node.op != "Cast"] == ["MatMul"]
    np.testing.assert_array_equal(next(n for n in graph.nodes if n.op == "MatMul").inputs[1].values, codes * scale)


@pytest.mark.parametrize(
    ("bits", "zeros", "more"),
    [
        *[(bits, zeros, more) for bits in (2, 4, 8) for zeros in ("", "packed") for more in ({}, {"bias": True})],
        *[(4, "float", more) for more in ({}, {"bias": True}, {"order": True})],  # with kernels for 4 bits only
        (4, "", {"order": True}),
    ],
)
def test_blocks_of_packed_weights(bits: int, zeros: str, more: dict[str, bool]) -> None:
    model = packed(bits, zeros, **more)
    check_model(model)
    try:
        expected = outputs(model)
    except QCompileError:
        pytest.skip(f"ONNX Runtime {version()} has no such kernel")
    graph = prepare(model, 18)
    assert [node.op for node in graph.nodes] == ["MatMul", "Add"][: 1 + ("bias" in more)]
    np.testing.assert_allclose(outputs(to_model(graph)), expected, rtol=1e-5, atol=1e-5)  # sums in any order


def test_a_packed_weight_that_is_computed_is_refused() -> None:
    model = packed(4)
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["scales_2"], to=TensorProto.FLOAT))
    model.graph.node[1].input[2] = "scales_2"
    with pytest.raises(InputError, match=r"node 'y' is a MatMulNBits .*; give the float model"):
        check_model(model)


def test_zero_points_that_onnx_runtime_ignores_are_refused() -> None:
    with pytest.raises(InputError, match="ignores the zero points of node 'y' where it has a g_idx; give the float"):
        prepare(packed(4, "packed", order=True), 18)


@pytest.mark.parametrize(("level", "rounds"), [(0, False), (1, False), (4, True)])
def test_products_that_quantize_their_data_round_inside(level: int, rounds: bool) -> None:
    assert rounds_inside(packed(4, accuracy_level=level)) == rounds


@pytest.mark.parametrize("model", [packed(4, "packed", bias=True, accuracy_level=4), stored("INT4", ())])
def test_such_models_are_compiled(model: ModelProto) -> None:
    x = np.random.default_rng(1).standard_normal((32, ROWS)).astype(np.float32)
    result = compile(model, Config(w=8, a=8, method="rtn", threads=1), {"x": x})
    expected, made = (Session(m, threads=1).run({"x": x})["y"] for m in (model, result.model))
    assert np.linalg.norm(made - expected) < 0.02 * np.linalg.norm(expected)  # 34 dB: 8 bits, and the source's own
