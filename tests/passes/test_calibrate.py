"""Calibration: every quantizer gets numbers from what its tensor was on the samples, by the method asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from networks import (
    CALIBRATE,
    CHAIN,
    CLASSIFIER,
    ELEMENTWISE,
    HARD_SWISH,
    JOINED,
    NETWORKS,
    PLACE,
    RELU6,
    RESIDUAL,
    SQUEEZE_EXCITE,
    Arrays,
    compiled,
    network,
    run,
    samples,
)
from onnx import numpy_helper

from qcompile import Config, InputError, QModel, open_model
from qcompile.calibration.observers import Histogram
from qcompile.calibration.ranges import Ranges, choose, grids
from qcompile.passes.calibrate import Calibrate
from qcompile.pipeline import ranges_of
from qcompile.program.operands import weight_axis
from qcompile.quant.bias import LARGEST, integer_bias
from qcompile.quant.grid import unsigned
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.plan import Edge, Form
from qcompile.quant.scales import quantize_weight
from qcompile.runtime.session import Session
from qcompile.targets.ort_cpu.forms import HARD_SIGMOID


def seen(model: QModel, tensors: list[str]) -> Arrays:
    """Return all values of tensors over all samples, from the float model as it was loaded."""
    assert model.data is not None and model.held_back is not None
    watched = onnx.ModelProto()
    watched.CopyFrom(model.source)
    own = {item.name for item in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in own)
    samples = model.data.joined(model.held_back)
    assert samples.count == model.data.count + model.held_back.count  # a range is one of all of them
    (feeds,) = samples.batches(samples.count)
    return Session(watched, level="off", threads=1).run(feeds) | feeds


@pytest.mark.parametrize("name", ["chain", "residual", "relu6", "classifier", "movers", "attention"])
def test_8_bit_ranges_are_the_minimum_and_maximum_of_the_samples(name: str) -> None:
    model = compiled(NETWORKS[name], CALIBRATE)
    plan = model.plan
    values = seen(model, list(plan.groups))
    for key, spec in plan.specs.items():
        quantizer, lo, hi = plan.quantizers[key], values[key.tensor].min(), values[key.tensor].max()
        scale, zero_point = grids(np.array([lo], float), np.array([hi], float), spec)
        np.testing.assert_allclose(quantizer.scale, scale[0], rtol=1e-5, err_msg=str(key))  # sums in another order
        assert abs(quantizer.zero_point - zero_point[0]) <= (2 if spec.even_zero_point else 1), key
        step = quantizer.scale
        assert quantizer.low <= max(lo, spec.lower) + step, key
        assert quantizer.high >= min(hi, spec.upper) - step, key


def test_absorbed_bounds_hold_for_what_is_observed_before_or_behind_them() -> None:
    plan = compiled(RELU6, CALIBRATE, w=4, a=4).plan
    for key in (Edge("b"), Edge("d")):
        assert plan.quantizers[key].zero_point == 0 and plan.quantizers[key].high <= np.float32(6)


@pytest.mark.parametrize("method", ["max", "mse", "percentile", "entropy"])
def test_methods(method: str) -> None:
    """Each quantizer is what `choose` makes of all the values at once; the method is that of the configuration."""
    percentile = {"percentile": 99.0} if method == "percentile" else {}
    model = compiled(CHAIN, CALIBRATE, w=4, a=4, calibration_method=method, **percentile)
    values = seen(model, list(model.plan.groups))
    for key, spec in model.plan.specs.items():
        observed = Histogram(key.tensor)
        observed.update(values[key.tensor])
        expected = choose(observed, spec, method, 99.0)  # type: ignore[arg-type]
        found = model.plan.quantizers[key]
        np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-5, err_msg=str(key))
        assert abs(found.zero_point - expected.zero_point) <= 1


def test_percentile_is_the_one_asked_for() -> None:
    scales = [
        compiled(CHAIN, CALIBRATE, calibration_method="percentile", percentile=p).plan.quantizers[Edge("b")].scale
        for p in (90.0, 99.0, 100.0)
    ]
    assert scales == sorted(set(scales))


@pytest.mark.parametrize("bits, method", [(8, "max"), (7, "mse"), (4, "mse"), (2, "mse")])
def test_method_by_bits(bits: int, method: str) -> None:
    assert Ranges().method_for(ActivationSpec(unsigned(bits))) == method
    assert Ranges("entropy").method_for(ActivationSpec(unsigned(bits))) == "entropy"


def test_wide_and_narrow_quantizer_of_one_tensor() -> None:
    plan = compiled(RESIDUAL, CALIBRATE, w=4, a=4).plan
    wide, narrow = plan.quantizers[Edge("trunk")], plan.quantizers[Edge("trunk", "first")]
    assert (wide.bits, narrow.bits) == (8, 4)
    assert 0.2 * wide.high < narrow.high <= wide.high * 1.2  # mse clips, or reaches a little beyond


def test_quantizer_that_the_operator_dictates() -> None:
    assert compiled(SQUEEZE_EXCITE, CALIBRATE, w=4, a=4).plan.quantizers[Edge("h")] == HARD_SIGMOID


def test_even_zero_points() -> None:
    plan = compiled(ELEMENTWISE, CALIBRATE).plan
    assert [plan.quantizers[Edge(name)].zero_point % 2 for name in ("b", "d", "f")] == [0, 0, 0]


def test_constant_operand_is_calibrated_on_itself() -> None:
    model = compiled(ELEMENTWISE, CALIBRATE)
    constant = next(numpy_helper.to_array(t) for t in model.source.graph.initializer if t.name == "K")
    quantizer = model.plan.quantizers[Edge("K")]
    assert quantizer.low <= constant.min() + quantizer.scale / 2
    assert quantizer.high >= constant.max() - quantizer.scale / 2
    span = max(constant.max(), 0) - min(constant.min(), 0)
    np.testing.assert_allclose(quantizer.scale, span / 255, rtol=0.02)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constant_of_one_value(value: float) -> None:
    text = f"""net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y)
    <float k = {{{value}}}> {{
      [first] a = Conv(x, A)  [other] b = Conv(x, A)  [product] c = Mul(a, k)  [sum] d = Add(c, b)
      [last] y = Conv(d, B)
    }}"""
    model = compiled(text, CALIBRATE)
    for key, quantizer in model.plan.quantizers.items():
        assert quantizer.scale > 0, key
    if value and Edge("k") in model.plan.quantizers:
        quantizer = model.plan.quantizers[Edge("k")]
        assert min(abs(quantizer.low - value), abs(quantizer.high - value)) < 1e-5 * abs(value)


def test_tensor_of_zeros() -> None:
    source = network(CHAIN)
    for tensor in source.graph.initializer:
        if tensor.name in ("W1", "B1"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))
    model = compiled(source, CALIBRATE, w=4, a=4)
    assert model.plan.quantizers[Edge("b")] == Quantizer(unsigned(4), 1.0, 0)
    assert not model.plan.weights["conv1"].dequantize().any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_are_rounded_along_their_output_channels(bits: int) -> None:
    model = compiled(CLASSIFIER, CALIBRATE, w=bits, first_last_bits=bits)
    for node in model.graph.nodes:
        if model.plan.form(node.name) is Form.COMPUTE:
            expected = quantize_weight(np.asarray(node.inputs[1].values), bits=bits, axis=weight_axis(node))
            found = model.plan.weights[node.name]
            np.testing.assert_array_equal(found.codes, expected.codes)
            np.testing.assert_array_equal(found.scale, expected.scale)
            assert found.bits == bits and found.codes.shape == tuple(node.inputs[1].shape)


def test_biases_are_those_of_the_graph() -> None:
    model = compiled(CHAIN, CALIBRATE)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.source.graph.initializer}
    assert model.plan.biases.keys() == {"conv1", "conv2"}
    np.testing.assert_array_equal(model.plan.biases["conv1"], arrays["B1"])


def test_dead_channel_leaves_room_for_its_bias() -> None:
    source = network(CHAIN)
    for tensor in source.graph.initializer:
        if tensor.name == "W2":
            weight = numpy_helper.to_array(tensor).copy()
            weight[5] *= 1e-20
            tensor.CopyFrom(numpy_helper.from_array(weight, "W2"))
        if tensor.name == "B2":
            tensor.CopyFrom(numpy_helper.from_array(np.full(16, 50, np.float32), "B2"))
    plan = compiled(source, CALIBRATE, w=4, a=4).plan
    data = plan.quantizers[plan.key("b", "conv2")]
    codes, scale = integer_bias(plan.biases["conv2"], data.scale, plan.weights["conv2"].scale)
    assert np.abs(codes.astype(np.int64)).max() <= 1.001 * LARGEST
    np.testing.assert_allclose(codes * scale, 50, rtol=1e-3)


def test_concat_of_inputs_alike_becomes_a_copy_of_codes() -> None:
    plan = compiled(JOINED, PLACE).plan
    assert plan.form("join") is Form.ARITHMETIC and len({plan.groups[name] for name in "cde"}) == 3
    plan = compiled(JOINED, CALIBRATE).plan
    assert plan.form("join") is Form.CODES and {plan.groups[name] for name in "cde"} == {"e"}


def test_an_empty_cache_has_the_quantizer_of_what_it_is_joined_with() -> None:
    model = network("""net (float[N,1,8] x, float[N,P,8] past, float[8,8] W1, float[8,8] W2) => (float[N,Q,8] y) {
      [key] k = MatMul(x, W1)  [join] all = Concat<axis = 1>(past, k)  [head] y = MatMul(all, W2)
    }""")
    data = {"x": samples(model)["x"], "past": np.zeros((16, 0, 8), np.float32)}
    opened = open_model(model, Config(threads=1), data)
    run(opened, CALIBRATE)
    assert opened.plan.form("join") is Form.CODES and {opened.plan.groups[name] for name in ("past", "k")} == {"all"}
    assert {edge.tensor for edge in opened.plan.quantizers} == {"x", "all"}


def test_nan_that_arises_inside_is_named() -> None:
    text = """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
      [first] a = Conv(x, A)  [root] roots = Sqrt(a)  [last] y = Conv(roots, B)
    }"""
    with pytest.raises(InputError, match=r"tensor 'roots' holds NaN or infinity .*keep the node that makes it"):
        compiled(text, CALIBRATE)
    assert compiled(text, CALIBRATE, keep_float=("last",)).plan.quantizers.keys() == {Edge("x"), Edge("a")}


def test_without_data_it_says_so() -> None:
    model = open_model(network(CHAIN))
    with pytest.raises(InputError, match="no calibration data; give samples with --data"):
        run(model, CALIBRATE)


@pytest.mark.parametrize("settings", [{}, {"w": 4, "a": 4}, {"w": 2, "a": 3, "residual_bits": 3}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_placed_quantizer_and_weight_has_numbers(name: str, settings: dict[str, Any]) -> None:
    model = compiled(NETWORKS[name], PLACE, **settings)
    changed = Calibrate().run(model)
    plan = model.plan
    assert plan.quantizers.keys() == plan.specs.keys()
    weighted = {node for node, placed in plan.nodes.items() if placed.weight_bits}
    assert plan.weights.keys() == weighted and changed == len(plan.quantizers) + len(weighted)
    for key, spec in plan.specs.items():
        quantizer = plan.quantizers[key]
        assert quantizer.bits == spec.bits and quantizer.scale > 0
        assert np.float32(quantizer.scale) == quantizer.scale  # the file holds float32
        assert 0 <= quantizer.zero_point <= quantizer.grid.high
        assert not (spec.even_zero_point and quantizer.zero_point % 2)
        assert spec.lower <= np.float32(quantizer.low) and np.float32(quantizer.high) <= spec.upper


@pytest.mark.parametrize("batch", [1, 5, None])
def test_numbers_do_not_depend_on_the_batch(batch: int | None) -> None:
    """Ranges of inputs and first layers exactly; deeper ones to the last bits of a convolution."""
    one, other = (compiled(CHAIN, CALIBRATE, w=4, a=4, batch=size).plan.quantizers for size in (16, batch))
    assert one[Edge("image")] == other[Edge("image")]
    for key in one:
        np.testing.assert_allclose(one[key].scale, other[key].scale, rtol=1e-5)


SWISH_AND = HARD_SWISH.replace("[conv2]", "[other] o = OTHER  [sum] s = Add(b, o)  [conv2]").replace(
    "Conv(b, W2)", "Conv(s, W2)"
)


@pytest.mark.parametrize("method", [None, "mse"])
def test_no_levels_below_what_hard_swish_tells_apart(method: str | None) -> None:
    model = compiled(HARD_SWISH, CALIBRATE, calibration_method=method)
    quantizer = model.plan.quantizers[Edge(model.graph.nodes[0].outputs[0].name)]
    values = seen(model, ["a"])["a"]
    assert values.min() < -3.3 and abs(quantizer.low + 3) <= 2.5 * quantizer.scale
    assert quantizer.high == pytest.approx(values.max(), rel=0.3)


@pytest.mark.parametrize(("other", "low"), [("Relu(a)", -3.0), ("Neg(a)", None), ("LeakyRelu(a)", None)])
def test_all_readers_of_a_tensor_count(other: str, low: float | None) -> None:
    model = compiled(SWISH_AND.replace("OTHER", other), CALIBRATE)
    quantizer, values = model.plan.quantizers[Edge("a")], seen(model, ["a"])["a"]
    expected = values.min() if low is None else low
    assert abs(quantizer.low - expected) <= quantizer.scale


@pytest.mark.parametrize(("w", "a", "method"), [(8, 8, "max"), (4, 8, "mse"), (4, 4, "max")])
def test_8_bits_beside_narrower_weights_are_searched(w: int, a: int, method: str) -> None:
    assert ranges_of(Config(w=w, a=a)).method_for(ActivationSpec(unsigned(8))) == method
    assert (
        ranges_of(Config(w=w, a=a, calibration_method="entropy")).method_for(ActivationSpec(unsigned(8))) == "entropy"
    )
