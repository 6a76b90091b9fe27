"""The layers of a quantized file: which codes each of them reads, of what type and on which grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from qcompile.checking.graph import CARRIED, DEQUANTIZE, QUANTIZE, QuantizedFile
from qcompile.emission.emitted import attribute, type_name

LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BITS: Final = {
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
    "int32": 32,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
    "uint2": 2,
}
BYTES: Final = ("int8", "uint8")
Array = NDArray[Any]


@dataclass(frozen=True)
class Codes:
    """Integers that stand for numbers: (codes - zero_point) * scale.

    `scale` and `zero_point` are None where they are computed as the model runs. `axis` is that along which the scales
    of a tensor with several stand, None where there is one; `block` the number of codes that share one along it.
    `node` is the DequantizeLinear that reads the codes; None where an operator reads codes itself. `packed`: several of
    them share a byte.
    """

    tensor: str
    kind: str
    scale: Array | None
    zero_point: Array | None
    axis: int | None = None
    block: int = 0
    node: NodeProto | None = None
    packed: bool = False

    @property
    def granularity(self) -> str:
        """What shares a scale: a tensor, a channel or a block."""
        return f"blocks of {self.block}" if self.block else "per tensor" if self.axis is None else "per channel"


@dataclass(frozen=True)
class Layer:
    """A node with weights, or a product of two tensors: its operator in float, and what it reads as codes.

    `data` and `weight` are None where they are float; of a product, `weight` is the second operand if `constant`.
    `axis` is that of the output channels in `weight`; `bias` the tensor of the bias, or "".
    """

    node: NodeProto
    op: str
    data: Codes | None
    weight: Codes | None
    constant: bool
    axis: int
    bias: str = ""


@dataclass(frozen=True)
class Form:
    """Where an operator on codes has its operands: positions of (codes, scale, zero point), -1 for none."""

    op: str
    data: tuple[int, int, int]
    weight: tuple[int, int, int]
    axis: int
    bias: int = -1


ON_CODES: Final = {
    "QLinearConv": Form("Conv", (0, 1, 2), (3, 4, 5), 0, 8),
    "QLinearMatMul": Form("MatMul", (0, 1, 2), (3, 4, 5), -1),
    "QGemm": Form("Gemm", (0, 1, 2), (3, 4, 5), -1, 6),
    "ConvInteger": Form("Conv", (0, -1, 2), (1, -1, 3), 0),
    "MatMulInteger": Form("MatMul", (0, -1, 2), (1, -1, 3), -1),
    "MatMulIntegerToFloat": Form("MatMul", (0, 2, 4), (1, 3, 5), -1),
    "DynamicQuantizeMatMul": Form("MatMul", (-1, -1, -1), (1, 2, 3), -1),
}


def layers(file: QuantizedFile) -> Iterator[Layer]:
    """Yield every layer of a file, quantized or not."""
    for node in file.nodes:
        if node.op_type in ON_CODES:
            yield _on_codes(file, node, ON_CODES[node.op_type])
        elif node.op_type == "MatMulNBits":
            yield _in_blocks(file, node)
        elif node.op_type in LAYERS:
            yield _between_pairs(file, node)


def quantized(file: QuantizedFile) -> Iterator[Layer]:
    """Yield the layers that were meant for integers: both operands are quantized, or the operator reads codes."""
    for layer in layers(file):
        if layer.weight is not None and (layer.data is not None or layer.node.op_type not in LAYERS):
            yield layer


def _between_pairs(file: QuantizedFile, node: NodeProto) -> Layer:
    first, second = node.input[:2]
    if first in file.constants and second not in file.constants:
        first, second = second, first
    weight = codes_behind(file, second)
    axis = output_axis(node)
    bias = node.input[2] if len(node.input) > 2 else ""
    return Layer(node, node.op_type, codes_behind(file, first), weight, second in file.constants, axis, bias)


def _on_codes(file: QuantizedFile, node: NodeProto, form: Form) -> Layer:
    axis = 0 if node.op_type == "QGemm" and attribute(node, "transB", 0) else form.axis
    weight = node.input[form.weight[0]]
    bias = node.input[form.bias] if 0 <= form.bias < len(node.input) else ""
    read = [_read_as(file, node, places, along) for places, along in ((form.data, None), (form.weight, axis))]
    return Layer(node, form.op, read[0], read[1], weight in file.constants, axis, bias)


def _in_blocks(file: QuantizedFile, node: NodeProto) -> Layer:
    """A product with a weight in blocks, and float activations."""
    bits, block = (int(attribute(node, name, default)) for name, default in (("bits", 4), ("block_size", 32)))
    zero_point = None if len(node.input) > 3 and node.input[3] else np.array(2 ** (bits - 1))
    weight = Codes(node.input[1], f"uint{bits}", file.value(node.input[2]), zero_point, -1, block, packed=True)
    return Layer(node, "MatMul", None, weight, True, -1)


def _read_as(file: QuantizedFile, node: NodeProto, places: tuple[int, int, int], axis: int | None) -> Codes | None:
    if places[0] < 0:
        return None
    tensor, scale, zero_point = (node.input[place] if 0 <= place < len(node.input) else "" for place in places)
    kind = type_name(file.kinds.get(tensor, TensorProto.UNDEFINED))
    scales, zeros = file.value(scale), _zero_point(file, zero_point)
    several = any(values is not None and values.size > 1 for values in (scales, zeros))
    return Codes(tensor, kind, scales, zeros, axis if several else None)


def _zero_point(file: QuantizedFile, name: str) -> Array | None:
    return file.value(name) if name else np.zeros((), np.int64)


def output_axis(node: NodeProto) -> int:
    """Return the axis of the output channels in the weight of a layer, counted from the end where that is usual."""
    if node.op_type == "ConvTranspose":
        return 1
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)) else -1


def codes_behind(file: QuantizedFile, name: str) -> Codes | None:
    """Return the codes of which DequantizeLinear makes `name`, behind nodes that move values; None if it is float."""
    moved: list[NodeProto] = []
    while (node := file.makers.get(name)) is not None and node.op_type in CARRIED and node.input:
        moved.append(node)
        name = node.input[0]
    if node is None or node.op_type != DEQUANTIZE:
        return None
    codes = dequantized(file, node)
    return codes if codes.axis is None else _moved(codes, moved[::-1])


def dequantized(file: QuantizedFile, node: NodeProto) -> Codes:
    """Return the codes that a DequantizeLinear reads."""
    scale = file.value(node.input[1])
    zero_point = _zero_point(file, node.input[2] if len(node.input) > 2 else "")
    block = int(attribute(node, "block_size", 0))
    axis = int(attribute(node, "axis", 1)) if scale is not None and scale.size > 1 else None
    kind = type_name(file.kinds.get(node.input[0], TensorProto.UNDEFINED))
    return Codes(node.input[0], kind, scale, zero_point, axis, block, node)


def _moved(codes: Codes, moved: list[NodeProto]) -> Codes:
    """Return the codes with the axis of their scales behind the nodes that move them; -99 where that is not known."""
    axis = codes.axis
    for node in moved:
        perm = list(attribute(node, "perm", []))
        if node.op_type == "Transpose" and perm and axis is not None:
            axis = perm.index(axis % len(perm))
        elif node.op_type == "Transpose":
            axis = None if axis is None else -1 - axis
        elif node.op_type not in ("Identity", "Dropout"):
            axis = UNKNOWN
    return Codes(codes.tensor, codes.kind, codes.scale, codes.zero_point, axis, codes.block, codes.node)


UNKNOWN: Final = -99  # an axis that a Reshape hides


def grid(file: QuantizedFile, tensor: str) -> tuple[int, int]:
    """Return the smallest and the largest code that a tensor of activations can hold: a Clip may narrow its type."""
    kind = type_name(file.kinds.get(tensor, TensorProto.UNDEFINED))
    low, high = bounds_of(kind)
    node = file.makers.get(tensor)
    while node is not None and node.op_type in {*CARRIED, "Clip"}:
        if node.op_type == "Clip":
            known = [file.value(name) if name else None for name in [*node.input[1:3], "", ""][:2]]
            low = low if known[0] is None else max(low, int(known[0]))
            high = high if known[1] is None else min(high, int(known[1]))
        node = file.makers.get(node.input[0])
    return low, high


def bounds_of(kind: str) -> tuple[int, int]:
    """Return the range of an integer type by name; (0, 0) for others."""
    bits = BITS.get(kind, 0)
    if not bits:
        return 0, 0
    return (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def symmetric(codes: Codes) -> bool:
    """Say whether 0 is in the middle of the type of the codes; not where that is computed as the model runs."""
    low, high = bounds_of(codes.kind)
    return codes.zero_point is not None and bool((codes.zero_point.astype(np.int64) == (low + high + 1) // 2).all())


def rows(layer: Layer, file: QuantizedFile) -> NDArray[np.int64] | None:
    """Return the weights of a layer minus their zero point, [output channels, products]; None where not known."""
    codes = layer.weight
    if codes is None or not layer.constant or codes.zero_point is None or codes.block:
        return None
    values = file.integers(codes.tensor)
    if values is None or values.ndim < 2 or layer.op == "ConvTranspose" or not values.size:
        return None
    zero_point = codes.zero_point.astype(np.int64)
    if zero_point.ndim and zero_point.size > 1:
        zero_point = along(zero_point, values.ndim, layer.axis)
    moved = np.moveaxis(values - zero_point.reshape(zero_point.shape or ()), layer.axis, 0)
    return moved.reshape(moved.shape[0], -1)


def along(values: Array, rank: int, axis: int) -> Array:
    """Return values [C] in the shape in which they stand along an axis of a tensor of so many axes."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def quantizers(file: QuantizedFile) -> Iterator[NodeProto]:
    """Yield every node that makes codes of activations, or reads them as floats."""
    for node in file.nodes:
        if node.op_type in (QUANTIZE, DEQUANTIZE) and node.output[0] not in file.constants:
            yield node
