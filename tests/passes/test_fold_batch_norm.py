"""FoldBatchNorm: folds on both sides of a layer, declines with a reason, keeps the function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_graphs import MAP, ROWS, TOKENS, AsQModel, Build, Same
from onnx import ModelProto, numpy_helper

from qcompile.ir.load import load_model
from qcompile.ir.verify import verify
from qcompile.passes.fold_batch_norm import FoldBatchNorm
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.qmodel import QModel

NORM4 = "float[4] G, float[4] B, float[4] M, float[4] V"
NORM6 = "float[6] G, float[6] B, float[6] M, float[6] V"
NORM8 = "float[8] G, float[8] B, float[8] M, float[8] V"
IMAGE = "g (float[N,4,H,W2] x"
ZERO_SHIFT = {"B": 0.0, "M": 0.0}

# name: graph, inputs to compare on, operators afterwards
FOLDS = {
    "behind Conv": (
        f"{IMAGE}, float[6,4,3,3] W, float[6] C, {NORM6}) => (float[N,6,P,Q] y)"
        "{ a = Conv<pads = [1,1,1,1]>(x, W, C) y = BatchNormalization(a, G, B, M, V) }", MAP, "Conv"),
    "behind depthwise Conv without bias": (
        f"{IMAGE}, float[8,1,3,3] W, {NORM8}) => (float[N,8,P,Q] y)"
        "{ a = Conv<group = 4>(x, W) y = BatchNormalization(a, G, B, M, V) }", MAP, "Conv"),
    "behind grouped ConvTranspose": (
        f"{IMAGE}, float[4,3,2,2] W, {NORM6}) => (float[N,6,P,Q] y)"
        "{ a = ConvTranspose<group = 2, strides = [2,2], pads = [1,0,0,1]>(x, W)"
        " y = BatchNormalization(a, G, B, M, V) }",
        MAP, "ConvTranspose"),
    "behind Gemm": (
        f"g (float[N,6] x, float[4,6] W, float[4] C, {NORM4}) => (float[N,4] y)"
        "{ a = Gemm<transB = 1>(x, W, C) y = BatchNormalization(a, G, B, M, V) }", ROWS, "Gemm"),
    "behind Gemm, not transposed": (
        f"g (float[N,6] x, float[6,4] W, {NORM4}) => (float[N,4] y)"
        "{ a = Gemm(x, W) y = BatchNormalization(a, G, B, M, V) }", ROWS, "Gemm"),
    "behind MatMul": (
        f"g (float[N,6] x, float[6,4] W, {NORM4}) => (float[N,4] y)"
        "{ a = MatMul(x, W) y = BatchNormalization(a, G, B, M, V) }", ROWS, "Gemm"),
    "behind a layer with two readers: stays": (
        f"{IMAGE}, float[4,4,1,1] W, {NORM4}) => (float[N,4,P,Q] y)"
        "{ a = Conv(x, W) b = BatchNormalization(a, G, B, M, V) y = Add(a, b) }", MAP, "Conv BatchNormalization Add"),
    "behind a layer whose result is an output: stays": (
        f"{IMAGE}, float[4,4,1,1] W, {NORM4}) => (float[N,4,P,Q] y, float[N,4,R,S] a)"
        "{ a = Conv(x, W) y = BatchNormalization(a, G, B, M, V) }", MAP, "Conv BatchNormalization"),
    "behind a layer with computed weights: stays": (
        f"{IMAGE}, float[4,4,1,1] w, {NORM4}) => (float[N,4,P,Q] y)"
        "{ a = Conv(x, w) y = BatchNormalization(a, G, B, M, V) }",
        [{"x": (1, 4, 6, 5), "w": (4, 4, 1, 1)}], "Conv BatchNormalization"),
    "before Conv without padding": (
        f"{IMAGE}, float[6,2,3,3] W, float[6] C, {NORM4}) => (float[N,6,P,Q] y)"
        "{ a = BatchNormalization(x, G, B, M, V) y = Conv<group = 2>(a, W, C) }", MAP, "Conv"),
    "before Conv with padding: stays": (
        f"{IMAGE}, float[6,4,3,3] W, {NORM4}) => (float[N,6,P,Q] y)"
        "{ a = BatchNormalization(x, G, B, M, V) y = Conv<pads = [0,1,0,1]>(a, W) }", MAP, "BatchNormalization Conv"),
    "before ConvTranspose: stays": (
        f"{IMAGE}, float[4,3,2,2] W, {NORM4}) => (float[N,6,P,Q] y)"
        "{ a = BatchNormalization(x, G, B, M, V) y = ConvTranspose<group = 2, strides = [2,2]>(a, W) }",
        MAP, "BatchNormalization ConvTranspose"),
    "Mul before grouped ConvTranspose": (
        f"{IMAGE}, float[4,3,3,3] W, float[4,1,1] A) => (float[N,6,P,Q] y)"
        "{ a = Mul(x, A) y = ConvTranspose<group = 2, strides = [2,2]>(a, W) }", MAP, "ConvTranspose"),
    "before two layers": (
        f"{IMAGE}, float[6,4,1,1] W, float[6,4,1,1] U, {NORM4}) => (float[N,6,P,Q] y, float[N,6,R,S] z)"
        "{ a = BatchNormalization(x, G, B, M, V) y = Conv(a, W) z = Conv(a, U) }", MAP, "Conv Conv"),
    "before two layers that share their weight": (
        f"{IMAGE}, float[6,4,1,1] W, {NORM4}) => (float[N,6,P,Q] y, float[N,6,R,S] z)"
        "{ a = BatchNormalization(x, G, B, M, V) y = Conv(a, W) z = Conv(x, W) }", MAP, "Conv Conv"),
    "before a layer and something else: stays": (
        f"{IMAGE}, float[6,4,1,1] W, {NORM4}) => (float[N,6,P,Q] y, float[N,4,R,S] z)"
        "{ a = BatchNormalization(x, G, B, M, V) y = Conv(a, W) z = Relu(a) }", MAP, "BatchNormalization Conv Relu"),
    "before Gemm": (
        f"g (float[N,6] x, float[4,6] W, {NORM6}) => (float[N,4] y)"
        "{ a = BatchNormalization(x, G, B, M, V) y = Gemm<transB = 1>(a, W) }", ROWS, "Gemm"),
    "as the bias of Gemm: stays": (
        f"g (float[N,6] x, float[4,6] W, {NORM4}) => (float[N,4] y)"
        "{ b = Gemm<transB = 1>(x, W) r = Relu(b) a = BatchNormalization(r, G, B, M, V)"
        "  y = Gemm<transB = 1>(x, W, a) }", ROWS, "Gemm Relu BatchNormalization Gemm"),
    "between two layers goes to the front": (
        f"{IMAGE}, float[4,4,1,1] W, float[6,4,3,3] U, {NORM4}) => (float[N,6,P,Q] y)"
        "{ a = Conv(x, W) b = BatchNormalization(a, G, B, M, V) y = Conv<pads = [1,1,1,1]>(b, U) }", MAP, "Conv Conv"),
    "Mul and Add behind Conv": (
        f"{IMAGE}, float[6,4,1,1] W, float[6,1,1] A, float[1,6,1,1] B) => (float[N,6,P,Q] y) <float s = {{3}}>"
        "{ a = Conv(x, W) b = Mul(A, a) c = Add(b, B) d = Relu(c) y = Add(d, s) }", MAP, "Conv Relu Add"),
    "Mul per column behind Conv stays": (
        "g (float[N,4,6,6] x, float[6,4,1,1] W, float[6] A) => (float[N,6,6,6] y) { a = Conv(x, W) y = Mul(a, A) }",
        [{"x": (2, 4, 6, 6)}], "Conv Mul"),
    "Mul that broadcasts stays": (
        f"{IMAGE}, float[1,4,1,1] W, float[5,1,1] A) => (float[N,5,P,Q] y) {{ a = Conv(x, W) y = Mul(a, A) }}",
        MAP, "Conv Mul"),
    "Mul in front of a padded Conv": (
        f"{IMAGE}, float[6,4,3,3] W, float[4,1,1] A) => (float[N,6,P,Q] y)"
        "{ a = Mul(x, A) y = Conv<pads = [1,1,1,1]>(a, W) }", MAP, "Conv"),
    "Add in front of a padded Conv stays": (
        f"{IMAGE}, float[6,4,3,3] W, float[4,1,1] A) => (float[N,6,P,Q] y)"
        "{ a = Add(x, A) y = Conv<pads = [1,1,1,1]>(a, W) }", MAP, "Add Conv"),
    "Mul and Add in front of a padded Conv": (
        f"{IMAGE}, float[6,4,3,3] W) => (float[N,6,P,Q] y) <float[1] s = {{1.5}}, float[1] t = {{-0.25}}>"
        "{ a = Mul(x, s) b = Add(t, a) y = Conv<pads = [1,1,1,1]>(b, W) }", MAP, "Add Conv"),
    "Mul and Add read by a padded Conv and something else stay": (
        f"{IMAGE}, float[6,4,3,3] W) => (float[N,6,P,Q] y, float[N,4,R,S] z)"
        f" <float[1] s = {{1.5}}, float[1] t = {{-0.25}}>"
        "{ a = Mul(x, s) b = Add(t, a) y = Conv<pads = [1,1,1,1]>(b, W) z = Relu(b) }", MAP, "Mul Add Conv Relu"),
    "zero times x plus t in front of a padded Conv stays": (
        f"{IMAGE}, float[6,4,3,3] W) => (float[N,6,P,Q] y) <float[1] s = {{0}}, float[1] t = {{-0.25}}>"
        "{ a = Mul(x, s) b = Add(t, a) y = Conv<pads = [1,1,1,1]>(b, W) }", MAP, "Mul Add Conv"),
    "Mul behind MatMul of rank 3": (
        "g (float[N,2,6] x, float[6,4] W, float[4] A, float[4] B) => (float[N,2,4] y)"
        "{ a = MatMul(x, W) b = Mul(a, A) y = Add(b, B) }", TOKENS, "MatMul Add"),
    "Mul in front of MatMul of rank 3": (
        "g (float[N,2,6] x, float[6,4] W, float[6] A) => (float[N,2,4] y) { a = Mul(x, A) y = MatMul(a, W) }",
        TOKENS, "MatMul"),
    "Mul by token in front of MatMul stays": (
        "g (float[N,2,6] x, float[6,4] W, float[2,1] A) => (float[N,2,4] y) { a = Mul(x, A) y = MatMul(a, W) }",
        TOKENS, "Mul MatMul"),
    "the half of a Gelu stays": (
        "g (float[N,2,6] x, float[6,4] W) => (float[N,2,4] y) <float r = {1.41421356}, float o = {1}, float h = {0.5}>"
        "{ d = Div(x, r) e = Erf(d) g = Add(e, o) p = Mul(x, g) m = Mul(p, h) y = MatMul(m, W) }",
        TOKENS, "Div Erf Add Mul Mul MatMul"),
    "training mode stays": (
        f"{IMAGE}, float[4,4,1,1] W, {NORM4}) => (float[N,4,P,Q] y)"
        "{ a = Conv(x, W) y, m, v = BatchNormalization<training_mode = 1>(a, G, B, M, V) }",
        MAP, "Conv BatchNormalization"),
}  # fmt: skip


def normalized(source: ModelProto, as_qmodel: AsQModel) -> QModel:
    for tensor in source.graph.initializer:
        if tensor.name == "V":  # a variance is positive
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)) + np.float32(0.1), "V"))
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    return model


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    text, shapes, expected = FOLDS[name]
    source = model_of(text)
    model = normalized(source, as_qmodel)
    FoldBatchNorm().run(model)
    assert [node.op for node in model.graph.nodes] == expected.split()
    verify(model.graph, after="fold-batch-norm")
    same_outputs(source, model.graph, shapes)  # 1e-5: float32 weights rounded once more
    assert FoldBatchNorm().run(model) == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("behind a layer with two readers: stays", "has other readers"),
        ("behind a layer whose result is an output: stays", "has other readers"),
        ("behind a layer with computed weights: stays", "no constant weights"),
        ("before Conv with padding: stays", "its shift is no constant behind Conv"),
        ("before a layer and something else: stays", "Relu 'z' reads its result"),
        ("training mode stays", "training mode"),
    ],
)
def test_the_journal_says_why_one_stays(name: str, reason: str, model_of: Build, as_qmodel: AsQModel) -> None:
    model = normalized(model_of(FOLDS[name][0]), as_qmodel)
    FoldBatchNorm().run(model)
    entry = next(entry for entry in model.journal.by("fold-batch-norm") if entry["what"] == "stays float")
    assert reason in entry["reason"]


def test_before_a_padded_layer_a_pure_scale_folds(model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = model_of(FOLDS["before Conv with padding: stays"][0])
    for tensor in source.graph.initializer:
        if tensor.name in ZERO_SHIFT:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(4, np.float32), tensor.name))
    model = normalized(source, as_qmodel)
    FoldBatchNorm().run(model)
    assert [node.op for node in model.graph.nodes] == ["Conv"]
    same_outputs(source, model.graph, MAP)


def test_a_shared_weight_is_copied_for_the_layer_that_folds(model_of: Build, as_qmodel: AsQModel) -> None:
    model = normalized(model_of(FOLDS["before two layers that share their weight"][0]), as_qmodel)
    plain = np.array(model.graph.nodes[2].inputs[1].values)
    FoldBatchNorm().run(model)
    first, second = model.graph.nodes
    assert first.inputs[1] is not second.inputs[1]
    np.testing.assert_array_equal(second.inputs[1].values, plain)


def test_the_source_model_keeps_its_weights(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(FOLDS["behind Conv"][0])
    model = normalized(source, as_qmodel)
    before = source.SerializeToString()
    FoldBatchNorm().run(model)
    assert source.SerializeToString() == before


def test_a_fold_that_overflows_is_not_done(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,4,H,W2] x, float[4,4,1,1] W) => (float[N,4,P,Q] y) <float s = {3.0e38}>"
        "{ a = Conv(x, W) y = Mul(a, s) }"
    )
    for tensor in source.graph.initializer:
        if tensor.name == "W":
            tensor.CopyFrom(numpy_helper.from_array(np.full((4, 4, 1, 1), 10, np.float32), "W"))
    model = normalized(source, as_qmodel)
    assert FoldBatchNorm().run(model) == 0


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.integers(1, 3),
    outputs=st.integers(1, 3),
    inputs=st.integers(1, 3),
    transposed=st.booleans(),
    behind=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_groups_and_parameters(
    groups: int, outputs: int, inputs: int, transposed: bool, behind: bool, seed: int,
    model_of: Build, as_qmodel: AsQModel, same_outputs: Same,
) -> None:  # fmt: skip
    op = "ConvTranspose" if transposed else "Conv"
    wide, narrow = groups * outputs, groups * inputs
    weight = (narrow, outputs) if transposed else (wide, inputs)
    channels = wide if behind else narrow
    norm = ", ".join(f"float[{channels}] {name}" for name in "GBMV")
    layer = f"{op}<group = {groups}, strides = [2,2]>"
    chain = (
        f"a = {layer}(x, W) y = BatchNormalization<epsilon = 0.001>(a, G, B, M, V)"
        if behind
        else f"a = BatchNormalization<epsilon = 0.001>(x, G, B, M, V) y = {layer}(a, W)"
    )
    source = model_of(
        f"g (float[N,{narrow},H,W2] x, float[{weight[0]},{weight[1]},2,2] W, {norm}) => (float[N,{wide},P,Q] y)"
        f"{{ {chain} }}",
        seed=seed,
    )
    model = normalized(source, as_qmodel)
    FoldBatchNorm().run(model)
    stays = transposed and not behind  # the shift meets other kernel elements at every position
    assert [node.op for node in model.graph.nodes] == (["BatchNormalization", op] if stays else [op])
    same_outputs(source, model.graph, [{"x": (2, narrow, 6, 4)}], rtol=1e-4)  # gamma / sigma reaches 10, sums cancel


def test_ppocr_keeps_few_mul_and_add(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "ppocr_v4_det.onnx")
    sigmoid = next(node for node in source.graph.node if node.op_type == "Sigmoid")
    source.graph.output[0].name = sigmoid.input[0]  # compare logits: the sigmoid saturates on noise
    source.graph.node.remove(sigmoid)
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    FoldBatchNorm().run(model)
    ops = [node.op for node in model.graph.nodes]
    assert "BatchNormalization" not in ops
    assert ops.count("Mul") == 11  # ten gates, and one factor between a HardSwish and an Add
    assert ops.count("Add") == 25
    same_outputs(source, model.graph, [{"x": (1, 3, 64, 96)}, {"x": (2, 3, 96, 64)}], rtol=1e-4)  # 62 layers


@pytest.mark.parametrize(("name", "size", "left"), [("resnet20", 32, 56), ("efficientnet_lite0", 224, 94)])
def test_networks_end_without_batch_norm(
    name: str, size: int, left: int, shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = load_model(shared_assets / "models" / f"{name}.onnx")
    model = as_qmodel(source)
    NormalizeGraph().run(model)
    FoldBatchNorm().run(model)
    assert len(model.graph.nodes) == left
    assert all(node.op != "BatchNormalization" for node in model.graph.nodes)
    same_outputs(source, model.graph, [{"image": (2, 3, size, size)}])
    onnx.checker.check_model(source)  # the source is still whole
