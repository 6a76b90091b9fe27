"""Correction of scales and biases: it recovers what is affine, helps on whole networks, and costs no exactness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from networks import (
    ATTENTION,
    CALIBRATE,
    CHAIN,
    CLASSIFIER,
    CORRECT,
    NETWORKS,
    PLACE,
    RELU6,
    RESIDUAL,
    Arrays,
    compiled,
    network,
    run,
    samples,
)
from onnx import numpy_helper

from qcompile import Config, InputError, QModel, open_model
from qcompile.execution.spool import Spool
from qcompile.passes import correct_bias
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer, WeightQuantizer
from qcompile.quant.plan import Edge, Plan
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

W4A4: dict[str, Any] = {"w": 4, "a": 4}


def error(model: QModel, feeds: Arrays) -> float:
    """Return the squared error of the emitted file against the float model, as a share of the outputs' power."""
    InsertQDQ().run(model)
    assert model.emitted is not None
    expected, found = (Session(source, threads=1).run(feeds) for source in (model.source, model.emitted))
    return max(float(np.mean((expected[n] - found[n]) ** 2) / np.mean(expected[n] ** 2)) for n in expected)


def numbers(plan: Plan) -> dict[str, bytes]:
    """Return all weights and biases as bytes."""
    found = {f"{name}:bias": bias.tobytes() for name, bias in plan.biases.items()}
    for name, weight in plan.weights.items():
        found[name] = weight.codes.tobytes() + weight.scale.tobytes() + weight.step.tobytes() + weight.offset.tobytes()
    return found


@pytest.mark.parametrize("bits", [{"w": 3, "a": 3}, W4A4], ids=str)
@pytest.mark.parametrize("text", [CHAIN, RELU6, RESIDUAL], ids=["chain", "relu6", "residual"])
def test_error_on_other_samples_is_smaller(text: str, bits: dict[str, Any]) -> None:
    """On three networks together: of single ones, one in twenty gets worse, by a percent or two."""
    ratio = 1.0
    for seed in range(3):
        source = network(text, seed=seed)
        errors = []
        for passes in (CALIBRATE, CORRECT):
            model = open_model(source, Config(threads=1, **bits), samples(source, 100))
            run(model, passes)
            errors.append(error(model, samples(source, 64, seed=99)))
        ratio *= errors[1] / errors[0]
    assert ratio < 0.97


def on_the_grid() -> tuple[QModel, np.ndarray, np.ndarray]:
    """Return a layer that quantization leaves exact, but for a slope and a shift per channel put into its plan."""
    source = network(
        """net (float[N,2,4,4] x, float[3,2,1,1] A, float[3] B) => (float[N,3,4,4] y) <
          float[3,2,1,1] W = {0.5, -0.25, 1, 0.75, -1, 0.5}, float[3] C = {1, -2, 0}
        > { [only] a = Conv(x, W, C)  [neg] y = Neg(a) }"""
    )
    data = np.random.default_rng(0).integers(0, 256, (32, 2, 4, 4)).astype(np.float32)
    model = open_model(source, Config(threads=1, w=4, a=4, bits=(("only", 7, 8),)), {"x": data})
    run(model, PLACE)
    slope, shift = np.array([0.8, 1.25, 1.0]), np.array([3.0, -1.0, 0.0])
    codes = (np.array([2, -1, 4, 3, -4, 2]) + 64).astype(np.uint8).reshape(3, 2, 1, 1)
    lattice = (np.ones(3, np.int8), np.full(3, -64, np.int8))
    model.plan.quantizers.update(
        {Edge("x"): Quantizer(unsigned(8), 1.0, 0), Edge("a"): Quantizer(unsigned(8), 3.0, 128)}
    )
    model.plan.weights["only"] = WeightQuantizer(7, 0, codes, (0.25 / slope).astype(np.float32), *lattice)
    model.plan.biases["only"] = (np.array([1, -2, 0]) / slope - shift / slope).astype(np.float32)
    return model, slope, shift


