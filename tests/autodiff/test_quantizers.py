"""The two fake quantizers against their formulas in numpy, and the emitted file's own arithmetic."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import onnx
import pytest
from autodiff.cases import Array
from autodiff.graphs import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qcompile.autodiff import RULES, NoGradientRule, differentiate, record
from qcompile.errors import InputError
from qcompile.quant.arithmetic import dequantize, quantize
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer
from qcompile.runtime.session import Session

SHAPE = (2, 3, 4, 4)


def model(op: str, shapes: dict[str, tuple[int, ...]], kinds: dict[str, int], **attributes: object) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, kinds.get(name, 1), shape) for name, shape in shapes.items()]
    nodes = [
        helper.make_node(
            op, [name for name in shapes if name != "dy"], ["y"], domain="qcompile", name=op, **attributes
        ),
        helper.make_node("Mul", ["y", "dy"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["loss"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("y", 1, shapes["dy"]), helper.make_tensor_value_info("loss", 1, [])]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("qcompile", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", infos, outputs), opset_imports=imports, ir_version=8)


def run(source: onnx.ModelProto, feeds: dict[str, Array], trainable: list[str]) -> dict[str, Array]:
    made = differentiate(source, "loss", trainable)
    found = Session(made.model, threads=1, fuse_qdq=False).run(feeds)
    return {"y": found["y"]} | {name: found[output] for name, output in made.gradients.items()}


@given(st.integers(2, 8), st.booleans(), st.sampled_from([(), (1,)]), st.integers(0, 99), st.data())
@settings(max_examples=30)
def test_activation(bits: int, dropped: bool, stored: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    """LSQ: with t = x/s, dy/dx is 1 on the grid; dy/ds is round(t) - t there, and the bound outside of it."""
    levels, random = 2**bits - 1, np.random.default_rng(seed)
    zero = data.draw(st.integers(0, levels))
    scale = np.float32(3 / levels)
    x, dy = (random.normal(size=SHAPE).astype(np.float32) for _ in range(2))
    kept = random.random(SHAPE) < 0.5 if dropped else np.ones(SHAPE, bool)
    shapes = {"x": SHAPE, "s": stored, **({"mask": SHAPE} if dropped else {}), "dy": SHAPE}
    feeds = {"x": x, "s": np.full(stored, scale), "dy": dy} | ({"mask": kept} if dropped else {})
    source = model("FakeQuantActivation", shapes, {"mask": 9}, **asdict(unsigned(bits)), zero_point=zero)
    found = run(source, feeds, ["x", "s"])

    quantizer = Quantizer(unsigned(bits), float(scale), zero)
    expected = np.where(kept, dequantize(quantize(x, quantizer), quantizer), x)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6, atol=1e-6)  # x + (xq - x) rounds
    t = (x / scale).astype(np.float64)  # divided in float32, as the kernel does: a tie is a tie in both
    code = np.rint(t) + zero
    inside = (code >= 0) & (code <= levels)
    by_scale = np.where(inside, np.rint(t) - t, np.where(code < 0, -zero, levels - zero))
    np.testing.assert_array_equal(found["x"], np.where(inside | ~kept, dy, 0))
    assert found["s"].shape == stored
    total, size = (dy * by_scale)[kept].sum(), np.abs(dy * x / scale).sum()
    assert abs(found["s"].item() - total) <= 1e-6 * size  # a difference of two sums of that size, in float32


def soft(v: Array, stretch: float) -> Array:
    return np.clip(stretch * (1 / (1 + np.exp(-v.astype(np.float64))) - 0.5) + 0.5, 0, 1)


@pytest.mark.parametrize("rounding", ["adaround", "ste"])
@given(st.integers(0, 99), st.floats(1.2, 20))
@settings(max_examples=15)
def test_weight(rounding: str, seed: int, stretch: float) -> None:
    random = np.random.default_rng(seed)
    shape, per_channel, levels = (4, 3, 2, 2), (4, 1, 1, 1), 15
    spread, middle = (3.0, 0.0) if rounding == "adaround" else (5.0, 7.5)
    v = (middle + spread * random.normal(size=shape)).astype(np.float32)
    base = random.integers(-4, 4, shape).astype(np.float32)
    scale = random.uniform(0.1, 0.2, per_channel).astype(np.float32)
    dy = random.normal(size=shape).astype(np.float32)
    given = {"v": v, "scale": scale, "base": base}
    if rounding == "adaround":
        given["stretch"] = np.array(stretch, np.float32)
    given["dy"] = dy
    shapes = {name: array.shape for name, array in given.items()}
    source = model("FakeQuantWeight", shapes, {}, rounding=rounding, levels=levels)
    found = run(source, given, ["v", "scale"])

    if rounding == "adaround":
        code = soft(v, stretch)
        sigmoid = 1 / (1 + np.exp(-v.astype(np.float64)))
        slope = stretch * sigmoid * (1 - sigmoid) * ((code > 0) & (code < 1))
    else:
        code, slope = np.rint(np.clip(v, 0, levels)), (v > 0) & (v < levels)
    assert relative_error(found["y"], scale * (base + code)) <= 1e-5
    assert relative_error(found["v"], dy * scale * slope) <= 1e-5
    assert relative_error(found["scale"], (dy * (base + code)).sum((1, 2, 3), keepdims=True)) <= 1e-5


def test_the_forward_pass_is_that_of_the_emitted_file() -> None:
    source = model("FakeQuantActivation", {"x": SHAPE, "s": (), "dy": SHAPE}, {}, **asdict(unsigned(4)))
    lowered = [node.op_type for node in record(source).nodes if node.output[0] != "loss"]
    assert [op for op in lowered if op != "Reshape"] == ["QuantizeLinear", "Clip", "DequantizeLinear", "Mul"]


def test_an_unknown_surrogate_is_refused() -> None:
    source = model(
        "FakeQuantActivation", {"x": SHAPE, "s": (), "dy": SHAPE}, {}, **asdict(unsigned(4)), surrogate="best"
    )
    with pytest.raises(NoGradientRule, match="no rounding surrogate 'best'; known: ste"):
        differentiate(source, "loss", ["x"])


def test_codes_that_their_type_has_not_are_refused() -> None:
    source = model("FakeQuantActivation", {"x": SHAPE, "s": (), "dy": SHAPE}, {}, **asdict(unsigned(9)))
    with pytest.raises(InputError, match=r"codes 0 \.\. 511 in uint8 .*take codes that the type has"):
        record(source)


@given(st.floats(2.01, 20), st.floats(1.2, 20), st.integers(0, 99))
@settings(max_examples=15)
def test_rounding_penalty(exponent: float, stretch: float, seed: int) -> None:
    v = np.random.default_rng(seed).normal(0, 2, (3, 5)).astype(np.float32)
    source = model("RoundingPenalty", {"v": v.shape, "e": (), "z": (), "dy": ()}, {})
    numbers = {"e": exponent, "z": stretch, "dy": 0.7}
    found = run(source, {"v": v} | {name: np.array(value, np.float32) for name, value in numbers.items()}, ["v"])
    t = 2 * soft(v, stretch) - 1
    sigmoid = 1 / (1 + np.exp(-v.astype(np.float64)))
    slope = stretch * sigmoid * (1 - sigmoid) * (np.abs(t) < 1)
    assert abs(found["y"] - (1 - np.abs(t) ** exponent).sum()) <= 1e-5 * t.size
    expected = -0.7 * 2 * exponent * t * np.abs(t) ** (exponent - 2) * slope
    np.testing.assert_allclose(found["v"], expected, rtol=1e-4, atol=1e-6)  # t and its power in float32


def test_squared_error() -> None:
    random = np.random.default_rng(0)
    a, b = (random.normal(size=SHAPE).astype(np.float32) for _ in range(2))
    source = model("SquaredError", {"a": SHAPE, "b": SHAPE, "dy": ()}, {})
    found = run(source, {"a": a, "b": b, "dy": np.array(0.5, np.float32)}, ["a", "b"])
    assert abs(found["y"] / np.square(a.astype(np.float64) - b).sum() - 1) <= 1e-6
    np.testing.assert_allclose(found["a"], a - b, rtol=1e-6)
    np.testing.assert_allclose(found["b"], b - a, rtol=1e-6)


def test_every_operator_of_a_domain_is_tested_here() -> None:
    blocked = {"BlockedConv", "Pack", "Unpack"}  # in test_blocked.py
    assert {op for domain, op in RULES if domain} - blocked == {
        "FakeQuantActivation",
        "FakeQuantWeight",
        "RoundingPenalty",
        "SquaredError",
    }
