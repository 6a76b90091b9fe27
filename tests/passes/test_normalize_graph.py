"""NormalizeGraph: every rewrite applies, declines where it must, and keeps the function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from layer_graphs import ROWS, AsQModel, Build, Same
from onnx import ModelProto
from rewrites import DYNAMIC, OPSETS, REWRITES

from qcompile.ir.canonical import CANONICAL
from qcompile.ir.load import load_model, to_model
from qcompile.ir.simplify import SIMPLIFY
from qcompile.ir.verify import verify
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites(name: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    text, shapes, expected = REWRITES[name]
    source = model_of(text, opset=OPSETS.get(name, 18))
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == expected.split()
    verify(model.graph, after="normalize-graph")
    same_outputs(source, model.graph, shapes)  # 1e-5: a few float32 roundings
    assert NormalizeGraph().run(model) == 0


def test_every_rule_is_seen_at_work(model_of: Build, as_qmodel: AsQModel) -> None:
    seen: set[str] = set()
    for name, (text, _, _) in REWRITES.items():
        model = as_qmodel(model_of(text, opset=OPSETS.get(name, 18)))
        NormalizeGraph().run(model)
        seen |= {entry["what"] for entry in model.journal.by("normalize-graph")}
    assert {item.name for item in (*SIMPLIFY, *CANONICAL)} <= seen


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("op", ["Conv<", "MaxPool<kernel_shape = [2,3], ", "AveragePool<kernel_shape = [2,3], "])
def test_auto_pad_becomes_pads(
    op: str, stride: int, mode: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    weight = ", W" if op.startswith("Conv") else ""
    source = model_of(
        f'g (float[N,4,11,8] x, float[5,4,2,3] W) => (float[N,C,P,Q] y)'
        f'{{ y = {op} strides = [{stride},{stride}], auto_pad = "{mode}">(x{weight}) }}'
    )  # fmt: skip
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert "auto_pad" not in model.graph.nodes[0].attrs
    assert model.graph.nodes[0].attrs["kernel_shape"] == [2, 3]
    same_outputs(source, model.graph, [{"x": (1, 4, 11, 8)}, {"x": (2, 4, 11, 8)}])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", ["11,8", "H,W2"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pads_of_a_dilated_pool_are_those_of_the_runtime(
    op: str, size: str, mode: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(
        f"g (float[N,4,{size}] x) => (float[N,C,P,Q] y)"
        f'{{ y = {op}<kernel_shape = [2,3], dilations = [2,2], auto_pad = "{mode}">(x) }}',
        opset=19,
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    front, behind = ((0, 1), (1, 1)) if mode == "SAME_UPPER" else ((1, 1), (0, 1))
    assert model.graph.nodes[0].attrs["pads"] == [*front, *behind]  # kernel - 1 in all: dilation does not count
    same_outputs(source, model.graph, [{"x": (1, 4, 11, 8)}, {"x": (2, 4, 11, 8)}])


@pytest.mark.parametrize(("stride", "left"), [(1, False), (2, True)])
def test_auto_pad_of_a_dynamic_map_is_resolved_at_stride_one_only(
    stride: int, left: bool, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(
        "g (float[N,4,H,W2] x, float[5,4,3,3] W) => (float[N,5,P,Q] y)"
        f'{{ y = Conv<strides = [{stride},{stride}], auto_pad = "SAME_UPPER">(x, W) }}'
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert ("auto_pad" in model.graph.nodes[0].attrs) == left
    same_outputs(source, model.graph, DYNAMIC)


def test_gemm_ends_plain(model_of: Build, as_qmodel: AsQModel) -> None:
    model = as_qmodel(model_of(REWRITES["Gemm factors"][0]))
    NormalizeGraph().run(model)
    gemm = model.graph.nodes[0]
    assert (gemm.attrs["alpha"], gemm.attrs["beta"], list(gemm.inputs[2].shape)) == (1.0, 1.0, [4])


def test_names_are_unique_and_the_exporters_own_stay(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,6] x) => (float[N,6] y) { [first] a = Relu(x) b = Neg(a) [first] c = Exp(b) [b] y = Abs(c) }"
    )
    model = as_qmodel(source)
    assert NormalizeGraph().run(model) == 2
    assert [node.name for node in model.graph.nodes] == ["first", "b_2", "first_2", "b"]


def test_nodes_out_of_order_are_sorted(model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = model_of("g (float[N,6] x) => (float[N,6] y) { a = Relu(x) b = Exp(a) y = Neg(b) }")
    model = as_qmodel(source)
    model.graph.nodes = list(reversed(model.graph.nodes))
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["Relu", "Exp", "Neg"]


def test_equal_constants_are_shared_and_shared_ones_stay_shared(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,6] x) => (float[N,6] y, float[N,6] z) <float a = {2}, float b = {2}>{ y = Mul(x, a) z = Pow(x, b) }"
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert model.graph.nodes[0].inputs[1] is model.graph.nodes[1].inputs[1]


# --- what is left alone

CONTROL_FLOW = """g (float[N,6] x, bool flag) => (float[N,6] y) <float three = {3}, float[6] row = {1,2,3,4,5,6}> {
    a = Identity(x)  b = Relu(a)  c = Identity(b)  d = Constant<value = float {0.5}>()  e = Identity(d)
    t = If(flag) <
        then_branch = then () => (float[N,6] u) { v = Identity(c)  u = Mul(v, e) },
        else_branch = other () => (float[N,6] w) { q = Add(c, three)  w = Add(q, row) }
    >
    y = Identity(t)
}"""


@pytest.mark.parametrize("flag", [True, False])
def test_subgraphs_keep_reading_outer_tensors(flag: bool, model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(CONTROL_FLOW)
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["Relu", "If"]
    assert [node.op for node in model.graph.nodes[1].attrs["then_branch"].nodes] == ["Identity", "Mul"]
    assert same_with_flag(source, model, flag)
    assert NormalizeGraph().run(model) == 0


def test_a_layer_read_only_inside_a_subgraph_is_not_merged_with_its_reader(
    model_of: Build, as_qmodel: AsQModel
) -> None:
    source = model_of(
        """g (float[N,6] x, bool flag, float[6,6] W, float[6] B) => (float[N,6] y) {
            m = MatMul(x, W)
            y = If(flag) <
                then_branch = then () => (float[N,6] u) { u = Add(m, B) },
                else_branch = other () => (float[N,6] w) { w = Relu(x) }
            >
        }"""
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["MatMul", "If"]
    assert same_with_flag(source, model, True)


def same_with_flag(source: ModelProto, model: QModel, flag: bool) -> bool:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32), "flag": np.array(flag)}
    before, after = (Session(item, threads=1).run(feeds)["y"] for item in (source, to_model(model.graph)))
    return bool(np.array_equal(before, after))


def test_loops_sequences_and_optionals_survive(model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = model_of(
        """g (float[N,6] x) => (float[N,6] y) <int64 n = {3}, bool go = {1}, int64 first = {0}> {
            i = Identity(x)
            s = SequenceConstruct(i, i)
            a = SequenceAt(s, first)
            o = Optional<type = float[N,6]>(a)
            b = OptionalGetElement(o)
            y = Loop(n, go, b) <body = body (int64 k, bool c, float[N,6] v) => (bool d, float[N,6] w) {
                d = Identity(c)  p = Add(v, i)  w = Relu(p)
            }>
        }"""
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    expected = ["SequenceConstruct", "SequenceAt", "Optional", "OptionalGetElement", "Loop"]
    assert [node.op for node in model.graph.nodes] == expected
    same_outputs(source, model.graph, ROWS)


def test_sequences_and_strings_at_the_interface_survive(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N] x, string[1] t) => (seq(float[N]) y, optional(float[N]) z, string[1] r)"
        "{ y = SequenceConstruct(x, x) z = Optional(x) r = Identity(t) }"
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    found = to_model(model.graph)
    onnx.checker.check_model(found, full_check=True)
    assert [item.type for item in found.graph.output] == [item.type for item in source.graph.output]


def test_custom_operators_are_left_alone(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,6] x) => (float[N,6] y) <float z = {0}, float o = {1}>"
        "{ c = custom.Identity(z)  a = Add(x, c)  b = custom.Mul(a, o)  y = Add(b, z) }"
    )
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["Identity", "Add", "Mul"]


def test_random_numbers_are_not_folded(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of("g (float[2] x) => (float[2] y) { r = RandomNormal<shape = [2]>() y = Add(x, r) }")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert [node.op for node in model.graph.nodes] == ["RandomNormal", "Add"]


# --- real models


def count(model: QModel, op: str) -> int:
    return sum(node.op == op for node in model.graph.nodes)


def test_resnet20(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "resnet20.onnx")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    kinds = {node.op for node in model.graph.nodes}
    assert kinds == {
        "Conv",
        "BatchNormalization",
        "Relu",
        "Add",
        "Slice",
        "Pad",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }
    same_outputs(source, model.graph, [{"image": (1, 3, 32, 32)}, {"image": (3, 3, 32, 32)}])


def test_efficientnet(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "efficientnet_lite0.onnx")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    kinds = {node.op for node in model.graph.nodes}
    assert kinds == {"Conv", "BatchNormalization", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    same_outputs(source, model.graph, [{"image": (2, 3, 224, 224)}])


def test_ppocr(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "ppocr_v4_det.onnx")
    sigmoid = next(node for node in source.graph.node if node.op_type == "Sigmoid")
    source.graph.output[0].name = sigmoid.input[0]  # compare logits: the sigmoid saturates on noise
    source.graph.node.remove(sigmoid)
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    assert count(model, "HardSwish") == 24
    assert count(model, "Clip") == count(model, "Div") == 0
    same_outputs(
        source, model.graph, [{"x": (1, 3, 64, 96)}, {"x": (2, 3, 96, 64)}], rtol=1e-4
    )  # 62 layers of rounding


def test_what_holds_nothing_is_left_out(model_of: Build, as_qmodel: AsQModel) -> None:
    model = as_qmodel(model_of(REWRITES["region of interest that holds nothing"][0]))
    NormalizeGraph().run(model)
    assert [tensor.name for tensor in model.graph.nodes[0].inputs] == ["x", "", "s"]