def test_affine_error_of_a_layer_is_recovered() -> None:
    model, _, _ = on_the_grid()
    assert CorrectBias().run(model) == 1
    np.testing.assert_allclose(model.plan.weights["only"].scale, 0.25, rtol=1e-5)  # float32 means of squares
    np.testing.assert_allclose(model.plan.biases["only"], [1, -2, 0], atol=0.01)  # int32 biases in steps of a quarter
    assert model.plan.weights["only"].integers().reshape(-1).tolist() == [2, -1, 4, 3, -4, 2]


def test_layer_without_a_bias_gets_one() -> None:
    plan = compiled(RESIDUAL, CORRECT, **W4A4).plan
    assert {"first", "head"} <= plan.biases.keys() and "first" not in compiled(RESIDUAL, CALIBRATE, **W4A4).plan.biases


@pytest.mark.parametrize(
    "middle",
    [
        "parts = SplitToSequence<axis=1>(r, two)  p = SequenceAt(parts, one)",
        "all = SplitToSequence<axis=1>(r, two)  parts = SequenceInsert(all, r)  p = SequenceAt(parts, one)",
    ],
)
def test_sequences_between_layers_change_no_number(middle: str) -> None:
    """What stands between two layers is kept from one to the next; a sequence cannot be, and is made again."""
    text = """net (float[N,3,5,5] x, float[4,3,3,3] A, float[4] B, float[3,2,1,1] C)
        => (float[N,3,P,P] y, float[N,2,P,P] z) <
        int64 one = {1}, int64 two = {2}, int64[1] from = {2}, int64[1] to = {4}, int64[1] axis = {1}> {
        [first] a = Conv(x, A, B)  [relu] r = Relu(a)  MIDDLE  [second] y = Conv(p, C)  [last] z = Sigmoid(p) }"""
    plans = [
        compiled(text.replace("MIDDLE", part), CORRECT, **W4A4).plan
        for part in (middle, "p = Slice(r, from, to, axis)")
    ]
    assert numbers(plans[0]) == numbers(plans[1])


def perturbed(text: str, node: str, slope: float, shift: float, **settings: Any) -> tuple[Plan, Plan]:
    """Return the corrected plans of a network whose layer `node` was made wrong in two ways before the correction."""
    plans = []
    for factor, offset in ((0.8, -0.2), (slope, shift)):
        model = compiled(text, CALIBRATE, **settings)
        weight = model.plan.weights[node]
        model.plan.weights[node] = replace(weight, scale=(weight.scale * np.float32(factor)).astype(np.float32))
        model.plan.biases[node] = (model.plan.biases[node] * factor + offset).astype(np.float32)
        CorrectBias().run(model)
        plans.append(model.plan)
    return plans[0], plans[1]


@pytest.mark.parametrize("node", ["conv1", "head"])
def test_an_artificial_affine_error_leaves_no_trace(node: str) -> None:
    """In the first layer, where everything behind must not see it, and in the last, which gives float32."""
    clean, wrong = perturbed(CLASSIFIER, node, 1.5, 0.25, **W4A4)
    # float32 variances, of values whose mean is up to thirty times as large
    np.testing.assert_allclose(wrong.weights[node].scale, clean.weights[node].scale, rtol=2e-3)
    np.testing.assert_allclose(wrong.biases[node], clean.biases[node], atol=0.01)  # slope's error times that mean


def test_mean_error_of_the_skip_goes_into_the_bias() -> None:
    """The trunk's quantizer clips most of its range: what it loses in the mean is added in front of the sum."""
    model = compiled(RESIDUAL, CALIBRATE, **W4A4)
    trunk = model.plan.quantizers[Edge("trunk")]
    model.plan.quantizers[Edge("trunk")] = replace(trunk, scale=float(np.float32(trunk.scale / 6)))
    assert model.data is not None
    (feeds,) = model.data.batches(model.data.count)
    exact = inner_values(model.source, feeds, ("trunk", "d"))

    def means() -> np.ndarray:
        """Return the mean error [C] of the sum's two operands, the layer's before its quantizer clips it."""
        codes = simulate(model.graph, model.plan, "integer").run(feeds)
        total = np.zeros(4)
        for name in ("trunk", "d"):
            quantizer = model.plan.quantizers[Edge(name)]
            values = (codes[f"{name}_q8"].astype(float) - quantizer.zero_point) * quantizer.scale
            total += (values - exact[name]).mean((0, 2, 3))
        return np.abs(total)

    model.plan.quantizers[Edge("d")] = Quantizer(
        unsigned(8), float(np.float32(2 * model.plan.quantizers[Edge("d")].scale)), 128
    )  # no clip
    before = means()
    CorrectBias().run(model)
    assert before.max() > 0.1  # the trunk is around 1
    assert (means() < 0.05 * before.max()).all()


