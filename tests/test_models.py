"""Models of odd kinds, end to end: each compiles, keeps its inputs and outputs, and computes what it did before."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, TensorProto

import qcompile
from qcompile import Config, InputError, Result
from qcompile.cli import main
from qcompile.ir import node_proto
from qcompile.ir.prepare import prepare
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

Build = Callable[..., ModelProto]
Feeds = Mapping[str, NDArray[Any]]
LEAST_SQNR = 25.0  # dB: 8 bits throughout give 30 to 40 on random weights; a wrong graph gives about 0


def images(count: int, seed: int = 1) -> Feeds:
    return {"x": np.random.default_rng(seed).uniform(-1, 1, (count, 3, 8, 8)).astype(np.float32)}


def compiled(model: ModelProto, data: Feeds, **settings: Any) -> Result:
    result = qcompile.compile(model, Config(threads=1, **settings), data)
    onnx.checker.check_model(result.model)
    assert [item.name for item in result.model.graph.output] == [item.name for item in model.graph.output]
    return result


def assert_agrees(model: ModelProto, result: Result, feeds: Feeds, least: float = LEAST_SQNR) -> None:
    expected, found = Session(model, threads=1).run(feeds), Session(result.model, threads=1).run(feeds)
    for name, exact in expected.items():
        noise = np.square(exact - found[name]).sum() / max(np.square(exact).sum(), 1e-30)
        assert exact.shape == found[name].shape
        assert -10 * np.log10(max(noise, 1e-30)) > least, name


CONTROL_FLOW = {
    "a loop reads codes": """g (float[N,3,8,8] x, float[4,3,3,3] W, float[4,4,3,3] V) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, W)  k = Relu(a)  b = Conv<pads=[1,1,1,1]>(k, V)
        n = Constant<value = int64 {9}>()  t = Constant<value = bool {1}>()  one = Constant<value = int64 {1}>()
        l = Loop(n, t, b)<body = g1 (int64 i, bool go, float[N,4,8,8] c) => (bool on, float[N,4,8,8] s) {
            on = Less(i, one)  h = Conv<pads=[1,1,1,1]>(c, V)  s = Add(h, k)
        }>
        y = Conv<pads=[1,1,1,1]>(l, V)
    }""",
    "a loop alone reads it": """g (float[N,3,8,8] x, float[4,3,3,3] W) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, W)  k = Relu(a)  z = Neg(k)
        n = Constant<value = int64 {2}>()  t = Constant<value = bool {1}>()
        y = Loop(n, t, z)<body = g1 (int64 i, bool go, float[N,4,8,8] c) => (bool on, float[N,4,8,8] s) {
            on = Identity(go)  s = Add(c, k)
        }>
    }""",
    "only branches read it": """g (float[N,3,8,8] x, float[4,3,3,3] W, float[4,4,1,1] V) => (float[N,4,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, W)  r = Relu(a)
        m = ReduceMax<keepdims = 0>(x)  o = Constant<value = float {100.0}>()  c = Greater(o, m)
        b = If(c)<
            then_branch = g1 () => (float[N,4,8,8] p) {
                p = If(c)<then_branch = g2 () => (float[N,4,8,8] q) { q = Identity(r) },
                          else_branch = g3 () => (float[N,4,8,8] s) { s = Neg(r) }>
            },
            else_branch = g4 () => (float[N,4,8,8] u) { u = Abs(r) }>
        y = Conv(b, V)
    }""",
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("text", CONTROL_FLOW.values(), ids=CONTROL_FLOW)
def test_subgraphs_read_what_runs_on_integers(model_of: Build, text: str, bits: int) -> None:
    model = model_of(text)
    result = compiled(model, images(24), w=bits, a=bits, first_last_bits=bits)
    for count in (1, 3):
        # 4 bits on three untrained layers: measured 12 to 20 dB
        assert_agrees(model, result, images(count, seed=2), least=LEAST_SQNR if bits == 8 else 8.0)
    reasons = {node["op"]: node["reason"] for node in result.report["nodes"] if node["form"] == "float"}
    assert "control flow" in reasons.get("Loop", reasons.get("If", ""))


def test_a_clip_whose_input_a_subgraph_reads_too_is_not_absorbed(model_of: Build) -> None:
    model = model_of("""g (float[N,3,8,8] x, float[4,3,1,1] W, float[4,4,1,1] V) => (float[N,4,8,8] y) {
        a = Conv(x, W)  r = Relu(a)  b = Conv(r, V)
        n = Constant<value = int64 {1}>()  t = Constant<value = bool {1}>()
        y = Loop(n, t, b)<body = g1 (int64 i, bool go, float[N,4,8,8] c) => (bool on, float[N,4,8,8] s) {
            on = Identity(go)  s = Add(c, a)
        }>
    }""")
    result = compiled(model, images(24))
    assert result.plan.form("r") == "codes"
    assert_agrees(model, result, images(2, seed=2))


@pytest.mark.parametrize("name", ["C", "W"])
def test_an_initializer_may_be_an_output(model_of: Build, name: str) -> None:
    model = model_of(
        "g (float[N,3,8,8] x, float[4,3,3,3] W, float[4] C) => (float[N,4,6,6] y) { a = Conv(x, W, C)  y = Add(a, a) }"
    )
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    result = compiled(model, images(12))
    (weight,) = [item for item in model.graph.initializer if item.name == name]
    found = Session(result.model, threads=1).run(images(1))[name]
    np.testing.assert_array_equal(found, onnx.numpy_helper.to_array(weight))


def test_a_sequence_may_be_an_output(model_of: Build) -> None:
    model = model_of("""g (float[N,3,8,8] x, float[4,3,1,1] W) => (seq(float[N,4,8,8]) s) {
        a = Conv(x, W)  s = SequenceConstruct(a, a)
    }""")
    result = compiled(model, images(12))
    assert result.model.graph.output[0].type.HasField("sequence_type")
    (found,) = result.report["audit"]["agreement"]["outputs"].values()
    assert found["sqnr_db"] > 30


def rows(count: int, seed: int = 1) -> Feeds:
    return {"x": np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)}


def test_the_rows_of_an_output_may_depend_on_the_data(model_of: Build) -> None:
    model = model_of("""g (float[N,6] x, float[6,6] W) => (int64[2,M] z, float[M] y) {
        a = MatMul(x, W)  r = Relu(a)  z = NonZero(r)  t = Transpose<perm = [1,0]>(z)  y = GatherND(r, t)
    }""")
    result = compiled(model, rows(300), w=2, a=2, first_last_bits=2)
    (warning,) = [text for text in result.report["warnings"] if "another shape" in text and "'z'" in text]
    assert "not compared there" in warning


def test_layers_behind_a_selection_of_rows_are_corrected_where_the_rows_are_the_same(model_of: Build) -> None:
    text = """g (float[N,6] x, float[6,6] W, float[6,6] V, float[6] B) => (float[M,6] y) {
        last = Constant<value = int64[1] {1}>()  least = Constant<value = float {1.5}>()
        a = Gemm(x, W, B)  m = ReduceMax<keepdims = 0>(a, last)  c = Greater(m, least)
        k = Compress<axis = 0>(a, c)  r = Relu(k)  e = Gemm(r, V, B)  q = Relu(e)  y = MatMul(q, V)
    }"""
    result = compiled(model_of(text), rows(40), w=4, a=4, first_last_bits=4, batch=1)
    assert all(np.isfinite(bias).all() for bias in result.plan.biases.values())


def test_names_that_look_like_those_of_calibration(model_of: Build) -> None:
    model = model_of("""g (float[N,3,8,8] x, float[4,3,1,1] W, float[4,4,1,1] V) => (float[N,4,8,8] y) {
        a = Conv(x, W)  b = Relu(a)  y = Conv(b, V)
    }""")
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "x/ReduceMax"
    assert_agrees(model, compiled(model, images(12)), images(2, seed=2))


def test_shapes_behind_a_custom_operator_come_from_a_traced_run(model_of: Build) -> None:
    model = model_of("""g (float[N,T,6] x, float[6,8] W) => (float[N,T,8] y) {
        a = com.microsoft.Gelu(x)  b = MatMul(a, W)  y = Relu(b)
    }""")
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for result in (qcompile.plan_only(model), compiled(model, {"x": np.ones((4, 5, 6), np.float32)})):
        shapes = {tensor.name: tensor.shape for node in result.qmodel.graph.nodes for tensor in node.outputs}
        assert [len(shape) for shape in shapes.values()] == [3] * len(shapes)


def test_attributes_that_the_graph_library_drops_stay_in_a_single_node() -> None:
    empty = onnx.helper.make_node("Optional", [], ["o"])
    attribute = empty.attribute.add(name="type", type=AttributeProto.TYPE_PROTO)
    attribute.tp.tensor_type.elem_type = TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [empty, onnx.helper.make_node("OptionalHasElement", ["o"], ["y"])],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("y", TensorProto.BOOL, [])],
    )
    node = prepare(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), 18).nodes[0]
    assert node_proto(node, [], ["o"]).attribute[0] == attribute


def test_a_concat_whose_inputs_are_narrow_elsewhere(model_of: Build) -> None:
    model = model_of("""
    g (float[N,3,8,8] x, float[4,3,1,1] W, float[4,4,1,1] V, float[4,8,1,1] U) => (float[N,4,8,8] y) {
        a = Conv(x, W)  b = Relu(a)  c = Conv(b, V)  d = Relu(c)
        e = Concat<axis = 1>(b, b)  f = GlobalAveragePool(e)  g = Conv(f, U)  h = Add(g, d)  y = Conv(h, V)
    }""")
    result = compiled(model, images(24), w=4, a=4)
    assert result.plan.specs[result.plan.key("b", "c")].bits == 4


def test_the_integer_reference_takes_scalars_and_subgraphs(model_of: Build) -> None:
    model = model_of("""g (float[N,3,8,8] x, float[4,3,1,1] W, float[4,4,1,1] V) => (float[N,4,8,8] y) {
        a = Conv(x, W)  zero = Constant<value = float {0.0}>()  m = ReduceMax<keepdims = 0>(a)  b = Clip(a, zero, m)
        c = Greater(m, zero)
        d = If(c)<then_branch = g1 () => (float[N,4,8,8] p) { p = Div(b, m) },
                  else_branch = g2 () => (float[N,4,8,8] q) { q = Identity(b) }>
        y = Conv(d, V)
    }""")
    result = compiled(model, images(12))
    graph, plan = result.qmodel.graph, result.plan
    ours = simulate(graph, plan, "integer").run(images(2, seed=2))["y"]
    found = Session(result.model, level="off", threads=1).run(images(2, seed=2))["y"]
    np.testing.assert_array_equal(ours, found)


# --- models that are broken, and places that are no files


def cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[1].output[0]


def dangling(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "nothing"


def scalar_weight(model: ModelProto) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((), np.float32), model.graph.initializer[0].name)
    model.graph.initializer[0].CopyFrom(weight)


def short_weight(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:20]


def no_inputs(model: ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 3, 8, 8), np.float32), "x"))
    del model.graph.input[:]


@pytest.mark.parametrize("change", [cycle, dangling, scalar_weight, short_weight, no_inputs])
def test_a_broken_model_is_the_users_fault(model_of: Build, change: Callable[[ModelProto], object]) -> None:
    model = model_of("g (float[N,3,8,8] x, float[4,3,1,1] W) => (float[N,4,8,8] y) { a = Conv(x, W)  y = Relu(a) }")
    change(model)
    with pytest.raises(InputError) as caught:
        qcompile.compile(model, Config(threads=1), images(4))
    assert "\n" not in str(caught.value) and "onnxruntime_src" not in str(caught.value)


def test_a_device_is_no_output(residual_model: ModelProto, residual_data: Feeds, tmp_path: Path) -> None:
    device = tmp_path / "pipe"
    os.mkfifo(device)
    result = qcompile.compile(residual_model, Config(threads=1), residual_data)
    for arguments in ({"path": device}, {"path": tmp_path / "out.onnx", "report": device}):
        with pytest.raises(InputError, match="not a file"):
            result.save(**arguments)
    assert device.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-o", "calib.npz"], "overwrite the data"),
        (["-o", "out.onnx", "--report", "./calib.npz"], "overwrite the data"),
        (["-o", "plan.npz", "--load-plan", "plan.npz"], "overwrite the plan"),
        (["-o", "out.onnx", "--load-plan", "plan.npz", "--w", "4"], "--w has no effect"),
        (["-o", "out.onnx", "--load-plan", "plan.npz", "--precision", "w4a4"], "--precision has no effect"),
        (["-o", "out.onnx", "--load-plan", "plan.npz", "--keep-float", "a"], "--keep-float has no effect"),
    ],
)
def test_flags_that_would_do_harm_or_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in.onnx", "calib.npz", "plan.npz"):
        Path(name).write_text(name)
    with pytest.raises(SystemExit) as left:
        main(["in.onnx", "--data", "calib.npz", *arguments])
    assert left.value.code == 2
    assert text in capsys.readouterr().err
    assert all(Path(name).read_text() == name for name in ("in.onnx", "calib.npz", "plan.npz"))
