"""What crosses the border of a piece, and what stands at it: each network here has a form that went wrong once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from networks import CORRECT, network, run
from numpy.typing import NDArray

from qcompile import Config, QModel, open_model
from qcompile.passes.partition_units import PartitionUnits
from qcompile.training.pieces import Piece, cut_layers, join_units, without_integers
from qcompile.training.recipe import Training
from qcompile.training.reconstruction import Outcome, reconstruct

DECIDE = (CORRECT[0], PartitionUnits(), *CORRECT[1:])
NETWORKS = {
    # b is read by a sum in 8 bits and by two layers in 4: the narrow codes are made in one piece and read in two
    "narrow codes of two readers": """n (float[N,3,8,8] x, float[8,3,1,1] A, float[8,8,3,3] B, float[8,8,3,3] C,
      float[4,8,1,1] D, float[4,8,1,1] E) => (float[N,4,P,Q] y, float[N,4,P,Q] z) {
        [stem] a = Conv(x, A)  [relu] b = Relu(a)  [one] c = Conv<pads = [1,1,1,1]>(b, B)  [sum] s = Add(b, c)
        [two] d = Conv<pads = [1,1,1,1]>(b, C)  [head] y = Conv(d, D)  [head2] z = Conv(s, E)
    }""",
    "integers": """n (int64[N,6] ids, float[N,6,8] x, float[10,8] T, float[8,8] A, float[8,8] B, float[8,4] C)
      => (float[N,6,4] y) {
        [embed] e = Gather<axis = 0>(T, ids)  [first] a = MatMul(x, A)  [relu] b = Relu(a)  [add] s = Add(b, e)
        [inner] c = MatMul(s, B)  [relu2] d = Relu(c)  [last] y = MatMul(d, C)
    }""",
    # the sum is float, and the Relu behind it is the lower bound of the quantizer of the next layer's input
    "a clip behind a float sum": """n (float[N,5,8] x, float[8,16] A, float[16,16] B, float[16] K, float[16,4] C)
      => (float[N,5,4] y) {
        [first] a = MatMul(x, A)  [relu] b = Relu(a)  [inner] c = MatMul(b, B)  [bias] d = Add(c, K)
        [relu2] e = Relu(d)  [last] y = MatMul(e, C)
    }""",
    "tokens in the batch": """n (float[N,6,8] x, float[8,8] A, float[8] K, float[8,8] B, float[8,4] C)
      => (float[N,6,4] y) <int64[2] flat = {-1,8}, int64[3] back = {-1,6,4}> {
        [flatten] a = Reshape(x, flat)  [first] b = Gemm(a, A, K)  [relu] c = Relu(b)  [inner] d = Gemm(c, B)
        [relu2] e = Relu(d)  [last] f = Gemm(e, C)  [restore] y = Reshape(f, back)
    }""",
    "images of any size": """n (float[N,3,H,W] x, float[8,3,3,3] A, float[8] K, float[8,8,3,3] B, float[4,8,1,1] C)
      => (float[N,4,P,Q] y) {
        [first] a = Conv<pads = [1,1,1,1]>(x, A, K)  [relu] b = Relu(a)
        [inner] c = Conv<pads = [1,1,1,1], strides = [2,2]>(b, B)  [relu2] d = Relu(c)  [last] y = Conv(d, C)
    }""",
    # both pieces read the codes of one constant, as after the merging of equal ones
    "a constant of two readers": """n (float[N,3,8,8] x, float[8,3,1,1] A, float[8,8,3,3] B, float[4,8,1,1] C)
      => (float[N,4,P,Q] y) <float[1,8,1,1] k = {0.5,1,1.5,2,0.5,1,1.5,2}> {
        [first] a = Conv(x, A)  [sigmoid] b = Sigmoid(a)  [one] c = Mul(b, k)
        [inner] d = Conv<pads = [1,1,1,1]>(c, B)  [sigmoid2] e = Sigmoid(d)  [two] f = Mul(e, k)  [last] y = Conv(f, C)
    }""",
    # the first piece reads the shape of its own sum's operand, and the last one reads it again
    "a shape of two readers": """n (float[N,3,H,W] x, float[8,3,1,1] A, float[1,8,1,1] K, float[8,8,3,3] B,
      float[4,8,1,1] C) => (float[N,4,P,Q] y) {
        [first] a = Conv(x, A)  [size] s = Shape(a)  [grow] g = Expand(K, s)  [add] b = Add(a, g)
        [sigmoid] c = Sigmoid(b)  [inner] d = Conv<pads = [1,1,1,1]>(c, B)  [relu] e = Relu(d)
        [restore] f = Reshape(e, s)  [last] y = Conv(f, C)
    }""",
    # the scale in front of the comparison has no gradient
    "a comparison": """n (float[N,3,8,8] x, float[8,3,1,1] A, float[8,8,3,3] B, float[4,8,1,1] C) => (float[N,4,P,Q] y)
      <float zero = {0}> {
        [first] a = Conv(x, A)  [relu] b = Relu(a)  [inner] c = Conv<pads = [1,1,1,1]>(b, B)
        [above] g = Greater(c, zero)  [choose] k = Where(g, b, a)  [last] y = Conv(k, C)
    }""",
}  # fmt: skip


def samples(model: onnx.ModelProto, count: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(1)
    given: dict[str, NDArray[Any]] = {}
    for item in model.graph.input:
        kind = item.type.tensor_type
        shape = (count, *(dim.dim_value or 8 for dim in kind.shape.dim[1:]))
        integers = kind.elem_type == onnx.TensorProto.INT64
        given[item.name] = random.integers(0, 10, shape) if integers else random.normal(size=shape).astype(np.float32)
    return given


def calibrated(text: str, count: int = 60) -> QModel:
    source = network(text)
    config = Config(w=2, a=4, method="qdrop", steps=200, threads=1)
    model = open_model(source, config, samples(source, count))
    run(model, DECIDE)
    return model


def trained(model: QModel, pieces: Iterable[Piece]) -> list[Outcome]:
    return list(reconstruct(model, list(pieces), Training.of(model.config)))


def units(model: QModel) -> list[Piece]:
    return join_units(model.plan, model.plan.trained_together())


def layers(model: QModel) -> list[Piece]:
    return cut_layers(model.graph)


@pytest.mark.parametrize("cut", [units, layers])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_piece_is_trained(name: str, cut: Any) -> None:
    model = calibrated(NETWORKS[name], 120)  # twelve judge: with six, rounding in the last place decided whether one is
    outcomes = trained(model, cut(model))
    assert [outcome.reason for outcome in outcomes] == [""] * len(outcomes)
    assert {node for piece in cut(model) for node in piece.nodes} >= set(model.plan.weights)
    assert any(outcome.trained for outcome in outcomes)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_tokens_in_the_batch_with_few_samples(count: int) -> None:
    model = calibrated(NETWORKS["tokens in the batch"], count)
    assert [outcome.reason for outcome in trained(model, units(model))] == [""] * 3


def test_the_loss_of_a_classifier_that_gives_out_classes_is_that_of_its_logits() -> None:
    text = """n (float[N,3,8,8] x, float[8,3,1,1] A, float[8,8,3,3] B, float[4,8,1,1] C) => ({result}) {{
      [first] a = Conv(x, A)  [relu] b = Relu(a)  [inner] c = Conv<pads = [1,1,1,1]>(b, B)  [relu2] d = Relu(c)
      [last] e = Conv(d, C)  {end}
    }}"""
    classes = calibrated(text.format(result="int64[N,1,P,Q] y", end="[class] y = ArgMax<axis = 1>(e)"))
    logits = calibrated(text.format(result="float[N,4,P,Q] e", end=""))
    outcomes = [trained(model, units(model)) for model in (classes, logits)]
    assert [outcome.reason for outcome in outcomes[0]] == [""] * 3
    assert outcomes[0] == outcomes[1]


def test_a_model_of_integers_at_its_end_is_trained_layer_by_layer_too() -> None:
    model = calibrated(
        """n (float[N,8] x, float[8,8] A, float[8,4] B) => (int64[N] y) <int64[1] axis = {1}> {
          [first] a = MatMul(x, A)  [relu] b = Relu(a)  [last] c = MatMul(b, B)
          [class] d = ArgMax<axis = 1>(c)  [flat] y = Squeeze(d, axis)
        }"""
    )
    pieces = list(without_integers(model.graph, cut_layers(model.graph)))
    assert [piece.nodes for piece in pieces] == [("first", "relu"), ("last",), ("class", "flat")]
    assert [outcome.reason for outcome in trained(model, cut_layers(model.graph))] == [""] * 2


TURNED = """n (float[N,16,8] x, float[8,8] A, float[8,8] B, float[8,4] C) => (float[N,16,4] y)
  <int64[2] flat = {{-1,8}}, int64[3] back = {{16,-1,8}}> {{
    [turn] t = Transpose<perm = [1,0,2]>(x)  [first] a = MatMul(t, A)  [relu] b = Relu(a)  {fold}
    [inner] c = MatMul({start}, B)  [relu2] d = Relu(c)  {restore}
    [last] e = MatMul({end}, C)  [back] y = Transpose<perm = [1,0,2]>(e)
}}"""


def test_samples_may_be_counted_by_any_axis() -> None:
    """Tokens stand in front of the batch here; the pieces are those of the same network the other way round."""
    turned = calibrated(TURNED.format(fold="", start="b", restore="", end="d"), 71)
    straight = calibrated(
        """n (float[N,16,8] x, float[8,8] A, float[8,8] B, float[8,4] C) => (float[N,16,4] y) {
          [first] a = MatMul(x, A)  [relu] b = Relu(a)  [inner] c = MatMul(b, B)  [relu2] d = Relu(c)
          [last] y = MatMul(d, C)
        }""",
        71,
    )
    outcomes = [trained(model, units(model)) for model in (turned, straight)]
    assert [outcome.reason for outcome in outcomes[0]] == [""] * 3
    errors = [[outcome.before for outcome in row[:2]] for row in outcomes]  # later ones depend on how training went
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert outcomes[0][1].trained


def test_values_that_are_not_ordered_by_sample_are_not_trained_on() -> None:
    """The tokens of all samples follow each other in the batch."""
    model = calibrated(
        TURNED.format(fold="[fold] m = Reshape(b, flat)", start="m", restore="[restore] f = Reshape(d, back)", end="f"),
        71,
    )
    assert model.data is not None
    before = copy.deepcopy(model.plan.weights)
    outcomes = trained(model, units(model))
    assert [outcome.what for outcome in outcomes] == ["not trained"] * 3
    assert [outcome.reason for outcome in outcomes] == [
        "the values of 'm', which it makes, are not ordered by sample",
        "the values of 'm', which it reads, are not ordered by sample",
        "the values of 'f', which it reads, come from those of 'm', which are not ordered by sample",
    ]
    assert [outcome.before for outcome in outcomes] == [None] * 3
    assert all((model.plan.weights[name].codes == weight.codes).all() for name, weight in before.items())


def test_what_a_detector_keeps_does_not_stop_the_training() -> None:
    """How many rows there are depends on the values; nothing behind them has weights."""
    model = calibrated(
        """n (float[N,3,8,8] x, float[8,3,1,1] A, float[8,8,3,3] B, float[1,8,1,1] C)
          => (float[K] y, float[N,1,P,Q] scores) <float zero = {0}, int64[1] all = {-1}> {
            [first] a = Conv(x, A)  [relu] b = Relu(a)  [inner] c = Conv<pads = [1,1,1,1]>(b, B)  [relu2] d = Relu(c)
            [last] scores = Conv(d, C)  [flat] f = Reshape(scores, all)  [above] g = Greater(f, zero)
            [keep] k = Compress<axis = 0>(f, g)  [scale] y = Sqrt(k)
        }"""
    )
    assert [outcome.reason for outcome in trained(model, units(model))] == [""] * 3


def test_double_precision_inside_is_named() -> None:
    text = """n (float[N,8] x, float[8,8] A, float[8,8] B, float[8,4] C) => (float[N,4] y) {
        [first] a = MatMul(x, A)  [relu] b = Relu(a)  [inner] c = MatMul(b, B)  [wide] d = Cast<to = 11>(c)
        [exp] e = Exp(d)  [back] f = Cast<to = 1>(e)  [last] y = MatMul(f, C) }"""
    model = calibrated(text)
    reasons = [outcome.reason for outcome in trained(model, units(model)) if outcome.what == "not trained"]
    assert reasons == ["'d', which it makes, is float64"]
