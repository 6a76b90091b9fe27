"""What keeps a quantized file from the integer kernels of ONNX Runtime on a CPU, or makes them compute something else.

Measured on 1.32. What qcompile writes keeps stricter rules (`backends.ort_cpu.rules`), which older versions need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from onnx import NodeProto

from qcompile.backends.ort_cpu import rules as own
from qcompile.checking.graph import CARRIED, DEQUANTIZE, QUANTIZE, QuantizedFile
from qcompile.checking.layers import (
    BYTES,
    UNKNOWN,
    Codes,
    Layer,
    bounds_of,
    dequantized,
    grid,
    layers,
    quantizers,
    rows,
)
from qcompile.emission.emitted import Finding, attribute, same_parameters, type_name

CLIPS: Final = ("Relu", "Clip")
SCALE_TOLERANCE: Final = 0.01  # by which the scale of a bias may differ: ONNX Runtime fuses up to it
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


def meant(file: QuantizedFile) -> Iterator[Layer]:
    """Yield the layers that read codes on both sides through DequantizeLinear: they were meant for integer kernels."""
    for layer in layers(file):
        pairs = [codes for codes in (layer.data, layer.weight) if codes is not None and codes.node is not None]
        if layer.op != "ConvTranspose" and len(pairs) == 2:
            yield layer


def followed(file: QuantizedFile, node: NodeProto) -> tuple[str, list[NodeProto]]:
    """Return the tensor that a node makes, behind what moves it on, and the Relu and Clip on the way to a quantizer."""
    name, clips = node.output[0], list[NodeProto]()
    while (
        len(readers := file.read(name)) == 1 and name not in file.outputs and readers[0].op_type in {*CARRIED, *CLIPS}
    ):
        if readers[0].op_type in CLIPS:
            clips.append(readers[0])
        name = readers[0].output[0]
    return name, clips


def one_quantizer(file: QuantizedFile) -> Iterator[Finding]:
    """The output of a layer goes to one QuantizeLinear and nothing else; of Gemm and MatMul, to none also."""
    for layer in meant(file):
        name, clips = followed(file, layer.node)
        readers = file.read(name)
        count = sum(reader.op_type == QUANTIZE for reader in readers)
        if not count and layer.op == "Conv":
            others = ", ".join(sorted({reader.op_type for reader in readers + clips})) or "the model's output"
            yield layer.node.name, f"no QuantizeLinear stands behind it, but {others}"
        elif count > 1 and layer.node.output[0] == name:
            yield layer.node.name, f"{count} QuantizeLinear read its output"
        elif count and (len(readers) > count or name in file.outputs):
            yield layer.node.name, "its output is read in float besides the QuantizeLinear"


def absorbed_clips(file: QuantizedFile) -> Iterator[Finding]:
    """A Relu or Clip between a layer and its QuantizeLinear lets through all that the quantizer can represent."""
    for layer in meant(file):
        name, clips = followed(file, layer.node)
        quantizers_behind = [reader for reader in file.read(name) if reader.op_type == QUANTIZE]
        for clip in clips if len(quantizers_behind) == 1 else []:
            if not absorbs(file, quantizers_behind[0], clip):
                yield layer.node.name, f"{clip.op_type} {clip.name!r} clips values that its quantizer represents"


def absorbs(file: QuantizedFile, quantize: NodeProto, clip: NodeProto) -> bool:
    """Say whether the values that a quantizer represents pass a Relu or Clip unchanged."""
    scale, zero_point = file.parameters(quantize)
    if scale is None or scale.size > 1:
        return False
    low, high = bounds_of(type_name(file.kinds[quantize.output[0]]))
    least, most = ((bound - int(zero_point)) * float(scale) for bound in (low, high))
    bounds = [0.0, np.inf]
    if clip.op_type == "Clip":
        given = [file.value(name) if name else None for name in [*clip.input[1:3], "", ""][:2]]
        old = [attribute(clip, key, None) for key in ("min", "max")]  # before opset 11
        bounds = [float(value) if value is not None else known for value, known in zip(given, old)]
        bounds = [-np.inf if bounds[0] is None else bounds[0], np.inf if bounds[1] is None else bounds[1]]
    return bounds[0] <= least and most <= bounds[1]


def byte_weights(file: QuantizedFile) -> Iterator[Finding]:
    """Weights reach DequantizeLinear as 8-bit integers; ones of 4 bits do for MatMul and Gemm, in blocks."""
    for layer in meant(file):
        if layer.weight is not None and layer.weight.kind not in BYTES:
            yield layer.node.name, f"its weight is {layer.weight.kind}"


def byte_activations(file: QuantizedFile) -> Iterator[Finding]:
    """Activations have 8-bit codes."""
    for layer in meant(file):
        if layer.data is not None and layer.data.kind not in BYTES:
            yield layer.node.name, f"its input is {layer.data.kind}"


def integer_bias(file: QuantizedFile) -> Iterator[Finding]:
    """A bias is int32 with the scale of input times weight; of a Conv, or a Gemm with a quantizer behind, float too."""
    for layer in meant(file):
        bias = file.maker(layer.bias, DEQUANTIZE) if layer.bias else None
        if not layer.bias or layer.op not in ("Conv", "Gemm"):
            continue
        if bias is None and layer.op == "Gemm" and not quantized_output(file, layer):
            yield layer.node.name, "its bias is float, and its output is"
        elif bias is not None and (kind := dequantized(file, bias).kind) != "int32":
            yield layer.node.name, f"its bias is {kind}"
        elif bias is not None and layer.op == "Conv" and (off := scale_error(layer, dequantized(file, bias))):
            yield layer.node.name, f"the scale of its bias is not that of input times weight, but {off:.3g} times it"


def bias_scale(file: QuantizedFile) -> Iterator[Finding]:
    """The bias of a Gemm has the scale of input times weight: ONNX Runtime takes that for granted."""
    for layer in meant(file):
        bias = file.maker(layer.bias, DEQUANTIZE) if layer.bias and layer.op == "Gemm" else None
        if bias is not None and (off := scale_error(layer, dequantized(file, bias))):
            yield layer.node.name, f"the scale of its bias is {off:.3g} times that of input times weight"


def scale_error(layer: Layer, bias: Codes) -> float:
    """Return the scale of a bias by what it should be, where it is furthest from it; 0 where that is near enough."""
    scales = [codes.scale for codes in (bias, layer.data, layer.weight) if codes is not None]
    if len(scales) < 3 or any(scale is None for scale in scales):
        return 0.0
    found, data, weight = (np.asarray(scale, np.float64).reshape(-1) for scale in scales)
    if len({found.size, weight.size, 1}) > 2 or data.size > 1 or not (data * weight).all():
        return 0.0
    ratio = found / (data * weight)
    worst = float(ratio[np.abs(np.log(np.abs(ratio))).argmax()]) if ratio.all() else 0.0
    return worst if abs(worst - 1) > SCALE_TOLERANCE else 0.0


def quantized_output(file: QuantizedFile, layer: Layer) -> bool:
    """Say whether a QuantizeLinear stands behind a layer, with what moves or clips values in between."""
    return any(reader.op_type == QUANTIZE for reader in file.read(followed(file, layer.node)[0]))


def lonely_int8(file: QuantizedFile) -> Iterator[Finding]:
    """int8 activations go from one QuantizeLinear through one DequantizeLinear to one reader: else they stay int8."""
    for layer in meant(file):
        behind = file.read(followed(file, layer.node)[0])
        ends = [layer.data.tensor] if layer.data else []
        ends += [] if layer.constant or layer.weight is None else [layer.weight.tensor]
        ends += [reader.output[0] for reader in behind if reader.op_type == QUANTIZE]
        for tensor in ends:
            if type_name(file.kinds[tensor]) == "int8" and not lonely(file, tensor):
                yield layer.node.name, f"the int8 codes {tensor!r} have more than one reader, or one that is no pair's"
                break


def lonely(file: QuantizedFile, tensor: str) -> bool:
    """Say whether codes stand between one QuantizeLinear and one DequantizeLinear with one reader."""
    readers = file.read(tensor)
    if file.maker(tensor, QUANTIZE) is None or len(readers) != 1 or tensor in file.outputs:
        return False
    name = readers[0].output[0]
    uses = sum(node.input[:].count(name) for node in file.read(name)) + (name in file.outputs)
    return readers[0].op_type == DEQUANTIZE and uses == 1


def plain_gemm(file: QuantizedFile) -> Iterator[Finding]:
    """A Gemm is a plain product, and the zero points of its operands are written out."""
    for layer in meant(file):
        if layer.op != "Gemm":
            continue
        pairs = [codes.node for codes in (layer.data, layer.weight) if codes is not None and codes.node is not None]
        if attribute(layer.node, "alpha", 1.0) != 1 or attribute(layer.node, "beta", 1.0) != 1:
            yield layer.node.name, "it has alpha or beta"
        elif attribute(layer.node, "transA", 0):
            yield layer.node.name, "it transposes its input"
        elif any(len(pair.input) < 3 or not pair.input[2] for pair in pairs):
            yield layer.node.name, "a DequantizeLinear in front of it has no zero point"


def unmerged_sums(file: QuantizedFile) -> Iterator[Finding]:
    """An Add behind a MatMul of matrices is quantized as well: ONNX Runtime makes one Gemm of both, in float else."""
    wanted = {layer.node.name for layer in meant(file)}
    for name, detail in own.no_merged_sum(file):
        node = next(node for node in file.nodes if node.name == name)
        adds = [reader for reader in file.read(node.output[0]) if reader.op_type == "Add"]
        ends = [file.read(followed(file, add)[0]) for add in adds]
        biases = [file.maker(part, DEQUANTIZE) for add in adds for part in add.input]
        quantized = any(reader.op_type == QUANTIZE for readers in ends for reader in readers)
        if name in wanted and len(file.read(node.output[0])) == 1 and not quantized and not any(biases):
            yield name, detail


def weight_axis(file: QuantizedFile) -> Iterator[Finding]:
    """The scales of a weight stand along its output channels: integer kernels know no other axis, and no blocks."""
    for layer in meant(file):
        codes = layer.weight
        if codes is None or not layer.constant or codes.axis in (None, UNKNOWN) or codes.scale is None:
            continue
        rank = getattr(file.value(codes.tensor), "ndim", 0)
        if codes.block and codes.kind in BYTES:
            yield layer.node.name, f"the scales of its weight stand for blocks of {codes.block}"
        elif rank and (codes.axis or 0) % rank != layer.axis % rank and np.ptp(codes.scale):
            yield layer.node.name, f"the scales of its weight stand along axis {codes.axis}, not {layer.axis % rank}"


def tensor_activations(file: QuantizedFile) -> Iterator[Finding]:
    """Activations have one scale and one zero point for the tensor."""
    for layer in meant(file):
        if layer.data is not None and layer.data.axis is not None:
            yield layer.node.name, "its input has a scale per channel"


def merged_pairs(file: QuantizedFile) -> Iterator[Finding]:
    """Two pairs of other parameters do not follow each other: ONNX Runtime makes one of them, and loses codes."""
    for name, detail in own.no_double_requantization(file):
        second = next(node for node in file.nodes if node.name == name)
        middle = file.makers[second.input[0]]
        ends = [file.read(node.output[0]) for node in (file.makers[middle.input[0]], middle, second)]
        types = {file.kinds[node.output[0]] for node in (file.makers[middle.input[0]], second)}
        if all(len(readers) == 1 for readers in ends) and len(types) == 1 and ends[2][0].op_type == DEQUANTIZE:
            yield name, detail


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
