"""The integer reference: by hand on small numbers, and against ONNX's own reference implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from networks import (
    ATTENTION,
    CALIBRATE,
    CHAIN,
    CLASSIFIER,
    CONCAT,
    ELEMENTWISE,
    EMIT,
    MOVERS,
    NETWORKS,
    PLACE,
    RELU6,
    RESIDUAL,
    SQUEEZE_EXCITE,
    Arrays,
    compiled,
    network,
    samples,
)
from onnx.reference import ReferenceEvaluator

from qcompile import QModel
from qcompile.backends.ort_cpu import IntegerReference
from qcompile.calibration.collect import tap
from qcompile.program.lower import lower
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer, WeightQuantizer
from qcompile.quant.plan import Edge
from qcompile.runtime.session import Session
from qcompile.simulation import simulate


def with_numbers(text: str, quantizers: dict[str, Quantizer], weights: dict[str, Any], biases: Arrays) -> QModel:
    """Place a network and give its plan numbers by hand; weights are (int8 integers, scale per channel)."""
    model = compiled(text, PLACE)
    model.plan.quantizers.update({Edge(tensor): quantizer for tensor, quantizer in quantizers.items()})
    for node, (integers, scale) in weights.items():
        codes = (np.asarray(integers) + 127).astype(np.uint8)
        count = len(scale)
        lattice = (np.ones(count, np.int8), np.full(count, -127, np.int8))
        model.plan.weights[node] = WeightQuantizer(8, 0, codes, np.asarray(scale, np.float32), *lattice)
    model.plan.biases.update(biases)
    return model


def test_one_layer_by_hand() -> None:
    model = with_numbers(
        "net (float[N,2,1,1] x, float[2,2,1,1] A, float[2] B) => (float[N,2,1,1] y) { [only] y = Conv(x, A, B) }",
        {"x": Quantizer(unsigned(8), 0.5, 10), "y": Quantizer(unsigned(8), 2.0, 100)},
        {"only": ([[[[3]], [[-2]]], [[[1]], [[4]]]], [0.25, 1.0])},
        {"only": np.array([1.0, -3.0], np.float32)},
    )
    values = simulate(model.graph, model.plan, "integer").run({"x": np.array([[[[5.0]], [[-2.0]]]], np.float32)})
    assert values["x_q8"].reshape(-1).tolist() == [20, 6]  # 5 / 0.5 + 10, -2 / 0.5 + 10
    # Centred 10 and -4. Sums 3*10 - 2*-4 = 38 and 10 + 4*-4 = -6; biases 1 / 0.125 = 8 and -3 / 0.5 = -6.
    # 46 * 0.125 / 2 = 2.875 and -12 * 0.5 / 2 = -3: codes 103 and 97, values 6 and -6.
    assert values["y_q8"].reshape(-1).tolist() == [103, 97]
    assert values["y"].reshape(-1).tolist() == [6.0, -6.0]
    assert {name: array.dtype for name, array in values.items()} == {
        "x_q8": np.uint8, "y_q8": np.uint8, "y": np.float32,
    }  # fmt: skip


def test_padding_is_the_zero_point() -> None:
    model = with_numbers(
        "net (float[N,1,2,2] x, float[1,1,3,3] A) => (float[N,1,2,2] y) { [only] y = Conv<pads = [1,1,1,1]>(x, A) }",
        {"x": Quantizer(unsigned(8), 1.0, 7), "y": Quantizer(unsigned(8), 1.0, 0)},
        {"only": (np.ones((1, 1, 3, 3), int), [1.0])},
        {},
    )
    x = np.array([[[[1, 2], [3, 4]]]], np.float32)
    values = simulate(model.graph, model.plan, "integer").run({"x": x})
    assert values["y_q8"].reshape(-1).tolist() == [10, 10, 10, 10]  # nothing but 1 + 2 + 3 + 4


def test_halves_are_rounded_to_even_before_the_zero_point() -> None:
    model = with_numbers(
        "net (float[N,1] x, float[1,1] A) => (float[N,1] y) { [only] a = Gemm<transB = 1>(x, A)  [neg] y = Neg(a) }",
        {"x": Quantizer(unsigned(8), 1.0, 0), "a": Quantizer(unsigned(8), 2.0, 1)},
        {"only": ([[1]], [1.0])},
        {},
    )
    model.plan.groups["a"] = "a"  # as where an integer node reads it
    values = simulate(model.graph, model.plan, "integer").run({"x": np.array([[1], [3], [5]], np.float32)})
    assert values["a_q8"].reshape(-1).tolist() == [1, 3, 3]  # 0.5, 1.5, 2.5 -> 0, 2, 2; then + 1


def test_narrow_codes_end_at_their_own_levels() -> None:
    model = compiled(RELU6, CALIBRATE, w=4, a=4)
    values = simulate(model.graph, model.plan, "integer").run({"image": 100 * samples(model.source, 2)["image"]})
    assert values["b_q4"].max() == 15 and values["d_q8"].max() <= 255


def test_given_values_replace_what_is_read_but_not_what_is_returned() -> None:
    model = compiled(CHAIN, CALIBRATE)
    reference, feeds = simulate(model.graph, model.plan, "integer"), samples(model.source, 2)
    own = reference.run(feeds)
    given = {"b_q8": np.zeros_like(own["b_q8"])}
    values = reference.run(feeds, given)
    np.testing.assert_array_equal(values["b_q8"], own["b_q8"])
    assert not np.array_equal(values["d_q8"], own["d_q8"])
    alone = reference.run(feeds, given=own)
    assert all(np.array_equal(alone[name], own[name]) for name in own)


def test_feeds_and_given_are_not_changed() -> None:
    model = compiled(MOVERS, CALIBRATE)
    reference, feeds = simulate(model.graph, model.plan, "integer"), samples(model.source, 2)
    before = {name: array.copy() for name, array in feeds.items()}
    given = reference.run(feeds)
    kept = {name: array.copy() for name, array in given.items()}
    reference.run(feeds, given)
    for arrays, copies in ((feeds, before), (given, kept)):
        assert all(np.array_equal(arrays[name], copies[name]) for name in arrays)


def test_batches_of_any_size_share_the_sessions() -> None:
    model = compiled(MOVERS, CALIBRATE)
    reference = simulate(model.graph, model.plan, "integer")
    together = reference.run(samples(model.source, 4))
    sessions = dict(reference.sessions)
    one = reference.run({name: array[1:2] for name, array in samples(model.source, 4).items()})
    assert all(np.array_equal(one[name], together[name][1:2]) for name in one)
    assert reference.sessions == sessions


@pytest.mark.parametrize("name", NETWORKS)
def test_it_returns_every_value_of_the_program(name: str) -> None:
    model = compiled(NETWORKS[name], CALIBRATE, w=4, a=4)
    program = lower(model.graph, model.plan)
    values = IntegerReference(model.graph, model.plan, program).run(samples(model.source, 2))
    assert list(values) == [value.name for step in program.steps for value in step.outputs]
    for step in program.steps:
        for value in step.outputs:
            assert values[value.name].dtype == (np.uint8 if value.quantizer else np.float32)
            assert value.quantizer is None or values[value.name].max() <= value.quantizer.grid.high


@pytest.mark.parametrize("precision", [(8, 8), (4, 4)], ids=str)
@pytest.mark.parametrize(
    "text", [CHAIN, RESIDUAL, RELU6, CONCAT, CLASSIFIER, SQUEEZE_EXCITE, ELEMENTWISE, MOVERS, ATTENTION]
)
def test_codes_of_onnx_own_reference(text: str, precision: tuple[int, int]) -> None:
    """Another implementation of the file's text, in numpy: float between the quantizers, so a few codes are one off."""
    source = network(text, opset=21)  # the oldest whose per-channel DequantizeLinear it has
    model = compiled(source, EMIT, w=precision[0], a=precision[1], pack="none")
    assert model.emitted is not None
    feeds = samples(model.source, 2)
    reference = simulate(model.graph, model.plan, "integer")
    made = {name for node in model.emitted.graph.node for name in node.output}
    coded = [v.name for s in reference.program.steps for v in s.outputs if v.quantizer and v.name in made]
    watched = onnx.ModelProto()
    watched.CopyFrom(model.emitted)
    tap(watched, coded)
    outputs = [item.name for item in watched.graph.output]
    codes = {k: v for k, v in zip(outputs, ReferenceEvaluator(watched).run(None, feeds)) if k in coded}
    own = reference.run(feeds, given=codes)
    off = {name: np.abs(found.astype(int) - own[name]) for name, found in codes.items()}
    assert max(error.max() for error in off.values()) <= 1
    # Half a percent: ONNX's reference divides and adds in another order, and has float64 in places.
    assert sum(np.count_nonzero(error) for error in off.values()) <= 1 + sum(e.size for e in off.values()) // 200


