"""The integer reference of targets whose kernels are not known: by hand on small numbers."""

from __future__ import annotations

import numpy as np
import pytest
from networks import CORRECT, NETWORKS, PLACE, compiled, samples

from qcompile.quant.grid import signed
from qcompile.quant.params import Quantizer, WeightQuantizer
from qcompile.quant.plan import Edge
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

LAYER = (
    "net (float[N,2] x, float[2,2] A, float[2] B) => (float[N,2] z) {[only] y = Gemm(x, A, B) [next] z = Gemm(y, A, B)}"
)


def test_a_layer_is_rounded_once_half_to_even() -> None:
    model = compiled(LAYER, PLACE, target="tensorrt")
    plan = model.plan
    plan.quantizers = {Edge("x"): Quantizer(signed(8), 0.5, 0), Edge("y"): Quantizer(signed(8), 2.0, 0)}
    plan.quantizers = {key: plan.quantizers[key] for key in plan.specs}
    codes = np.array([[3 + 127, 1 + 127], [-2 + 127, 4 + 127]], np.uint8)
    lattice = (np.ones(2, np.int8), np.full(2, -127, np.int8))
    weight = WeightQuantizer(8, 1, codes, np.array([0.25, 1.0], np.float32), *lattice)
    plan.weights = {"only": weight, "next": weight}
    plan.biases = {name: np.array([0.25, -3.0], np.float32) for name in plan.weights}
    values = simulate(model.graph, plan, "integer").run({"x": np.array([[5.0, -2.0], [1.0, 0.0]], np.float32)})
    (coded,) = (array for name, array in values.items() if name.startswith("y_"))
    # Codes 10 and -4, 2 and 0. Sums 38 and -6, 6 and 2; times 0.125 and 0.5, with the float bias 5 and -6, 1 and
    # -2; over 2 they are 2.5 and -3, 0.5 and -1.
    assert coded.tolist() == [[2, -3], [0, -1]]
    # Behind the last layer nothing is rounded: 2 -> 4, -3 -> -6, sums of codes 2 * 3 - 3 * -2 = 12, 2 - 12 = -10 ...
    np.testing.assert_array_equal(values["z"], np.array([[6.25, -23.0], [1.25, -11.0]], np.float32))


@pytest.mark.parametrize("name", ["chain", "classifier", "attention"])
def test_layers_whose_weights_alone_have_codes_are_in_float(name: str) -> None:
    model = compiled(NETWORKS[name], CORRECT, target="tensorrt", w=4, a=32)
    feeds = samples(model.source)
    values = simulate(model.graph, model.plan, "integer").run(feeds)
    fake = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False).run(feeds)
    for output, expected in fake.items():
        np.testing.assert_allclose(values[output], expected, atol=1e-5 * np.abs(expected).max())  # order of sums
