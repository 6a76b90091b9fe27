"""What TensorRT refuses, reads wrongly or runs slowly: found with the parser and builder of TensorRT-RTX 1.7."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from onnx import NodeProto, TensorProto

from qcompile.checking.graph import BIT_OPERATORS, DEQUANTIZE, QUANTIZE, QuantizedFile, is_quantized
from qcompile.checking.layers import LAYERS, layers
from qcompile.emission.emitted import CODES, Finding, type_name

PAIR: Final = (QUANTIZE, DEQUANTIZE)
READABLE: Final = frozenset(
    ["int8", "uint8", "int32", "int4", "float8e4m3fn", "float4e2m1"]
)  # uint8, int32: rules of their own
FOLLOWING: Final = ("Relu", "Clip", "Sigmoid", "BatchNormalization")


def kind_of(file: QuantizedFile, node: NodeProto) -> str:
    """Return the type of the codes that one of a pair makes or reads."""
    return type_name(file.kinds.get(node.output[0] if node.op_type == QUANTIZE else node.input[0], 0))


def symmetric(file: QuantizedFile) -> Iterator[Finding]:
    """Zero points are 0 or absent."""
    for node in file.nodes:
        if node.op_type in PAIR and file.parameters(node)[1].any():
            yield node.name, "its zero point is not 0"


def signed_codes(file: QuantizedFile) -> Iterator[Finding]:
    """Codes are not uint8: the parser takes them for int8, and what is above 127 saturates."""
    for node in file.nodes:
        if node.op_type in PAIR and kind_of(file, node) == "uint8":
            yield node.name, "its codes are uint8"


def float_bias(file: QuantizedFile) -> Iterator[Finding]:
    """A bias is float: DequantizeLinear of int32 is refused."""
    for node in file.nodes:
        if node.op_type == DEQUANTIZE and kind_of(file, node) == "int32":
            yield node.name, "it reads int32"


def readable_types(file: QuantizedFile) -> Iterator[Finding]:
    """Codes have a type that TensorRT has: int8, int4 of weights, float8 (E4M3), float4."""
    for node in file.nodes:
        if node.op_type in PAIR and (kind := kind_of(file, node)) not in {*READABLE, "undefined"}:
            yield node.name, f"its codes are {kind}"


def no_bit_operators(file: QuantizedFile) -> Iterator[Finding]:
    """Weights are stored as they are read, not taken apart by bit operators, which TensorRT lacks."""
    for node in file.nodes:
        if node.op_type in BIT_OPERATORS:
            yield node.name, f"it is a {node.op_type}"


def pairs_alone(file: QuantizedFile) -> Iterator[Finding]:
    """Quantization is written as QuantizeLinear and DequantizeLinear: operators on codes are refused."""
    for node in file.nodes:
        if node.op_type not in PAIR and is_quantized(node):
            yield node.name, f"it is a {node.op_type}"


def int4_read_by_pairs(file: QuantizedFile) -> Iterator[Finding]:
    """int4 codes are read by DequantizeLinear alone: the builder fails at a Cast."""
    for node in file.nodes:
        read = (name for name in node.input if file.kinds.get(name) == TensorProto.INT4)
        if node.op_type != DEQUANTIZE and next(read, None):
            yield node.name, f"{node.op_type} reads int4"


def int4_weights_alone(file: QuantizedFile) -> Iterator[Finding]:
    """int4 is for weights, with float activations beside them."""
    for layer in layers(file):
        if layer.weight is not None and layer.weight.kind == "int4" and layer.data is not None:
            yield layer.node.name, f"its weight is int4, its input {layer.data.kind}"


def constants_behind_pairs(file: QuantizedFile) -> Iterator[Finding]:
    """Constants of codes are read by DequantizeLinear, and are no single numbers: those move in front of it again."""
    for node in file.nodes:
        if node.op_type in (*PAIR, "Clip") or is_quantized(node) or node.output[0] in file.constants:
            continue
        if node.op_type == "Pad" and (pads := file.value(node.input[1])) is not None and not pads.any():
            continue
        for name in node.input:
            pair = file.maker(name, DEQUANTIZE)
            codes = pair.input[0] if pair is not None else name
            if codes not in file.constants or file.kinds.get(codes) not in CODES:
                continue
            if pair is None or getattr(file.value(codes), "ndim", 1) == 0:
                yield node.name, f"{node.op_type} reads the constant {codes!r}"
                break


def fused_outputs(file: QuantizedFile) -> Iterator[Finding]:
    """No pair stands between a layer and the activation or sum behind it: those belong into its kernel."""
    for layer in layers(file):
        quantize = next((node for node in file.read(layer.node.output[0]) if node.op_type == QUANTIZE), None)
        for pair in file.read(quantize.output[0]) if quantize is not None else []:
            readers = file.read(pair.output[0]) if pair.op_type == DEQUANTIZE else []
            if any(reader.op_type in FOLLOWING for reader in readers):
                yield layer.node.name, f"a pair stands between it and its {readers[0].op_type}"
            elif any(reader.op_type == "Add" and not takes_sum(file, reader) for reader in readers):
                yield layer.node.name, "a pair stands between it and its sum, and at the other operand of it too"


def takes_sum(file: QuantizedFile, add: NodeProto) -> bool:
    """Say whether one operand of a sum comes from a layer as it is: the kernel of that one adds the other."""
    makers = (file.makers.get(name) for name in add.input)
    return any(maker is not None and maker.op_type in LAYERS for maker in makers)
