"""RotateChannels: the same function, channels of one range, and hands off everything that is not linear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_graphs import MAP, ROWS, TOKENS, AsQModel, Build, Same, check_rescaling, folded, spread_channels
from onnx import numpy_helper

from qcompile.ir import producer
from qcompile.ir.layers import open_layer
from qcompile.ir.load import load_model
from qcompile.passes.rotate_channels import RotateChannels, rotation
from qcompile.qmodel import QModel

IMAGE = "g (float[N,4,H,W2] x, float[6,4,3,3] W, float[6] B"
BLOCK = "float[8,6,1,1] E, float[8] C, float[6,8,1,1] P, float[6] D, float[5,6,1,1] U"
RESIDUAL = "a = Conv(x, W, B) e = Conv(a, E, C) r = Relu(e) p = Conv(r, P, D)"

# name: graph, inputs, streams
STREAMS = {
    "two layers": (
        f"{IMAGE}, float[5,6,3,3] U) => (float[N,5,P,Q] y) {{ a = Conv(x, W, B) y = Conv<pads = [1,1,1,1]>(a, U) }}",
        MAP, 1),
    "three layers": (
        f"{IMAGE}, float[5,6,1,1] U, float[3,5,1,1] V) => (float[N,3,P,Q] y)"
        "{ a = Conv(x, W, B) b = Conv(a, U) y = Conv(b, V) }", MAP, 2),
    "a residual block": (
        f"{IMAGE}, {BLOCK}) => (float[N,5,P,Q] y) {{ {RESIDUAL} s = Add(a, p) y = Conv(s, U) }}", MAP, 1),
    "a residual block that subtracts": (
        f"{IMAGE}, {BLOCK}) => (float[N,5,P,Q] y) {{ {RESIDUAL} s = Sub(p, a) y = Conv(s, U) }}", MAP, 1),
    "twice itself": (
        f"{IMAGE}, float[5,6,1,1] U) => (float[N,5,P,Q] y) {{ a = Conv(x, W, B) s = Add(a, a) y = Conv(s, U) }}",
        MAP, 1),
    "a layer that reads and makes": (
        f"{IMAGE}, float[6,6,3,3] V, float[6] D, float[5,6,1,1] U) => (float[N,5,P,Q] y)"
        "{ a = Conv(x, W, B) b = Conv<pads = [1,1,1,1]>(a, V, D) s = Add(a, b) y = Conv(s, U) }", MAP, 1),
    "a sum of a map and its mean": (
        f"{IMAGE}, float[6,4,1,1] V, float[5,6,1,1] U) => (float[N,5,P,Q] y)"
        "{ a = Conv(x, W, B) g = GlobalAveragePool(x) b = Conv(g, V) s = Add(a, b) y = Conv(s, U) }", MAP, 1),
    "ConvTranspose": (
        f"{IMAGE}, float[6,3,2,2] U) => (float[N,3,P,Q] y) {{ a = Conv(x, W, B) y = ConvTranspose(a, U) }}", MAP, 1),
    "Gemm": (
        "g (float[N,6] x, float[4,6] W, float[4] B, float[4,3] U) => (float[N,3] y)"
        "{ a = Gemm<transB = 1>(x, W, B) y = Gemm(a, U) }", ROWS, 1),
    "MatMul on tokens": (
        "g (float[N,2,6] x, float[6,5] W, float[5,3] U) => (float[N,2,3] y) { a = MatMul(x, W) y = MatMul(a, U) }",
        TOKENS, 1),
    "shared weight": (
        "g (float[N,6] x, float[6,6] W) => (float[N,6] y) { a = MatMul(x, W) y = MatMul(a, W) }", ROWS, 0),
    "an activation between": (
        f"{IMAGE}, float[5,6,1,1] U) => (float[N,5,P,Q] y) {{ a = Conv(x, W, B) r = Relu(a) y = Conv(r, U) }}",
        MAP, 0),
    "an activation as a second reader": (
        f"{IMAGE}, float[6,6,1,1] U) => (float[N,6,P,Q] y)"
        "{ a = Conv(x, W, B) r = Relu(a) b = Conv(a, U) y = Add(r, b) }", MAP, 0),
    "an activation in the sum": (
        f"{IMAGE}, {BLOCK}) => (float[N,5,P,Q] y) {{ {RESIDUAL} q = Relu(p) s = Add(a, q) y = Conv(s, U) }}", MAP, 0),
    "a constant in the sum": (
        f"{IMAGE}, float[6,4,3,3] V, float[1,6,1,1] D, float[5,6,1,1] U) => (float[N,5,P,Q] y)"
        "{ a = Conv(x, W, B) b = Conv(x, V) p = Add(a, b) s = Add(p, D) y = Conv<pads = [1,1,1,1]>(s, U) }", MAP, 0),
    "an input in the sum": (
        "g (float[N,4,H,W2] x, float[4,4,1,1] W, float[5,4,1,1] U) => (float[N,5,H,W2] y)"
        "{ a = Conv(x, W) s = Add(a, x) y = Conv(s, U) }", MAP, 0),
    "a depthwise reader": (
        f"{IMAGE}, float[6,1,3,3] U) => (float[N,6,P,Q] y) {{ a = Conv(x, W, B) y = Conv<group = 6>(a, U) }}", MAP, 0),
    "a depthwise maker": (
        "g (float[N,4,H,W2] x, float[4,1,3,3] W, float[5,4,1,1] U) => (float[N,5,P,Q] y)"
        "{ a = Conv<group = 4>(x, W) y = Conv(a, U) }", MAP, 0),
    "one channel beside six": (
        f"{IMAGE}, float[1,4,3,3] V, float[5,6,1,1] U) => (float[N,5,P,Q] y)"
        "{ a = Conv(x, W, B) b = Conv(x, V) s = Add(a, b) y = Conv(s, U) }", MAP, 0),
    "one channel": (
        "g (float[N,4,H,W2] x, float[1,4,3,3] W, float[5,1,1,1] U) => (float[N,5,P,Q] y)"
        "{ a = Conv(x, W) y = Conv(a, U) }", MAP, 0),
    "channels in different places": (
        "g (float[N,6,6] x, float[6,6] W, float[6,6,1] V, float[6,3] U) => (float[N,6,3] y)"
        "{ a = MatMul(x, W) b = Conv(x, V) s = Add(a, b) y = MatMul(s, U) }", [{"x": (2, 6, 6)}], 0),
    "a result that is an output": (
        f"{IMAGE}, float[5,6,1,1] U) => (float[N,5,P,Q] y, float[N,6,R,S] a) {{ a = Conv(x, W, B) y = Conv(a, U) }}",
        MAP, 0),
    "read as a bias": (
        "g (float[N,6] x, float[6,4] W, float[6,4] U) => (float[N,4] y) { a = Gemm(x, W) y = Gemm(x, U, a) }", ROWS, 0),
    "read transposed": (
        "g (float[4,6] x, float[6,4] W, float[4,3] U) => (float[4,3] y) { a = Gemm(x, W) y = Gemm<transA = 1>(a, U) }",
        [{"x": (4, 6)}], 0),
    "read in a subgraph": (
        f"{IMAGE}, float[5,6,1,1] U, bool c) => (float[N,5,P,Q] y, float[N,6,R,S] z)"
        "{ a = Conv(x, W, B) y = Conv(a, U) z = If(c) <then_branch = g1 () => (float[N,6,R,S] t) { t = Add(a, a) },"
        " else_branch = g2 () => (float[N,6,R,S] f) { f = Sub(a, a) }> }", [], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_streams(name: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    text, shapes, streams = STREAMS[name]
    check_rescaling(RotateChannels(), "streams", streams, model_of(text), shapes, as_qmodel, same_outputs)


@pytest.mark.parametrize("channels", [1, 2, 3, 16, 24, 320])
def test_the_rotation_is_orthogonal_and_mixes_all(channels: int) -> None:
    matrix = rotation(channels)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(channels), atol=1e-12)
    assert np.abs(matrix).max() <= np.sqrt(2 / channels)


def ranges(model: QModel, reader: str) -> np.ndarray:
    """Return the largest weight of each channel that the layer in front of `reader` makes."""
    data = next(node for node in model.graph.nodes if node.outputs[0].name == reader).inputs[0]
    front = producer(data)
    assert front is not None
    layer = open_layer(front)
    assert layer is not None
    return np.abs(layer.weight).max((0, 2, 3))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spread=st.permutations([0.0, 0.0, 0.0, 0.0, 0.0, 3.0]), seed=st.integers(0, 2**16))
def test_one_large_channel_is_shared_out(
    spread: list[float], seed: int, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(STREAMS["two layers"][0], seed=seed)
    spread_channels(source, "W", spread)
    model = folded(source, as_qmodel)
    before = ranges(model, "y")
    RotateChannels().run(model)
    after = ranges(model, "y")
    assert before.max() / np.median(before) > 100
    assert after.max() / np.median(after) < 10
    same_outputs(source, model.graph, MAP, rtol=1e-4)  # sums of large and small channels


def test_weights_that_would_overflow_stay(model_of: Build, as_qmodel: AsQModel) -> None:
    text = "g (float[N,6] x, float[6,4] W, float[4,3] U) => (float[N,3] y) { a = MatMul(x, W) y = MatMul(a, U) }"
    source = model_of(text)
    for tensor in source.graph.initializer:
        if tensor.name == "W":
            tensor.CopyFrom(numpy_helper.from_array(np.full((6, 4), 3e38, np.float32), "W"))
    model = folded(source, as_qmodel)
    assert RotateChannels().run(model) == 0
    (note,) = model.journal.by("rotate-channels")
    assert "overflow" in note["reason"]


def test_nothing_in_resnet20(shared_assets: Path, as_qmodel: AsQModel) -> None:
    assert RotateChannels().run(folded(load_model(shared_assets / "models" / "resnet20.onnx"), as_qmodel)) == 0


def test_the_bottlenecks_of_efficientnet_lite0(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "efficientnet_lite0.onnx")
    model = folded(source, as_qmodel)
    assert RotateChannels().run(model) == 7  # 16, 24, 40, 80, 112, 192 and 320 channels
    same_outputs(source, model.graph, [{"image": (1, 3, 224, 224)}], rtol=1e-4)
