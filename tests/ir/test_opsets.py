"""Every operator that was redefined computes after `prepare` what ONNX Runtime computes for the old model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from qcompile.errors import InputError
from qcompile.ir.load import to_model
from qcompile.ir.opsets import converted
from qcompile.ir.prepare import prepare
from qcompile.runtime.session import Session, newest_opset

Build = Callable[..., ModelProto]
Array = NDArray[Any]

RANDOM = np.random.default_rng(0)
MAP = RANDOM.standard_normal((2, 3, 6, 6)).astype(np.float32)
ROWS = RANDOM.standard_normal((4, 5)).astype(np.float32)
SERIES = RANDOM.standard_normal((5, 2, 3)).astype(np.float32)
PADS = [0, 0, 1, 2, 0, 0, 3, 1]
BANK = RANDOM.standard_normal((3, 4, 3, 3)).astype(np.float32)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def norm(*shape: int) -> tuple[Array, ...]:
    return tuple(RANDOM.uniform(0.5, 2, shape).astype(np.float32) for _ in range(4))


def recurrent(gates: int) -> tuple[Array, ...]:
    return tuple(RANDOM.standard_normal(shape).astype(np.float32) for shape in ((1, gates * 4, 3), (1, gates * 4, 4)))


# operator, its opsets, what stands behind the data, attributes; "outputs" is how many are looked at
CASES: list[tuple[str, tuple[int, ...], Array, tuple[Array, ...], dict[str, Any]]] = [
    *[
        ("Upsample", (7, 8), MAP, (), {"mode": mode, "scales": list(scales)})
        for mode in ("nearest", "linear")
        for scales in ((1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 1.7, 2.3))
    ],
    *[("Upsample", (9,), MAP, (floats(1, 1, 2, 1.7),), {"mode": mode}) for mode in ("nearest", "linear")],
    *[
        ("Resize", (10,), MAP, (floats(1, 1, *scales),), {"mode": mode})
        for mode in ("nearest", "linear")
        for scales in ((2, 2), (0.5, 0.5), (1.7, 2.3), (0.7, 0.4), (1.7, 0.6))
    ],
    *[
        ("Resize", (11, 13), MAP, (floats(), floats(1, 1, 0.6, 1.7)), {"mode": "nearest", "nearest_mode": nearest})
        for nearest in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ],
    *[
        (op, (7, 11, 12), MAP, (), {"axis": axis})
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for axis in (0, 1, 2, 3)
    ],
    *[(op, (11, 12), MAP, (), {"axis": -3}) for op in ("Softmax", "LogSoftmax", "Hardmax")],
    ("Hardmax", (7, 12), MAP, (), {}),
    ("BatchNormalization", (7, 8, 9, 14), MAP, norm(3), {"epsilon": 0.1}),
    ("BatchNormalization", (7, 8), MAP, norm(3), {"spatial": 1}),
    ("BatchNormalization", (7, 8), MAP, norm(3, 6, 6), {"spatial": 0, "epsilon": 0.1}),
    ("Dropout", (7, 10), MAP, (), {"ratio": 0.3}),
    ("Dropout", (12,), MAP, (), {"outputs": 2}),
    ("Dropout", (7, 10), MAP, (), {"outputs": 2}),
    ("Pad", (7, 10), MAP, (), {"pads": PADS, "value": 1.5}),
    ("Pad", (7, 10), MAP, (), {"pads": PADS, "mode": "reflect"}),
    ("Pad", (11, 13), MAP, (whole(*PADS), np.float32(2)), {}),
    ("Slice", (7, 9), MAP, (), {"starts": [1, 0], "ends": [3, 100], "axes": [2, 3]}),
    ("Slice", (10, 11), MAP, (whole(5), whole(0), whole(2), whole(-2)), {}),
    ("Clip", (7, 10), MAP, (), {"min": -0.5, "max": 0.6}),
    ("Clip", (11,), MAP, (np.float32(-0.3),), {}),
    ("TopK", (7, 9), ROWS, (), {"k": 2, "axis": 0, "outputs": 2}),
    ("TopK", (10,), ROWS, (whole(2),), {"outputs": 2}),
    ("AveragePool", (7, 10, 11), MAP, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", (7, 10, 11), MAP, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("AveragePool", (10, 11), MAP, (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", (7, 8, 10, 11), MAP, (), {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("MaxPool", (10, 11), MAP, (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("Gemm", (7, 9, 11), ROWS, (ROWS, floats(1, 2, 3, 4)), {"transB": 1, "beta": 0.5}),
    *[(op, (7, 13), MAP, (floats(1, 2, 3, 4, 5, 6),), {}) for op in ("Add", "Mul", "Sub", "Div", "Pow")],
    ("PRelu", (7, 9), MAP, (floats(0.1, 0.2, 0.3).reshape(3, 1, 1),), {}),
    ("Split", (7, 11), MAP, (), {"axis": 2, "split": [2, 4], "outputs": 2}),
    ("Split", (7, 11, 13), MAP, (), {"axis": 2, "outputs": 3}),
    ("Squeeze", (7, 11), MAP[:1], (), {"axes": [0]}),
    ("Unsqueeze", (7, 11), ROWS, (), {"axes": [0, 2]}),
    *[
        (f"Reduce{what}", (7, 11, 12), np.abs(MAP), (), {"axes": [1, 3], "keepdims": keep})
        for what in ("Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "LogSum", "LogSumExp", "SumSquare")
        for keep in (0, 1)
    ],
    ("ReduceMean", (13,), MAP, (), {"axes": [-1]}),
    ("ArgMax", (7, 11, 12), MAP, (), {"axis": 1, "keepdims": 0}),
    ("Flatten", (7, 9, 11), MAP, (), {"axis": 2}),
    ("Cast", (7, 9), MAP, (), {"to": 7}),
    ("ConvTranspose", (7, 11), MAP, (BANK,), {"strides": [2, 2], "output_padding": [1, 1]}),
    ("ConvTranspose", (7, 11), MAP, (BANK,), {"strides": [2, 2], "output_shape": [12, 12]}),
    ("GroupNormalization", (18,), MAP[:, :2], (floats(1), floats(0.3)), {"num_groups": 1}),
    ("GRU", (7, 13), SERIES, recurrent(3), {"hidden_size": 4, "linear_before_reset": 1, "outputs": 2}),
    ("LSTM", (7, 13), SERIES, recurrent(4), {"hidden_size": 4, "direction": "reverse", "outputs": 2}),
    ("RNN", (7, 13), SERIES, recurrent(1), {"hidden_size": 4, "clip": 0.5, "outputs": 2}),
    ("DFT", (17,), SERIES[:, :, :1], (), {"axis": 1, "onesided": 1}),
    ("GridSample", (16,), MAP, (RANDOM.uniform(-1, 1, (2, 4, 4, 2)).astype(np.float32),), {"mode": "bicubic"}),
    ("RoiAlign", (10, 16), MAP, (floats(0, 0, 4, 4).reshape(1, 4), whole(1)), {"output_height": 2, "mode": "max"}),
    ("Compress", (9,), ROWS, (np.array([True, False, True, False]),), {"axis": 0}),  # how many rows is open
]


def one_node(op: str, opset: int, x: Array, rest: tuple[Array, ...], attributes: dict[str, Any]) -> ModelProto:
    names = [f"input_{position}" for position in range(len(rest))]
    given = {name: value for name, value in attributes.items() if name != "outputs"}
    made = [f"y{position}" for position in range(attributes.get("outputs", 1))]
    first = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], made, "node", **given)],
        "g",
        [first],
        [onnx.ValueInfoProto(name=name) for name in made],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in zip(names, rest)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("target", [18, 21])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[-1].values()))}")
def test_an_old_operator_keeps_its_meaning(case: Any, target: int) -> None:
    op, opsets, x, rest, attributes = case
    for opset in opsets:
        old = one_node(op, opset, x, rest, attributes)
        graph = prepare(old, target)
        assert graph.opset == (18 if op == "GroupNormalization" else target)
        expected, outputs = (Session(m, level="off", threads=1).run({"x": x}) for m in (old, to_model(graph)))
        for name, values in expected.items():
            assert outputs[name].dtype == values.dtype
            np.testing.assert_allclose(outputs[name], values, rtol=1e-5, atol=1e-6)  # float32, sums in any order


def test_subgraphs_are_raised_too(model_of: Build) -> None:
    model = model_of(
        """g (float[2,3,4,4] x, bool c) => (float[2,3] y) {
            y = If(c) <then_branch = p () => (float[2,3] t) { s = ReduceMean<axes=[2,3]>(x)
                                                                        t = Squeeze<axes=[2,3]>(s) },
                       else_branch = q () => (float[2,3] e) { r = ReduceMax<axes=[2,3], keepdims=0>(x)
                                                                        e = Hardmax<axis=0>(r) }>
        }""",
        opset=10,
    )
    x = MAP[:, :, :4, :4]
    for which in (False, True):
        feeds = {"x": x, "c": np.array(which)}
        expected, made = (Session(m, threads=1).run(feeds)["y"] for m in (model, to_model(prepare(model, 18))))
        np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_upsample_between_other_nodes(model_of: Build) -> None:
    text = """g (float[1,3,6,6] x) => (float[1,3,12,12] y) {
        scales = Constant<value = float[4] {1, 1, 2, 2}>()
        a = Relu(x) u = Upsample<mode="linear">(a, scales) y = Neg(u) }"""
    model = model_of(text, opset=9)
    expected, made = (Session(m, threads=1).run({"x": MAP[:1]})["y"] for m in (model, to_model(prepare(model, 18))))
    np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_scan_of_opset_8_runs_sample_by_sample(model_of: Build) -> None:
    model = model_of(
        """g (float[2,3] s0, float[2,5,3] t) => (float[2,3] s, float[2,5,3] all, float[2,3,2,2] u) {
            s, all = Scan(, s0, t) <num_scan_inputs=1, directions=[1],
                body = step (float[3] before, float[3] e) => (float[3] n, float[3] o) {
                    v = Add(e, before) n = Tanh(v) o = Softmax<axis=0>(n) }>
            shape = Constant<value = int64[4] {2, 3, 1, 1}>()
            f = Reshape(s, shape)
            u = Upsample<mode="linear", scales=[1.0,1.0,2.0,2.0]>(f) }""",
        opset=8,
    )
    feeds = {"s0": MAP[:, :, 0, 0], "t": SERIES.transpose(1, 0, 2).copy()}
    expected, made = (Session(m, threads=1).run(feeds) for m in (model, to_model(prepare(model, 18))))
    for name in ("s", "all", "u"):
        np.testing.assert_allclose(made[name], expected[name], rtol=1e-6)


def test_an_opset_that_cannot_be_converted_is_said_in_one_line(model_of: Build) -> None:
    with pytest.raises(InputError, match=r"opset 1 is too old and cannot be converted to 18: .*; export") as error:
        prepare(model_of("g (float[2] x) => (float[2] y) { y = ScaledTanh<alpha=2.0, beta=0.5>(x) }", opset=1), 18)
    assert "/" not in error.value.what


def test_a_newer_opset_is_lowered_to_one_with_kernels(model_of: Build) -> None:
    newest = newest_opset()
    model = model_of("g (float[N,3] x) => (float[3,N] y) { a = Softmax(x) y = Transpose<perm=[1,0]>(a) }", opset=newest)
    graph = prepare(model, 18, newest - 1)
    assert graph.opset == newest - 1
    x = ROWS[:, :3]
    np.testing.assert_array_equal(
        Session(to_model(graph), threads=1).run({"x": x})["y"], Session(model, threads=1).run({"x": x})["y"]
    )


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 24, reason="this onnx does not know Swish")
def test_an_operator_that_is_too_new_is_named(model_of: Build) -> None:
    model = model_of("g (float[N,3] x) => (float[N,3] y) { y = Swish(x) }", opset=24)
    with pytest.raises(InputError, match=r"up to opset 23, .*24 cannot be converted to it: .*Swish.*; export"):
        prepare(model, 18, 23)


def test_a_conversion_to_the_same_opset_changes_nothing(model_of: Build) -> None:
    model = model_of("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=18)
    assert [node.op_type for node in converted(model, 18).graph.node] == ["Relu"]


def test_a_model_of_other_domains_alone_needs_no_conversion() -> None:
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 2)], ir_version=8)
    done = Session(to_model(prepare(model, 18)), level="off", threads=1).run({"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(done["y"], np.zeros((2, 3), np.float32))
