"""The kernels in numpy against ONNX Runtime's own, on random codes: not one differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from qcompile.backends.ort_cpu.elementwise import add, multiply
from qcompile.backends.ort_cpu.kernels import global_average_pool, requantize
from qcompile.backends.sums import centred, convolve, explicit_pads
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer
from qcompile.runtime.session import Session

# Products of codes and weights up to 64 fit the 16-bit sums of processors without VNNI, which else saturate.
WEIGHTS = (-64, 64)
SCALES = st.floats(2.0**-10, 0.5, width=32)
QUANTIZERS = st.builds(Quantizer, st.just(8), SCALES, st.integers(0, 255))
SEEDS = st.integers(0, 2**20)


def random_codes(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def random_weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(*WEIGHTS, shape, endpoint=True).astype(np.int8)


def kernel(op: str, inputs: list[Any], domain: str = "com.microsoft", **attributes: Any) -> np.ndarray:
    """Run one of ONNX Runtime's operators; None is an input left out."""
    arrays = {f"i{k}": np.asarray(value) for k, value in enumerate(inputs) if value is not None}
    names = [f"i{k}" if value is not None else "" for k, value in enumerate(inputs)]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    node = helper.make_node(op, names, ["y"], domain=domain, **attributes)
    graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name="y")])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return Session(helper.make_model(graph, opset_imports=imports, ir_version=8), threads=1).run(arrays)["y"]


def parameters(quantizer: Quantizer) -> list[Any]:
    return [np.float32(quantizer.scale), np.uint8(quantizer.zero_point)]


