"""Packed weights: ONNX Runtime unpacks exactly the integers that were packed, and small."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from onnx import helper

from qcompile.emission.constants import Constants
from qcompile.emission.pack import (
    PLANES,
    fits_int4,
    int4_initializer,
    pack_planes,
    unpack_planes,
    worth_packing,
)
from qcompile.quant.params import WeightQuantizer
from qcompile.runtime.fused import optimized_nodes
from qcompile.runtime.session import Session

BITS = range(2, 8)


def quantizer(
    codes: np.ndarray, bits: int, step: int | np.ndarray = 1, offset: int | np.ndarray | None = None, axis: int = 0
) -> WeightQuantizer:
    """Return a weight quantizer; without an offset the plain grid."""
    channels = codes.shape[axis]
    lattice = (step, -(1 << bits - 1) if offset is None else offset)
    values = (np.broadcast_to(np.asarray(value, np.int8), channels).copy() for value in lattice)
    return WeightQuantizer(bits, axis, codes, np.ones(channels, np.float32), *values)


def random_quantizer(bits: int, shape: tuple[int, ...], axis: int, seed: int, per_channel: bool) -> WeightQuantizer:
    """Return random codes on a random grid that stays within -127 .. 127."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, shape).astype(np.uint8)
    count = shape[axis] if per_channel else 1
    step = random.integers(1, 254 // ((1 << bits) - 1) + 1, count)
    offset = random.integers(-127, 127 - step * ((1 << bits) - 1) + 1)
    return quantizer(codes, bits, step, offset, axis)


def model_of(nodes: list[onnx.NodeProto], constants: Constants, output: str, opset: int = 18) -> onnx.ModelProto:
    result = helper.make_tensor_value_info(output, onnx.TensorProto.INT8, None)
    graph = helper.make_graph(nodes, "unpack", [], [result], constants.protos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def unpacking(weight: WeightQuantizer) -> onnx.ModelProto:
    """Return a model that gives the int8 weight from planes."""
    constants, nodes = Constants(set()), list[onnx.NodeProto]()

    def add(op: str, inputs: list[str], stem: str, **attributes: Any) -> str:
        output = constants.unique(stem)
        nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{len(nodes)}", **attributes))
        return output

    return model_of(nodes, constants, unpack_planes(weight, "w", constants, add))


def int4_model(weight: WeightQuantizer) -> onnx.ModelProto:
    """Return a model that gives the int8 weight from an INT4 initializer."""
    constants = Constants(set())
    name = constants.proto(int4_initializer(weight.integers(), "w"))
    cast = helper.make_node("Cast", [name], ["y"], name="cast", to=onnx.TensorProto.INT8)
    return model_of([cast], constants, "y", 21)


def run(model: onnx.ModelProto, level: str = "all") -> np.ndarray:
    (array,) = Session(model, level=level, threads=1).run({}).values()
    return array


@settings(max_examples=60)
@given(st.sampled_from(BITS), array_shapes(max_dims=5, max_side=5), st.data(), st.integers(0, 999), st.booleans())
def test_planes_come_back(bits: int, shape: tuple[int, ...], data: st.DataObject, seed: int, per_channel: bool) -> None:
    weight = random_quantizer(bits, shape, data.draw(st.integers(0, len(shape) - 1)), seed, per_channel)
    found = run(unpacking(weight), data.draw(st.sampled_from(["off", "all"])))
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, weight.integers())


@pytest.mark.parametrize("bits", BITS)
def test_every_code_comes_back(bits: int) -> None:
    codes = np.arange(1 << bits, dtype=np.uint8)[None]
    assert run(unpacking(quantizer(codes, bits))).tolist() == [list(range(-(1 << bits - 1), 1 << bits - 1))]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65])
def test_plane_sizes(bits: int, count: int) -> None:
    planes = pack_planes(np.zeros(count, np.uint8), bits)
    assert tuple(width for width, _ in planes) == PLANES[bits] and sum(PLANES[bits]) == bits
    assert [data.nbytes for _, data in planes] == [-(-count * width // 8) for width in PLANES[bits]]


def test_layout_of_a_byte() -> None:
    """Lane k of a byte holds the codes of the k-th part of the row: one shift takes a whole lane apart."""
    ((width, data),) = pack_planes(np.array([1, 2, 3, 4, 5], np.uint8), 4)
    assert width == 4 and data.tolist() == [1 | 4 << 4, 2 | 5 << 4, 3]
    (low, high) = pack_planes(np.array([5, 2], np.uint8), 3)  # 101, 010: two low bits, then the high one
    assert low[1].tolist() == [0b1001] and high[1].tolist() == [0b01]


@pytest.mark.parametrize("bits", BITS)
def test_unpacking_is_folded_at_load(bits: int) -> None:
    model = unpacking(random_quantizer(bits, (6, 5, 3, 3), 0, bits, per_channel=True))
    assert [op for _, op in optimized_nodes(model)] == []


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_worth_it_where_the_file_gets_smaller(bits: int) -> None:
    for count in (100, 500, 1000, 1500, 2000, 3000, 4000, 6000, 10_000, 20_000):
        weight = random_quantizer(bits, (count,), 0, 0, per_channel=False)
        saved = count - unpacking(weight).ByteSize()
        assert saved > 0 if worth_packing(weight) else saved < 300, count  # names in a real file are longer
    assert worth_packing(weight)


def test_8_bits_are_never_packed() -> None:
    assert not worth_packing(quantizer(np.zeros(100_000, np.uint8), 8))


@settings(max_examples=40)
@given(st.sampled_from([2, 3, 4]), array_shapes(max_dims=4, max_side=5), st.integers(0, 999))
def test_int4_comes_back(bits: int, shape: tuple[int, ...], seed: int) -> None:
    weight = quantizer(np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.uint8), bits)
    assert fits_int4(weight)
    model = int4_model(weight)
    (tensor,) = model.graph.initializer
    assert len(tensor.raw_data) == -(-weight.codes.size // 2)
    np.testing.assert_array_equal(run(model), weight.integers())


@pytest.mark.parametrize(
    "bits, step, offset, fits",
    [
        (4, 1, -8, True),
        (4, 1, -9, False),
        (4, 1, -7, False),
        (2, 2, -3, True),
        (2, 4, -6, True),
        (3, 4, -16, False),
        (3, 2, -8, True),
    ],
)
def test_what_fits_int4(bits: int, step: int, offset: int, fits: bool) -> None:
    assert fits_int4(quantizer(np.arange(1 << bits, dtype=np.uint8)[None], bits, step, offset)) is fits


def test_wider_codes_do_not_fit_int4_even_where_their_values_would() -> None:
    assert not fits_int4(quantizer(np.array([[0, 1]], np.uint8), 5, 1, 0))
