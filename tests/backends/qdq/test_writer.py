"""Files of target tensorrt: pairs where its documentation wants them, and what the float simulation computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from golden_text import golden_text
from networks import CALIBRATE, CORRECT, NETWORKS, RESIDUAL, compiled, network, samples

from qcompile import Config, PassManager, QModel, open_model
from qcompile.backends import check
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.pipeline import build
from qcompile.quant.grid import Grid
from qcompile.quant.plan import Edge, Form
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

PRECISIONS = [{"w": 8, "a": 8}, {"w": 4, "a": 4}]
BY_HAND = ("chain", "residual", "relu6", "classifier", "attention", "squeeze_excite", "elementwise", "movers")


DOWNSAMPLED = """net (float[N,3,8,8] image, float[4,3,3,3] W1, float[4,4,1,1] W2, float[4,4,3,3] W3, float[4,4,1,1] W4,
  float[4,4,1,1] W5) => (float[N,4,P,Q] y) {
  [stem] a = Conv(image, W1)  [relu] b = Relu(a)
  [down] s = Conv(b, W2)
  [first] e = Conv<pads = [1,1,1,1]>(b, W3)  [inner] f = Relu(e)  [second] g = Conv(f, W4)
  [sum] t = Add(s, g)  [head] y = Conv(t, W5)
}"""


def emitted(name: str, **settings: int) -> QModel:
    """Return a network compiled for tensorrt."""
    return compiled(NETWORKS[name], (*CORRECT, InsertQDQ()), target="tensorrt", **settings)


def file_of(model: QModel) -> onnx.ModelProto:
    assert model.emitted is not None
    return model.emitted


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_file_computes_what_the_simulation_does(name: str, precision: dict[str, int]) -> None:
    """In float between quantizers: a clip is once the quantizer's, once a node in front of it."""
    model = emitted(name, **precision)
    feeds = samples(model.source)
    file = Session(file_of(model), level="off", fuse_qdq=False)
    fake = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False)
    for output, expected in fake.run(feeds).items():
        np.testing.assert_array_equal(file.run(feeds)[output], expected)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_file_keeps_the_rules(name: str, precision: dict[str, int]) -> None:
    model = emitted(name, **precision)
    assert check(file_of(model), model.target) == []
    quantizers = model.plan.quantizers.values()
    assert {quantizer.zero_point for quantizer in quantizers} == {0}
    assert {quantizer.grid.container for quantizer in quantizers} == {"int8"}


def test_the_shortcut_alone_has_a_pair(golden: Callable[[str, str], None]) -> None:
    """Conv, Add and Relu are one kernel: nothing is rounded between them."""
    model = emitted("residual", w=8, a=8)
    assert {"trunk", "c", "t"} <= model.plan.groups.keys() and "d" not in model.plan.groups
    golden("qdq/tensorrt_residual.txt", golden_text(file_of(model)))


@pytest.mark.parametrize("operands", ["s, g", "g, s"])
def test_of_two_layers_the_one_on_the_longer_path_is_added_unrounded(operands: str) -> None:
    plan = compiled(DOWNSAMPLED.replace("s, g", operands), CALIBRATE, target="tensorrt").plan
    assert plan.form("sum") is Form.ARITHMETIC
    assert "s" in plan.groups and "g" not in plan.groups


def test_values_that_are_not_negative_have_all_codes_from_0() -> None:
    narrow, wide = emitted("chain", w=4, a=4).plan, emitted("chain", w=8, a=8).plan
    found = {quantizer.grid for quantizer in narrow.quantizers.values()}
    assert Grid(0, 15, "int8") in found
    assert {quantizer.grid for quantizer in wide.quantizers.values()} == {Grid(0, 127, "int8"), Grid(-128, 127, "int8")}


def test_training_keeps_zero_points_of_0() -> None:
    """What is trained is what is emitted: symmetric grids, sums that are not rounded."""
    source = network(RESIDUAL)
    config = Config(w=4, a=4, target="tensorrt", steps=6, threads=1)
    model = open_model(source, config, samples(source, count=40))
    PassManager(build(config)).run(model)
    assert any(outcome.trained for outcome in model.outcomes)
    assert {quantizer.zero_point for quantizer in model.plan.quantizers.values()} == {0}
    assert Edge("d") not in model.plan.quantizers
    assert model.audit is not None and model.audit.fused is None and model.audit.speed is None