def test_sizes_that_are_computed_when_it_runs() -> None:
    source = network(
        """net (float[N,3,H,W] x, float[4,3,3,3] A, float[4,4,3,3] B, float[4,4,1,1] C) => (float[N,4,P,Q] y) {
          [first] a = Conv<pads = [1,1,1,1]>(x, A)  [size] s = Shape(a)
          [inner] b = Conv<pads = [1,1,1,1], strides = [2,2]>(a, B)  [up] c = Resize<mode = "nearest">(b, , , s)
          [add] d = Add(c, a)  [last] y = Conv(d, C)
        }"""
    )
    model = compiled(source, EMIT)
    assert model.emitted is not None
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 7, 9)).astype(np.float32)}
    expected = Session(model.emitted, threads=1).run(feeds)["y"]
    np.testing.assert_array_equal(simulate(model.graph, model.plan, "integer").run(feeds)["y"], expected)


def test_shared_weight_quantized_along_each_readers_axis() -> None:
    """One matrix, read as a Gemm weight both ways round: output channels along axis 0 and along axis 1."""
    source = network(
        """net (float[N,6] x, float[6,6] A) => (float[N,6] y) {
          [across] a = Gemm(x, A)  [relu] b = Relu(a)  [along] y = Gemm<transB = 1>(b, A)
        }"""
    )
    model = compiled(source, EMIT)
    assert model.emitted is not None
    assert {name: weight.axis for name, weight in model.plan.weights.items()} == {"across": 1, "along": 0}
    feeds = samples(source, 3)
    expected = Session(model.emitted, threads=1).run(feeds)["y"]
    np.testing.assert_array_equal(simulate(model.graph, model.plan, "integer").run(feeds)["y"], expected)


def test_constant_weight_of_the_graph_is_not_what_is_read() -> None:
    """The plan holds the weights: what a pass changes there is what runs."""
    model = compiled(CHAIN, CALIBRATE)
    feeds = samples(model.source, 2)
    before = simulate(model.graph, model.plan, "integer").run(feeds)["y"]
    weight = next(node for node in model.graph.nodes if node.name == "conv2").inputs[1]
    weight.values = np.zeros_like(weight.values)
    np.testing.assert_array_equal(simulate(model.graph, model.plan, "integer").run(feeds)["y"], before)


def test_default_domain_under_its_long_name() -> None:
    source = network(ELEMENTWISE)
    source.opset_import[0].domain = "ai.onnx"
    model = compiled(source, EMIT)
    assert model.emitted is not None
    feeds = samples(source, 2)
    expected = Session(model.emitted, threads=1).run(feeds)["y"]
    np.testing.assert_array_equal(simulate(model.graph, model.plan, "integer").run(feeds)["y"], expected)
