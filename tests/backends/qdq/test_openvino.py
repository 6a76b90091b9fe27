"""Files of target openvino: quantizers in front of layers alone, what OpenVINO computes, where it does in integers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import onnx
import pytest
from golden_text import golden_text
from networks import CALIBRATE, CORRECT, NETWORKS, compiled, initializers, samples
from openvino_runs import INTEGERS, layer_types, openvino_model, outputs

from qcompile import QModel
from qcompile.backends import check
from qcompile.errors import InputError
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passmanager import Pass
from qcompile.quant.plan import Form
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

PRECISIONS = [{"w": 8, "a": 8}, {"w": 4, "a": 4}, {"w": 2, "a": 4, "first_last_bits": 2}]
DEPLOYMENT = Path(__file__).parents[3] / "docs" / "deployment.md"
ROUNDING = 1e-5  # of the largest value: float32 sums in another order; a code that is off by one is far more
installed = pytest.mark.skipif(util.find_spec("openvino") is None, reason="openvino is not installed")

BOTTLENECK = """net (float[N,3,8,8] image, float[4,3,3,3] W1, float[4,4,3,3] W2, float[4,4,1,1] W3)
  => (float[N,4,P,Q] y) {
  [stem] a = Conv(image, W1)  [inner] b = Conv<pads = [1,1,1,1]>(a, W2)  [relu] c = Relu(b)
  [sum] s = Add(a, c)  [head] y = Conv(s, W3)
}"""


WITHOUT_BIAS = """net (float[N,8,8,8] x, float[6,8,3,3] W1) => (float[N,6,1,1] m, float[N,6,8,8] y) {
  [conv] c = Conv<pads = [1,1,1,1]>(x, W1)  [mean] m = GlobalAveragePool(c)  [gate] y = Sigmoid(c)
}"""


def emitted(name: str, **settings: int | str) -> QModel:
    """Return a network compiled for openvino."""
    return compiled(NETWORKS[name], (*CORRECT, InsertQDQ()), target="openvino", **settings)


def file_of(model: QModel) -> onnx.ModelProto:
    assert model.emitted is not None
    return model.emitted


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_file_computes_what_the_simulation_does(name: str, precision: dict[str, int]) -> None:
    model = emitted(name, **precision)
    assert check(file_of(model), model.target) == []
    feeds = samples(model.source)
    file = Session(file_of(model), level="off", fuse_qdq=False)
    fake = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False)
    for output, expected in fake.run(feeds).items():
        np.testing.assert_array_equal(file.run(feeds)[output], expected)


@installed
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_planned_layer_runs_on_integers_in_openvino(name: str, precision: dict[str, int]) -> None:
    """And every code is that of the simulation: the kernels' sums are exact, requantizing them is float arithmetic."""
    model = emitted(name, **precision)
    compiled_file = openvino_model(file_of(model))
    types = layer_types(compiled_file)
    planned = len(model.plan.weights)
    assert sum(types[kind] for kind in INTEGERS) == types.total() == planned
    feeds = samples(model.source)
    found = outputs(compiled_file, feeds)
    for output, expected in Session(file_of(model), level="off", fuse_qdq=False).run(feeds).items():
        np.testing.assert_allclose(found[output], expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize("passes", [CALIBRATE, CORRECT], ids=["none", "of zeros"])
def test_every_layer_has_a_bias_that_is_not_0(passes: tuple[Pass, ...]) -> None:
    model = compiled(WITHOUT_BIAS, (*passes, InsertQDQ()), target="openvino")
    (conv,) = (node for node in file_of(model).graph.node if node.op_type == "Conv")
    assert np.all(initializers(file_of(model))[conv.input[2]] != 0)


@installed
def test_a_mean_behind_a_layer_is_right_where_the_batch_is_open() -> None:
    """In OpenVINO 2026.4.1 it is too small by the scales of the channels where the layer has no bias.

    A value between two codes may become either, so means are equal to a hundredth.
    """
    model = compiled(WITHOUT_BIAS, (*CALIBRATE, InsertQDQ()), target="openvino")
    feeds = samples(model.source)
    found = outputs(openvino_model(file_of(model)), feeds)
    for output, expected in Session(file_of(model), level="off", fuse_qdq=False).run(feeds).items():
        np.testing.assert_allclose(found[output], expected, rtol=0, atol=0.01 * np.abs(expected).max())


@installed
def test_the_lines_of_the_docs_show_the_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(file_of(emitted("chain", w=4, a=4)), tmp_path / "out.onnx")
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```py\n(.*?)```", DEPLOYMENT.read_text(encoding="utf-8"), re.DOTALL)
    exec(lines, {})
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["i8", "u8", "u8"]


def test_inputs_of_layers_alone_have_pairs(golden: Callable[[str, str], None]) -> None:
    golden("qdq/openvino_residual.txt", golden_text(file_of(emitted("residual", w=4, a=4))))


def test_of_two_products_of_activations_scores_alone_are_on_integers() -> None:
    """With codes around 0 on both sides: of others the kernel would be slower than float."""
    plan = emitted("attention").plan
    assert plan.form("scores") is Form.COMPUTE and plan.form("mix") is Form.FLOAT
    assert all(plan.form(name) is Form.COMPUTE for name in ("query", "key", "value", "head"))
    assert {plan.quantizers[plan.key(name, "scores")].zero_point for name in ("q", "t")} == {128}


def test_codes_are_around_0_where_int8_holds_them() -> None:
    """The values are those of the plan: as many levels below 0 as its zero point says."""
    model = emitted("hard_swish", w=4, a=4, first_last_bits=4)
    arrays, quantizers = initializers(file_of(model)), model.plan.quantizers.values()
    assert all(quantizer.zero_point for quantizer in quantizers)
    activations = [node for node in file_of(model).graph.node if node.op_type == "QuantizeLinear"]
    assert len(activations) == len(quantizers) == 2
    assert [(arrays[node.input[2]].dtype, int(arrays[node.input[2]])) for node in activations] == [(np.int8, 0)] * 2


def test_weights_are_never_taken_apart_by_bit_operations() -> None:
    """OpenVINO runs such layers in float. What does not fit INT4 is int8."""
    model = emitted("chain", w=4, a=4)
    assert "W2_int4" in initializers(file_of(model))
    weight = model.plan.weights["conv2"]
    model.plan.weights["conv2"] = replace(weight, offset=weight.offset + 20)
    InsertQDQ().run(model)
    assert {"W2_int8", "W3_int8"} <= initializers(file_of(model)).keys()
    assert not {"BitShift", "BitwiseAnd"} & {node.op_type for node in file_of(model).graph.node}
    with pytest.raises(InputError, match="--pack planes is no form of weights for openvino"):
        compiled(NETWORKS["chain"], target="openvino", w=4, pack="planes")


def test_float_nodes_read_what_a_layer_makes_unrounded() -> None:
    """The quantizer stands in front of the layer alone; a clip that a sum reads too is no quantizer's."""
    model = compiled(BOTTLENECK, (*CORRECT, InsertQDQ()), target="openvino", w=4, a=4)
    assert model.plan.unrounded == ["a"] and model.plan.form("relu") is Form.FLOAT
    made = {node.name: node for node in file_of(model).graph.node}
    assert list(made["sum"].input) == ["a", "c"]
    assert {spec.bits for spec in model.plan.specs.values()} == {4, 8}
    assert [edge for edge in model.plan.specs if edge.reader] == []  # nobody else reads codes of these tensors
