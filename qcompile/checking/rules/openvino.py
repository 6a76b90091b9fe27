"""What keeps a quantized file from the integer kernels of OpenVINO on a CPU (measured on 2026.4)."""

from __future__ import annotations

from collections.abc import Iterator

from qcompile.checking.graph import BIT_OPERATORS, CARRIED, QuantizedFile
from qcompile.checking.layers import layers
from qcompile.emission.emitted import Finding
from qcompile.runtime.unpack import behind


def plain_weights(file: QuantizedFile) -> Iterator[Finding]:
    """Weights are stored as int8 or int4: those that bit operators take apart are not seen as constants."""
    makers = {name: node for name, node in file.makers.items() if name in file.constants}
    for layer in layers(file):
        codes = layer.weight
        if (
            codes is not None
            and layer.constant
            and any(node.op_type in BIT_OPERATORS for node in behind(codes.tensor, makers))
        ):
            yield layer.node.name, "its weight is taken apart by bit operators"


def transposed_floats(file: QuantizedFile) -> Iterator[Finding]:
    """What a MatMul reads is transposed behind DequantizeLinear, not as codes."""
    for layer in layers(file):
        for codes in (layer.data, layer.weight) if layer.op == "MatMul" else ():
            node = file.makers.get(codes.tensor) if codes is not None else None
            while node is not None and node.op_type in {*CARRIED, "Clip"} and node.op_type != "Transpose":
                node = file.makers.get(node.input[0])
            if node is not None and node.op_type == "Transpose" and node.output[0] not in file.constants:
                yield layer.node.name, f"Transpose {node.name!r} stands on codes in front of it"
