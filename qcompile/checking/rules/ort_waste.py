"""What ONNX Runtime runs on a CPU at needless cost, or right on some processors alone (measured on 1.32)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from onnx import NodeProto

from qcompile.backends.ort_cpu import rules as own
from qcompile.checking.ends import CLIPS, absorbs
from qcompile.checking.graph import DEQUANTIZE, QUANTIZE, QuantizedFile
from qcompile.checking.layers import BYTES, Layer, grid, layers, quantizers, rows
from qcompile.emission.emitted import Finding, attribute, same_parameters

PLAIN: Final = frozenset(["", "ai.onnx", "ai.onnx.ml", "com.microsoft"])
# operators with an integer kernel between DequantizeLinear and QuantizeLinear, whatever the parameters
KERNELS: Final = frozenset(
    [
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"),
        *("LeakyRelu", "Sigmoid", "Softmax", "Where"),
    ]
)
# those that run on codes where the parameters are equal on both sides, and those that never do
MOVING: Final = frozenset(
    [
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Flatten", "Split", "Gather", "Tile"),
        *("Expand", "ReduceMax", "ReduceMin", "Resize", "DepthToSpace"),
    ]
)
STUCK: Final = frozenset(["Pad", "SpaceToDepth"])


def unsigned_weights(file: QuantizedFile) -> Iterator[Finding]:
    """Weights are int8: there is no fast kernel for two unsigned operands. (ConvInteger has a rule of its own.)"""
    for layer in layers(file):
        if (
            layer.node.op_type != "ConvInteger"
            and layer.constant
            and layer.weight is not None
            and layer.weight.kind == "uint8"
            and reads_codes(layer)
        ):
            yield layer.node.name, "its weight is uint8"


def reads_codes(layer: Layer) -> bool:
    """Say whether a layer reads activations as codes, or quantizes them itself."""
    return layer.data is not None or layer.node.op_type == "DynamicQuantizeMatMul"


def weights_in_float(file: QuantizedFile) -> Iterator[Finding]:
    """A weight that a float kernel reads is not stored in codes: DequantizeLinear makes floats of it at every run."""
    for layer in layers(file):
        if layer.weight is None or layer.weight.node is None or not layer.constant:
            continue
        if layer.op == "ConvTranspose":
            yield layer.node.name, "there is no integer ConvTranspose"
        elif layer.data is None:
            yield layer.node.name, f"its weight is quantized, its input comes from {made_by(file, layer.node.input[0])}"


def static_convolutions(file: QuantizedFile) -> Iterator[Finding]:
    """Convolutions are quantized statically: those that quantize their input as they run are slower than float ones."""
    for node in file.nodes:
        if node.op_type == "ConvInteger":
            yield node.name, "it is a ConvInteger"


def made_by(file: QuantizedFile, name: str) -> str:
    """Say which operator makes a tensor, with what stands between it and a DequantizeLinear in front of it."""
    maker = file.before(name)
    return "the model's input" if maker is None else f"{maker.op_type} {maker.name!r}"


def useful_pairs(file: QuantizedFile) -> Iterator[Finding]:
    """A pair stands beside an operator that runs on integers: between float ones it is two more passes."""
    near, on_codes = KERNELS | MOVING | STUCK | {*CLIPS}, file.on_codes()
    for node in quantizers(file):
        if node.op_type != QUANTIZE or not (pairs := file.read(node.output[0])):
            continue
        maker = file.before(node.input[0])
        readers = [reader for pair in pairs for reader in file.read(pair.output[0])]
        around = [*([maker] if maker is not None else []), *readers]
        only = all(pair.op_type == DEQUANTIZE for pair in pairs) and node.output[0] not in file.outputs
        if only and readers and not any(item.op_type in near or item.name in on_codes for item in around):
            yield node.name, f"only {', '.join(sorted({item.op_type for item in around}))} stand beside it"


def moves_on_codes(file: QuantizedFile) -> Iterator[Finding]:
    """What moves values between DequantizeLinear and QuantizeLinear keeps their parameters, and nothing clips there."""
    for node, pair, quantize in between_pairs(file):
        if node.op_type in CLIPS and not absorbs(file, quantize, node):
            yield node.name, f"{node.op_type} stands between DequantizeLinear and QuantizeLinear"
        elif node.op_type in MOVING and not same_parameters(file, pair, quantize):
            yield node.name, f"{node.op_type} has other parameters behind it than in front"


def no_float_pad(file: QuantizedFile) -> Iterator[Finding]:
    """Pad works on codes: ONNX Runtime does not move it there."""
    for node, _, _ in between_pairs(file):
        if node.op_type in STUCK:
            yield node.name, f"{node.op_type} stands between DequantizeLinear and QuantizeLinear"


def between_pairs(file: QuantizedFile) -> Iterator[tuple[NodeProto, NodeProto, NodeProto]]:
    """Yield every node whose data come from a DequantizeLinear and go to one QuantizeLinear alone, with those two."""
    for node in file.nodes:
        pair = file.maker(node.input[0], DEQUANTIZE) if node.input else None
        readers = file.read(node.output[0])
        if (
            pair is not None
            and pair.output[0] not in file.constants
            and [item.op_type for item in readers] == [QUANTIZE]
        ):
            yield node, pair, readers[0]


def no_saturation(file: QuantizedFile) -> Iterator[Finding]:
    """No two products of uint8 and int8 exceed int16 together: processors without VNNI add them there."""
    for layer in layers(file):
        weights = rows(layer, file) if layer.data is not None and layer.data.kind in BYTES else None
        if weights is None or layer.weight is None or layer.weight.kind != "int8" or weights.shape[1] < 2:
            continue
        ends = np.partition(weights, (1, -2), axis=1)
        worst = max(int(ends[:, -2:].sum(1).max()), -int(ends[:, :2].sum(1).min()))
        most = grid_top(file, layer)
        if worst * most > 32767:
            yield layer.node.name, f"two products come to {worst * most}, int16 holds 32767"


def grid_top(file: QuantizedFile, layer: Layer) -> int:
    """Return the largest code of the input as kernels see it: int8 ones are shifted by 128."""
    low, high = grid(file, layer.data.tensor) if layer.data else (0, 0)
    return high if low >= 0 else high + 128


def no_lowest_depthwise(file: QuantizedFile) -> Iterator[Finding]:
    """No depthwise weight is -128: a kernel on Arm multiplies it wrongly."""
    depthwise = {node.name for node in file.nodes if node.op_type == "Conv" and attribute(node, "group", 1) > 1}
    yield from ((name, detail) for name, detail in own.no_lowest_weight(file) if name in depthwise)


def stored_in_codes(file: QuantizedFile) -> Iterator[Finding]:
    """Weights are stored as codes: as floats with a QuantizeLinear behind them they take four times the bytes."""
    for layer in layers(file):
        made = file.maker(layer.weight.tensor, QUANTIZE) if layer.weight is not None and layer.constant else None
        if made is not None:
            yield layer.node.name, f"its weight {made.input[0]!r} is stored in float"


def known_operators(file: QuantizedFile) -> Iterator[Finding]:
    """Operators are those of ONNX or ONNX Runtime: others need a library beside the file."""
    for node in file.nodes:
        if node.domain not in PLAIN:
            yield node.name, f"{node.op_type} is of the domain {node.domain}"
