"""What is quantized in a file, and how: operators by the codes that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import numpy as np
from onnx import NodeProto

from qcompile.checking.graph import DEQUANTIZE, QUANTIZE, QuantizedFile, is_quantized
from qcompile.checking.layers import BITS, Array, Codes, Layer, codes_behind, grid, layers, symmetric
from qcompile.checking.result import Encoding, Operators
from qcompile.emission.emitted import type_name

ENTRIES: Final = 1 << 20  # of a weight, that its bits are counted on
FEW: Final = 8
PAIR: Final = (QUANTIZE, DEQUANTIZE)
Row: TypeAlias = tuple[str, Encoding | None, Encoding | None]


def form_of(file: QuantizedFile) -> str:
    """Say how quantization is written: "dynamic", "QOperator" (operators on codes), "QDQ" (pairs), "weights"."""
    kinds = {node.op_type for node in file.nodes if is_quantized(node)}
    if any(kind.startswith("DynamicQuantize") for kind in kinds):
        return "dynamic"
    if any(kind.startswith("QLinear") for kind in kinds):
        return "QOperator"
    pairs = any(node.op_type == QUANTIZE and node.output[0] not in file.constants for node in file.nodes)
    return "QDQ" if pairs else "weights"


def inventory(file: QuantizedFile, integer: Mapping[str, bool]) -> list[Operators]:
    """Return operators by the codes that they read, layers first, those in float too.

    `integer` says of nodes whether they run on integers, as far as that is known.
    """
    known = {layer.node.name: layer for layer in layers(file)}
    rows: dict[Row, list[str]] = {}
    for name, layer in known.items():
        rows.setdefault((layer.op, weight_encoding(file, layer), data_encoding(file, layer.data)), []).append(name)
    for node, codes in readers_of_codes(file):
        if node.name not in known:
            rows.setdefault((node.op_type, None, data_encoding(file, codes)), []).append(node.name)
    return [Operators(row[0], len(names), *row[1:], counted(names, integer)) for row, names in rows.items()]


def counted(names: list[str], integer: Mapping[str, bool]) -> int | None:
    """Return how many of the nodes run on integers; None where that is known of none."""
    return sum(integer.get(name, False) for name in names) if any(name in integer for name in names) else None


def readers_of_codes(file: QuantizedFile) -> Iterator[tuple[NodeProto, Codes]]:
    """Yield every operator that reads activations as codes, through DequantizeLinear too, with the first of them."""
    for node in file.nodes:
        if node.op_type in PAIR:
            continue
        for name in node.input:
            codes = None if not name or name in file.constants else codes_of(file, name)
            if codes is not None:
                yield node, codes
                break


def codes_of(file: QuantizedFile, name: str) -> Codes | None:
    """Return the codes that a tensor is, or is made from by a DequantizeLinear in front of its reader."""
    kind = type_name(file.kinds.get(name, 0))
    if kind not in BITS or kind == "int32":
        return codes_behind(file, name)
    maker = file.before(name)
    while maker is not None and maker.op_type == "Clip":
        maker = file.before(maker.input[0])
    scale, zero_point = file.parameters(maker) if maker is not None and maker.op_type == QUANTIZE else (None, None)
    return Codes(name, kind, scale, zero_point)


def data_encoding(file: QuantizedFile, codes: Codes | None) -> Encoding | None:
    """Return how activations are quantized."""
    if codes is None:
        return None
    low, high = grid(file, codes.tensor)
    return Encoding(codes.kind, (high - low).bit_length(), symmetric(codes), codes.granularity)


def weight_encoding(file: QuantizedFile, layer: Layer) -> Encoding | None:
    """Return how the weight of a layer is quantized; of a product of two tensors, how the second is."""
    codes = layer.weight
    if codes is None or not layer.constant:
        return data_encoding(file, codes)
    values = file.value(codes.tensor) if not codes.packed else None
    used = BITS.get(codes.kind, 0) if values is None else bits_used(values, layer.axis)
    return Encoding(codes.kind, used, symmetric(codes), codes.granularity)


def bits_used(values: Array, axis: int) -> int:
    """Return the bits that the codes of a weight take: those that count the levels between the least and the largest.

    Levels are as far apart as all codes of a channel allow; the channel with most of them decides. Channels of fewer
    than `FEW` weights are taken together: two weights have one level between them whatever their bits.
    """
    if values.ndim < 2 or not values.size:
        return 1
    rows = np.moveaxis(values.astype(np.int64), axis, 0).reshape(values.shape[axis], -1)
    rows = rows[: max(1, ENTRIES // rows.shape[1])] if rows.shape[1] >= FEW else rows.reshape(1, -1)
    above = rows - rows.min(1, keepdims=True)
    step = np.maximum(np.gcd.reduce(above, axis=1), 1)
    return max(int((above.max(1) // step).max()).bit_length(), 1)