def inner_values(source: onnx.ModelProto, feeds: Arrays, names: tuple[str, ...]) -> Arrays:
    watched = onnx.ModelProto()
    watched.CopyFrom(source)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return Session(watched, threads=1).run(feeds, names)


@pytest.mark.parametrize("text", [CHAIN, RESIDUAL], ids=["chain", "residual"])
def test_8_bits_are_corrected_too(text: str) -> None:
    """A wrong slope in one layer is found at 8 bits as well; the error on other samples is that of before."""
    source = network(text)
    node = "conv2" if text is CHAIN else "first"
    errors = []
    for factor, passes in ((1.0, ()), (0.7, ()), (0.7, (CorrectBias(),))):
        model = open_model(source, Config(threads=1), samples(source, 64))
        run(model, CALIBRATE)
        weight = model.plan.weights[node]
        model.plan.weights[node] = replace(weight, scale=(weight.scale * np.float32(factor)).astype(np.float32))
        for item in passes:
            item.run(model)
        errors.append(error(model, samples(source, 64, seed=99)))
    assert errors[1] > 10 * errors[0]
    assert errors[2] < 1.1 * errors[0]


def test_8_bit_model_with_one_narrow_layer_is_corrected() -> None:
    model = compiled(RESIDUAL, CALIBRATE, bits=(("second", 8, 5),))
    assert CorrectBias().run(model) == 4


def test_layers_are_counted_and_products_of_matrices_are_none() -> None:
    """MatMul has no bias to correct."""
    assert CorrectBias().run(compiled(CHAIN, CALIBRATE, **W4A4)) == 3
    model = compiled(ATTENTION, CALIBRATE, **W4A4)
    before = numbers(model.plan)
    assert CorrectBias().run(model) == 0 and numbers(model.plan) == before


def test_quantizers_and_codes_are_not_touched() -> None:
    before, after = (compiled(RESIDUAL, passes, **W4A4).plan for passes in (CALIBRATE, CORRECT))
    assert before.quantizers == after.quantizers and before.specs == after.specs
    for name, weight in before.weights.items():
        np.testing.assert_array_equal(after.weights[name].codes, weight.codes)
        ratio = after.weights[name].scale / weight.scale
        assert (ratio >= 0.5).all() and (ratio <= 2).all()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_same_bytes_whatever_stays_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = numbers(compiled(NETWORKS[name], CORRECT, **W4A4).plan)
    for memory in (0, 20_000):
        monkeypatch.setattr(correct_bias, "Spool", lambda memory=memory: Spool(memory))
        assert numbers(compiled(NETWORKS[name], CORRECT, **W4A4).plan) == expected


def test_only_so_many_samples_count_drawn_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most, given in ((8, 15), (256, 8)):
        monkeypatch.setattr(correct_bias, "SAMPLES", most)
        model = compiled(CHAIN, CALIBRATE, **W4A4)
        assert model.data is not None and model.data.count == 15
        model.data = model.data.sample(given, model.config.seed)
        CorrectBias().run(model)
        found.append(numbers(model.plan))
    assert found[0] == found[1]


def test_fixed_batch() -> None:
    source = network(CHAIN.replace("float[N,3,8,8] image", "float[4,3,8,8] image"))
    model = open_model(source, Config(threads=1, **W4A4), samples(source, 16))
    run(model, (*CORRECT, InsertQDQ()))
    assert error(model, samples(source, 4, seed=5)) < 0.1


def test_files_of_corrected_plans_have_the_codes_of_the_reference() -> None:
    model = compiled(RESIDUAL, (*CORRECT, InsertQDQ()), **W4A4)
    assert model.emitted is not None
    feeds = samples(model.source, 4, seed=5)
    expected = Session(model.emitted, threads=1).run(feeds)["y"]
    np.testing.assert_array_equal(simulate(model.graph, model.plan, "integer").run(feeds)["y"], expected)


