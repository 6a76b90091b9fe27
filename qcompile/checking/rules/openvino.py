"""What keeps a quantized file from the integer kernels of OpenVINO on a CPU, or from OpenVINO (measured on 2026.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qcompile.checking.graph import BIT_OPERATORS, CARRIED, QuantizedFile
from qcompile.checking.layers import BYTES, LAYERS, Layer, codes_behind, layers, quantized, symmetric
from qcompile.emission.emitted import Finding
from qcompile.runtime.unpack import behind

UNREAD: Final = ("QGemm", "QLinearGlobalAveragePool", "QLinearLeakyRelu")
DYNAMIC: Final = ("ConvInteger", "MatMulInteger")


def between_pairs(file: QuantizedFile) -> Iterator[Layer]:
    """Yield the layers whose operands both come from DequantizeLinear."""
    return (layer for layer in quantized(file) if layer.node.op_type in LAYERS)


def plain_weights(file: QuantizedFile) -> Iterator[Finding]:
    """Weights are stored as int8 or int4: those that bit operators take apart are not seen as constants."""
    makers = {name: node for name, node in file.makers.items() if name in file.constants}
    for layer in between_pairs(file):
        chain = behind(layer.weight.tensor, makers) if layer.weight is not None and layer.constant else []
        if any(node.op_type in BIT_OPERATORS for node in chain):
            yield layer.node.name, "its weight is taken apart by bit operators"


def transposed_floats(file: QuantizedFile) -> Iterator[Finding]:
    """What a MatMul reads is transposed behind DequantizeLinear, not as codes."""
    for layer in between_pairs(file):
        for codes in (layer.data, layer.weight) if layer.op == "MatMul" else ():
            node = file.makers.get(codes.tensor) if codes is not None else None
            while node is not None and node.op_type in {*CARRIED, "Clip"} and node.op_type != "Transpose":
                node = file.makers.get(node.input[0])
            if node is not None and node.op_type == "Transpose" and node.output[0] not in file.constants:
                yield layer.node.name, f"Transpose {node.name!r} stands on codes in front of it"


def symmetric_weights(file: QuantizedFile) -> Iterator[Finding]:
    """Weights are int8 with zero point 0 behind what makes them from constants; second operands have zero point 0."""
    for layer in between_pairs(file):
        codes = layer.weight
        if codes is None:
            continue
        if layer.constant and codes.kind != "int8":
            yield layer.node.name, f"its weight is {codes.kind}"
        elif layer.constant and codes.zero_point is not None and codes.zero_point.any():
            yield layer.node.name, "its weight has zero points that are not 0"
        elif not layer.constant and codes.zero_point is not None and not symmetric(codes):
            yield layer.node.name, "its second operand is not quantized around the middle of its type"


def zero_points_of_convolutions(file: QuantizedFile) -> Iterator[Finding]:
    """A Conv reads uint8, or int8 with zero point 0; a ConvTranspose either of them with zero point 0."""
    for layer in (item for item in layers(file) if item.node.op_type in LAYERS and item.weight is not None):
        pad = file.maker(layer.node.input[0], "Pad")
        codes = layer.data if pad is None else codes_behind(file, pad.input[0])
        if codes is None or codes.zero_point is None or not codes.zero_point.any():
            continue
        if layer.op == "ConvTranspose" or (layer.op == "Conv" and codes.kind == "int8"):
            yield layer.node.name, f"its input is {codes.kind} with zero point {int(codes.zero_point.flat[0])}"


def byte_activations(file: QuantizedFile) -> Iterator[Finding]:
    """Activations have 8-bit codes."""
    for layer in between_pairs(file):
        if layer.data is not None and layer.data.kind not in BYTES:
            yield layer.node.name, f"its input is {layer.data.kind}"


def static_layers(file: QuantizedFile) -> Iterator[Finding]:
    """Layers are quantized statically: those that quantize their input as they run are computed in float."""
    for node in file.nodes:
        if node.op_type in DYNAMIC:
            yield node.name, f"it is a {node.op_type}"


def operators_read(file: QuantizedFile) -> Iterator[Finding]:
    """Operators on codes are those that OpenVINO reads; of QLinearMatMul with one scale for the weight."""
    for layer in quantized(file):
        if layer.node.op_type == "QLinearMatMul" and layer.weight is not None and layer.weight.axis is not None:
            yield layer.node.name, "it is a QLinearMatMul with a scale per channel"
    for node in file.nodes:
        if node.op_type in UNREAD:
            yield node.name, f"it is a {node.op_type}"


def one_scale_of_convolutions(file: QuantizedFile) -> Iterator[Finding]:
    """The weight of a QLinearConv has one scale: scales per channel are applied along its input channels."""
    for layer in quantized(file):
        if layer.node.op_type == "QLinearConv" and layer.weight is not None and layer.weight.axis is not None:
            yield layer.node.name, "it has a scale per channel"
