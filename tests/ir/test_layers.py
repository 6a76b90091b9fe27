"""Layers whose channels get factors: vectors stand for whole weights."""

from __future__ import annotations

import numpy as np
import pytest
from networks import network

from qcompile.ir import layers
from qcompile.ir.layers import Rescaled, open_layer
from qcompile.ir.load import to_graph

LAYERS = {
    "Conv": "net (float[1,6,8,8] x, float[4,3,3,3] W) => (y) { y = Conv<group=2>(x, W) }",
    "ConvTranspose": "net (float[1,6,8,8] x, float[6,2,3,3] W) => (y) { y = ConvTranspose<group=2>(x, W) }",
    "Gemm": "net (float[N,6] x, float[6,4] W, float[4] B) => (y) { y = Gemm(x, W, B) }",
    "Gemm transposed": "net (float[N,6] x, float[4,6] W) => (y) { y = Gemm<transB=1>(x, W) }",
    "MatMul": "net (float[N,6] x, float[6,4] W) => (y) { y = MatMul(x, W) }",
}


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", LAYERS)
def test_factors_stand_for_the_scaled_weight(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "BLOCK", block)
    (node,) = to_graph(network(LAYERS[name])).nodes
    whole, random = open_layer(node), np.random.default_rng(0)
    assert whole is not None
    factors = Rescaled.of(whole)
    for _ in range(2):
        outputs, inputs = random.uniform(0.1, 9, whole.outputs), random.uniform(0.1, 9, whole.inputs)
        whole.scale_outputs(outputs)
        whole.scale_inputs(inputs)
        factors.output_factors = factors.output_factors * outputs
        factors.input_factors = factors.input_factors * inputs
    close = {"rtol": 1e-14, "atol": 0}
    np.testing.assert_allclose(factors.output_peaks(), np.abs(whole.weight).max((2, 3)).reshape(-1), **close)
    np.testing.assert_allclose(factors.input_peaks(), np.abs(whole.weight).max((1, 3)).reshape(-1), **close)
    np.testing.assert_allclose(factors.opened().weight, whole.weight, **close)
    np.testing.assert_allclose(factors.opened().bias, whole.bias, **close)
