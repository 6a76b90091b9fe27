"""EqualizeLayers: equal ranges on both sides, the same function, and hands off everything that is not exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_graphs import MAP, ROWS, AsQModel, Build, Same, check_rescaling, folded, spread_channels
from onnx import numpy_helper

from qcompile.ir.layers import open_layer
from qcompile.ir.load import load_model, to_model
from qcompile.passes.equalize_layers import SETTLED, EqualizeLayers
from qcompile.qmodel import QModel

IMAGE = "g (float[N,4,H,W2] x, float[6,4,3,3] W, float[6] B"

# name: graph, inputs, pairs
PAIRS = {
    "nothing between": (
        f"{IMAGE}, float[5,6,1,1] U) => (float[N,5,P,Q] y) {{ a = Conv(x, W, B) y = Conv(a, U) }}",
        MAP, 1),
    "Relu between, padding, groups": (
        f"{IMAGE}, float[4,3,3,3] U) => (float[N,4,P,Q] y)"
        "{ a = Conv(x, W, B) r = Relu(a) y = Conv<group = 2, pads = [1,1,1,1]>(r, U) }", MAP, 1),
    "LeakyRelu between": (
        f"{IMAGE}, float[6,3,2,2] U) => (float[N,3,P,Q] y)"
        f" {{ a = Conv(x, W, B) r = LeakyRelu(a) y = ConvTranspose(r, U) }}",
        MAP, 1),
    "depthwise triple": (
        f"{IMAGE}, float[6,1,3,3] D, float[5,6,1,1] U) => (float[N,5,P,Q] y)"
        "{ a = Conv(x, W, B) r = Relu(a) d = Conv<group = 6>(r, D) s = Relu(d) y = Conv(s, U) }", MAP, 2),
    "Gemm and Gemm": (
        "g (float[N,6] x, float[4,6] W, float[4] B, float[4,3] U) => (float[N,3] y)"
        "{ a = Gemm<transB = 1>(x, W, B) r = Relu(a) y = Gemm(r, U) }", ROWS, 1),
    "shared weight": (
        "g (float[N,6] x, float[6,6] W) => (float[N,6] y) { a = MatMul(x, W) r = Relu(a) y = MatMul(r, W) }", ROWS, 1),
    "Clip between": (
        f"{IMAGE}, float[5,6,1,1] U) => (float[N,5,P,Q] y) <float lo = {{0}}, float hi = {{6}}>"
        "{ a = Conv(x, W, B) r = Clip(a, lo, hi) y = Conv(r, U) }", MAP, 0),
    "two readers": (
        f"{IMAGE}, float[6,6,1,1] U) => (float[N,6,P,Q] y) {{ a = Conv(x, W, B) b = Conv(a, U) y = Add(a, b) }}",
        MAP, 0),
    "a result that is an output": (
        f"{IMAGE}, float[5,6,1,1] U) => (float[N,5,P,Q] y, float[N,6,R,S] a) {{ a = Conv(x, W, B) y = Conv(a, U) }}",
        MAP, 0),
    "the second reads it as a bias": (
        "g (float[N,6] x, float[6,4] W, float[6,4] U) => (float[N,4] y) { a = Gemm(x, W) y = Gemm(x, U, a) }", ROWS, 0),
    "the second reads it transposed": (
        "g (float[4,6] x, float[6,4] W, float[4,3] U) => (float[4,3] y) { a = Gemm(x, W) y = Gemm<transA = 1>(a, U) }",
        [{"x": (4, 6)}], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    text, shapes, pairs = PAIRS[name]
    check_rescaling(EqualizeLayers(), "pairs", pairs, model_of(text), shapes, as_qmodel, same_outputs)


def ranges(model: QModel, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    layers = [open_layer(model.graph.nodes[position]) for position in (first, second)]
    assert layers[0] is not None
    assert layers[1] is not None
    return np.abs(layers[0].weight).max((2, 3)).ravel(), np.abs(layers[1].weight).max((1, 3)).ravel()


def test_ranges_are_equal_afterwards_even_along_a_chain(model_of: Build, as_qmodel: AsQModel) -> None:
    model = folded(model_of(PAIRS["depthwise triple"][0]), as_qmodel)
    EqualizeLayers().run(model)
    for first, second in ((0, 2), (2, 4)):
        r1, r2 = ranges(model, first, second)
        np.testing.assert_allclose(r1, r2, rtol=2.1 * SETTLED)  # r1 / r2 is the square of the last scale


def test_dead_channels_are_left_alone(model_of: Build, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = model_of(PAIRS["nothing between"][0])
    for tensor in source.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name == "W":
            values[0], values[1] = 0, 1e-30
        if tensor.name == "U":
            values[:, 2] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    model = folded(source, as_qmodel)
    bias = np.array(model.graph.nodes[0].inputs[2].values)
    EqualizeLayers().run(model)
    np.testing.assert_array_equal(model.graph.nodes[0].inputs[2].values[:3], bias[:3])
    same_outputs(source, model.graph, MAP)


def test_weights_that_have_lost_bits_or_have_no_values_are_left_alone(model_of: Build, as_qmodel: AsQModel) -> None:
    for size, factor in ((4, 1e-42), (0, 1.0)):
        source = model_of(
            f"g (float[N,6] x, float[6,4] W, float[4,{size}] U) => (float[N,{size}] y)"
            "{ a = MatMul(x, W) r = Relu(a) y = MatMul(r, U) }"
        )
        tensor = source.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
        model = folded(source, as_qmodel)
        weight = np.array(model.graph.nodes[0].inputs[1].values)
        assert EqualizeLayers().run(model) == 0
        np.testing.assert_array_equal(model.graph.nodes[0].inputs[1].values, weight)


def test_a_chain_whose_scaled_weights_overflow_is_left_alone(model_of: Build, as_qmodel: AsQModel) -> None:
    source = model_of(
        "g (float[N,6] x, float[6,4] W, float[4,4] U, float[4] B, float[4,3] V) => (float[N,3] y)"
        "{ a = Gemm(x, W) b = Gemm(a, U, B) y = Gemm(b, V) }"
    )
    factors = {"W": 1, "U": 1e-20, "B": 1e25, "V": 1e20}  # U gets larger, and with it B
    for tensor in source.graph.initializer:
        values = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    model = folded(source, as_qmodel)
    before = to_model(model.graph)
    assert EqualizeLayers().run(model) == 0
    assert [entry["what"] for entry in model.journal.by("equalize-layers")] == ["not equalized", "layers equalized"]
    assert to_model(model.graph) == before


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spread=st.lists(st.floats(-3, 3), min_size=6, max_size=6), seed=st.integers(0, 2**16))
def test_any_spread_of_channels(
    spread: list[float], seed: int, model_of: Build, as_qmodel: AsQModel, same_outputs: Same
) -> None:
    source = model_of(PAIRS["Relu between, padding, groups"][0], seed=seed)
    spread_channels(source, "W", spread)
    model = folded(source, as_qmodel)
    EqualizeLayers().run(model)
    r1, r2 = ranges(model, 0, 2)
    np.testing.assert_allclose(r1, r2, rtol=2.1 * SETTLED)
    same_outputs(source, model.graph, MAP)


def test_resnet20(shared_assets: Path, as_qmodel: AsQModel, same_outputs: Same) -> None:
    source = load_model(shared_assets / "models" / "resnet20.onnx")
    model = folded(source, as_qmodel)
    assert EqualizeLayers().run(model) == 9  # the two convolutions of each block; the trunk has several readers
    same_outputs(source, model.graph, [{"image": (2, 3, 32, 32)}])