@dataclass(frozen=True)
class Convolution:
    """Shapes and attributes of one convolution."""

    data: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: dict[str, Any]


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    kind = draw(st.sampled_from(["dense", "grouped", "depthwise", "multiplied"]))
    group = 1 if kind == "dense" else draw(st.integers(2, 4))
    inputs = group * (1 if kind in ("depthwise", "multiplied") else draw(st.integers(1, 3)))
    outputs = group * (1 if kind == "depthwise" else draw(st.integers(1, 3)))
    kernel_shape = [draw(st.integers(1, 3)) for _ in range(rank)]
    attributes: dict[str, Any] = {"group": group, "kernel_shape": kernel_shape}
    attributes["strides"] = [draw(st.integers(1, 3)) for _ in range(rank)]
    mode = draw(st.sampled_from(["none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if mode == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    elif mode != "none":
        attributes["auto_pad"] = mode
    if not mode.startswith("SAME"):  # ONNX Runtime refuses to dilate there
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(rank)]
    sizes = [draw(st.integers(5, 9 if rank < 3 else 6)) for _ in range(rank)]
    return Convolution((2, inputs, *sizes), (outputs, inputs // group, *kernel_shape), attributes)


@settings(max_examples=150)
@given(convolutions(), QUANTIZERS, QUANTIZERS, SEEDS, st.booleans())
def test_convolution(case: Convolution, data: Quantizer, output: Quantizer, seed: int, biased: bool) -> None:
    random = np.random.default_rng(seed)
    x, weight = random_codes(seed, *case.data), random_weight(seed, *case.weight)
    channels = case.weight[0]
    scales = random.uniform(1e-3, 0.1, channels).astype(np.float32)
    bias = random.integers(-(2**18), 2**18, channels).astype(np.int32) if biased else None
    inputs = [x, *parameters(data), weight, scales, np.zeros(channels, np.int8), *parameters(output), bias]
    expected = kernel("QLinearConv", inputs, "", **case.attributes)
    along = (-1, *[1] * (x.ndim - 2))
    accumulator = convolve(centred(x, data), weight, case.attributes)
    if bias is not None:
        accumulator = accumulator + bias.reshape(along)
    found = unsigned(8).clip(requantize(accumulator, (np.float32(data.scale) * scales).reshape(along), output))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "size, span, stride, attributes, pads",
    [
        (8, 3, 1, {}, (0, 0)),
        (8, 3, 1, {"pads": [1, 2]}, (1, 2)),
        (8, 3, 2, {"auto_pad": "VALID", "pads": [1, 1]}, (0, 0)),
        (8, 3, 2, {"auto_pad": "SAME_UPPER"}, (0, 1)),
        (8, 3, 2, {"auto_pad": "SAME_LOWER"}, (1, 0)),
        (7, 3, 2, {"auto_pad": "SAME_UPPER"}, (1, 1)),
        (7, 1, 3, {"auto_pad": "SAME_UPPER"}, (0, 0)),
        (8, 3, 1, {"auto_pad": "NOTSET", "pads": [2, 0]}, (2, 0)),
    ],
)
def test_explicit_pads(size: int, span: int, stride: int, attributes: dict[str, Any], pads: tuple[int, int]) -> None:
    assert explicit_pads((size,), [span], [stride], attributes) == [pads]


SHAPES = st.sampled_from([((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 3, 4, 5), (3, 1, 1)), ((2, 3, 4, 5), (2, 3, 1, 1)),
                          ((7,), (7,)), ((5, 1), (1, 6)), ((2, 3, 70), (1,))])  # fmt: skip


@settings(max_examples=80)
@given(SHAPES, QUANTIZERS, QUANTIZERS, QUANTIZERS, SEEDS)
def test_addition(
    shapes: tuple[tuple[int, ...], ...], qa: Quantizer, qb: Quantizer, output: Quantizer, seed: int
) -> None:
    a, b = random_codes(seed, *shapes[0]), random_codes(seed + 1, *shapes[1])
    expected = kernel("QLinearAdd", [a, *parameters(qa), b, *parameters(qb), *parameters(output)])
    np.testing.assert_array_equal(unsigned(8).clip(add(a, qa, b, qb, output)), expected)


@settings(max_examples=80)
@given(SHAPES, QUANTIZERS, QUANTIZERS, QUANTIZERS, SEEDS)
def test_multiplication(
    shapes: tuple[tuple[int, ...], ...], qa: Quantizer, qb: Quantizer, output: Quantizer, seed: int
) -> None:
    a, b = random_codes(seed, *shapes[0]), random_codes(seed + 1, *shapes[1])
    expected = kernel("QLinearMul", [a, *parameters(qa), b, *parameters(qb), *parameters(output)])
    np.testing.assert_array_equal(unsigned(8).clip(multiply(a, qa, b, qb, output)), expected)


@pytest.mark.parametrize("scales", [(0.02, 0.03, 0.04), (0.5, 0.25, 0.5), (1 / 256, 1 / 256, 1 / 128)], ids=str)
@pytest.mark.parametrize("zero_points", [(0, 0, 0), (128, 3, 64), (17, 200, 255)], ids=str)
def test_ties_of_simple_scales_on_all_pairs_of_codes(
    scales: tuple[float, float, float], zero_points: tuple[int, int, int]
) -> None:
    """A quarter of the sums end in one half: whatever is rounded before or after adding the zero point shows here."""
    qa, qb, output = (Quantizer(unsigned(8), float(np.float32(s)), z) for s, z in zip(scales, zero_points))
    a, b = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    inputs = [a, *parameters(qa), b, *parameters(qb), *parameters(output)]
    np.testing.assert_array_equal(unsigned(8).clip(add(a, qa, b, qb, output)), kernel("QLinearAdd", inputs))
    np.testing.assert_array_equal(unsigned(8).clip(multiply(a, qa, b, qb, output)), kernel("QLinearMul", inputs))


MAPS = st.sampled_from([(2, 3, 7, 5), (1, 16, 4, 4), (2, 2, 1, 1), (1, 3, 9), (1, 2, 3, 4, 5)])


@settings(max_examples=60)
@given(MAPS, QUANTIZERS, QUANTIZERS, SEEDS)
def test_global_average_pool(shape: tuple[int, ...], data: Quantizer, output: Quantizer, seed: int) -> None:
    assume(data.scale / output.scale / np.prod(shape[2:]) < 256)  # beyond that the kernel refuses to run
    codes = random_codes(seed, *shape)
    inputs = [codes, *parameters(data), *parameters(output)]
    expected = kernel("QLinearGlobalAveragePool", inputs, channels_last=0)
    np.testing.assert_array_equal(unsigned(8).clip(global_average_pool(codes, data, output)), expected)


MATRICES = st.sampled_from([((5, 8), (8, 3)), ((2, 5, 8), (8, 3)), ((2, 3, 5, 8), (2, 3, 8, 4)), ((1, 70), (70, 33))])


@settings(max_examples=60)
@given(MATRICES, QUANTIZERS, QUANTIZERS, SEEDS)
def test_matrix_product_with_a_weight(
    shapes: tuple[tuple[int, ...], ...], data: Quantizer, output: Quantizer, seed: int
) -> None:
    """QLinearMatMul with codes out, MatMulIntegerToFloat with float32: one scale per column of a matrix."""
    a, weight = random_codes(seed, *shapes[0]), random_weight(seed, *shapes[1])
    columns = shapes[1][-1] if weight.ndim == 2 else 1
    each = (columns,) if columns > 1 else ()
    scales = np.asarray(np.random.default_rng(seed).uniform(1e-3, 0.1, each), np.float32)
    zeros = np.zeros(each, np.int8)
    scale = np.float32(data.scale) * scales
    accumulator = centred(a, data) @ weight.astype(np.float64)
    inputs = [a, *parameters(data), weight, scales, zeros, *parameters(output)]
    codes = kernel("QLinearMatMul", inputs, "")
    np.testing.assert_array_equal(unsigned(8).clip(requantize(accumulator, scale, output)), codes)
    inputs = [a, weight, np.float32(data.scale), scales, np.uint8(data.zero_point), zeros]
    floats = kernel("MatMulIntegerToFloat", inputs)
    np.testing.assert_array_equal(accumulator.astype(np.float32) * scale, floats)


@settings(max_examples=40)
@given(QUANTIZERS, QUANTIZERS, QUANTIZERS, SEEDS)
def test_matrix_product_of_activations(qa: Quantizer, qb: Quantizer, output: Quantizer, seed: int) -> None:
    a, b = random_codes(seed, 2, 5, 6), random_codes(seed + 1, 2, 6, 7)
    expected = kernel("QLinearMatMul", [a, *parameters(qa), b, *parameters(qb), *parameters(output)], "")
    scale = np.asarray(np.float32(qa.scale) * np.float32(qb.scale))
    found = unsigned(8).clip(requantize(centred(a, qa) @ centred(b, qb), scale, output))
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60)
@given(st.booleans(), st.booleans(), st.booleans(), QUANTIZERS, QUANTIZERS, SEEDS)
def test_linear_layer(
    turned: bool, to_float: bool, biased: bool, data: Quantizer, output: Quantizer, seed: int
) -> None:
    """QGemm: the bias is added to the int32 sum, whether codes or float32 come out."""
    random = np.random.default_rng(seed)
    a, weight = random_codes(seed, 4, 9), random_weight(seed, *((5, 9) if turned else (9, 5)))
    scales = random.uniform(1e-3, 0.1, 5).astype(np.float32)
    bias = random.integers(-(2**18), 2**18, 5).astype(np.int32) if biased else None
    inputs = [a, *parameters(data), weight, scales, np.zeros(5, np.int8), bias]
    expected = kernel("QGemm", inputs if to_float else [*inputs, *parameters(output)], transB=int(turned))
    accumulator = centred(a, data) @ (weight.T if turned else weight).astype(np.float64) + (0 if bias is None else bias)
    scale = np.float32(data.scale) * scales
    if to_float:
        np.testing.assert_array_equal(accumulator.astype(np.float32) * scale, expected)
    else:
        np.testing.assert_array_equal(unsigned(8).clip(requantize(accumulator, scale, output)), expected)