OUTLIER = """net (float[N,16] x, float[32,16] W1, float[32] B1, float[8,32] W2, float[8] B2, float[8,8] W3)
  => (float[N,8] y) {
  [up] a = Gemm<transB = 1>(x, W1, B1)  [relu] g = Relu(a)  [down] b = Gemm<transB = 1>(g, W2, B2)
  [norm] n = Neg(b)  [absolute] p = Abs(n)  [last] y = Gemm<transB = 1>(p, W3)
}"""


def outlier(clipped: bool) -> QModel:
    """Return a model in which one hidden unit carries a huge value for one token in eight, which 4 bits may clip."""
    source = network(OUTLIER)
    weights = {item.name: item for item in source.graph.initializer}
    up, down = (numpy_helper.to_array(weights[name]).copy() for name in ("W1", "W2"))
    up[5] = 0
    up[5, 0] = 1
    down[:, 5] = 1
    weights["W1"].CopyFrom(numpy_helper.from_array(up, "W1"))
    weights["W2"].CopyFrom(numpy_helper.from_array(down, "W2"))
    data = np.random.default_rng(1).normal(size=(256, 16)).astype(np.float32)
    data[:, 0] = np.where(np.arange(256) // 4 % 8 == 0, 60, 0)
    model = open_model(source, Config(threads=1, w=8, a=4, bits=(("down", 8, 4),), samples=None), {"x": data})
    run(model, CALIBRATE)
    hidden = model.plan.quantizers[Edge("g")]
    model.plan.quantizers[Edge("g")] = replace(hidden, scale=float(np.float32(3 / 15 if clipped else 66 / 15)))
    return model


@pytest.mark.parametrize("clipped", [True, False])
def test_a_clipped_outlier_ruins_no_token_that_is_not_clipped(clipped: bool) -> None:
    """The mean that is missing would shift all tokens; the correction is refused, and the journal says so."""
    model = outlier(clipped)
    before = numbers(model.plan)
    CorrectBias().run(model)
    changed = {name.partition(":")[0] for name, value in numbers(model.plan).items() if value != before.get(name)}
    (note,) = model.journal.by("correct-bias")
    assert ("down" not in changed) == clipped
    assert ("down" in note["refused"]) == clipped


def test_without_data_it_says_so() -> None:
    model = compiled(CHAIN, CALIBRATE, **W4A4)
    model.data = None
    with pytest.raises(InputError, match="no calibration data"):
        CorrectBias().run(model)


def test_tensor_that_a_branch_captures() -> None:
    compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,8,8] y) <float zero = {0}> {
          [first] a = Conv(x, A)  [relu] b = Relu(a)  [mean] m = ReduceMean<keepdims = 0>(x)
          [inner] c = Conv(b, B)  [big] t = Greater(m, zero)
          [if] e = If(t)<then_branch = yes () => (float[N,4,8,8] u) { u = Neg(b) },
            else_branch = no () => (float[N,4,8,8] v) { v = Add(c, zero) }>
          [last] y = Conv(e, B)
        }""",
        CORRECT,
        **W4A4,
    )


def test_sizes_that_are_computed_in_front_of_an_earlier_layer() -> None:
    compiled(
        """net (float[N,3,H,W] x, float[4,3,3,3] A, float[4,4,3,3] B, float[4,4,1,1] C) => (float[N,4,P,Q] y) {
          [first] a = Conv<pads = [1,1,1,1]>(x, A)  [size] s = Shape(a)
          [inner] b = Conv<pads = [1,1,1,1], strides = [2,2]>(a, B)  [second] c = Conv(b, C)
          [up] d = Resize<mode = "nearest">(c, , , s)  [add] e = Add(d, a)  [last] y = Conv(e, C)
        }""",
        CORRECT,
        **W4A4,
    )


def test_constant_that_is_read_before_and_behind_a_layer() -> None:
    compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,1,1] K, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
          [first] a = Conv(x, A)  [before] b = Mul(a, K)  [second] c = Conv(b, B)  [behind] d = Mul(c, K)
          [last] y = Conv(d, B)
        }""",
        CORRECT,
        **W4A4,
    )
