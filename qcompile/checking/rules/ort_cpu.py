"""What keeps a quantized file from the integer kernels of ONNX Runtime on a CPU, or makes them compute something else.

Measured on 1.32. What qcompile writes keeps stricter rules (`backends.ort_cpu.rules`), which older versions need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from qcompile.backends.ort_cpu import rules as own
from qcompile.checking.ends import absorbs, end_of, quantizes, read_inside
from qcompile.checking.graph import CARRIED, DEQUANTIZE, QUANTIZE, QuantizedFile
from qcompile.checking.layers import BYTES, UNKNOWN, Codes, Layer, dequantized, layers
from qcompile.emission.emitted import Finding, attribute, type_name
from qcompile.ir.protos import opset

OUTPUT_TYPE: Final = 21  # the opset from which on QuantizeLinear has an output_dtype
SCALE_TOLERANCE: Final = 0.01  # by which the scale of a bias may differ: ONNX Runtime fuses up to it
ONE_TO_ONE: Final = frozenset(["Identity", "Dropout"])  # which are gone before anything is moved


def meant(file: QuantizedFile) -> Iterator[Layer]:
    """Yield the layers that read codes on both sides through DequantizeLinear: they were meant for integer kernels."""
    for layer in layers(file):
        pairs = [codes for codes in (layer.data, layer.weight) if codes is not None and codes.node is not None]
        if layer.op != "ConvTranspose" and len(pairs) == 2:
            yield layer


def one_quantizer(file: QuantizedFile) -> Iterator[Finding]:
    """The output of a layer goes to one QuantizeLinear and nothing else; of Gemm and MatMul, to none also."""
    for layer in meant(file):
        end = end_of(file, layer.node)
        readers = file.read(end.tensor)
        count = sum(quantizes(file, reader) for reader in readers)
        if not count and layer.op == "Conv":
            others = ", ".join(sorted({reader.op_type for reader in readers + end.clips})) or "the model's output"
            yield layer.node.name, f"no QuantizeLinear stands behind it, but {others}"
        elif count > 1 and layer.node.output[0] == end.tensor:
            yield layer.node.name, f"{count} QuantizeLinear read its output"
        elif count and (len(readers) > count or end.tensor in file.outputs or end.shared):
            yield layer.node.name, "its output is read in float besides the QuantizeLinear"


def absorbed_clips(file: QuantizedFile) -> Iterator[Finding]:
    """A Relu or Clip between a layer and its QuantizeLinear lets through all that the quantizer can represent."""
    for layer in meant(file):
        end = end_of(file, layer.node)
        quantizers_behind = [reader for reader in file.read(end.tensor) if reader.op_type == QUANTIZE]
        direct = [clip for clip in end.clips if clip.input[0] == layer.node.output[0] and read_inside(file, clip)]
        if direct and not quantizers_behind and layer.op != "Conv":
            yield layer.node.name, f"{direct[0].op_type} {direct[0].name!r} reads its float output"
        for clip in end.clips if len(quantizers_behind) == 1 else []:
            if not absorbs(file, quantizers_behind[0], clip):
                yield layer.node.name, f"{clip.op_type} {clip.name!r} clips values that its quantizer represents"


def byte_weights(file: QuantizedFile) -> Iterator[Finding]:
    """Weights reach DequantizeLinear as 8-bit integers; ones of 4 bits do for MatMul and Gemm, in blocks."""
    for layer in meant(file):
        if layer.weight is not None and layer.constant and layer.weight.kind not in BYTES:
            yield layer.node.name, f"its weight is {layer.weight.kind}"


def byte_activations(file: QuantizedFile) -> Iterator[Finding]:
    """Activations have 8-bit codes."""
    for layer in meant(file):
        wide = next((codes.kind for codes in activations(layer) if codes.kind not in BYTES), "")
        if wide:
            yield layer.node.name, f"its input is {wide}"


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


def moved_int8(file: QuantizedFile) -> Iterator[Finding]:
    """From opset 21 on, what moves int8 activations has a QuantizeLinear behind it."""
    for node in file.nodes if opset(file.model) >= OUTPUT_TYPE else ():
        pair = file.maker(node.input[0], DEQUANTIZE) if node.input and node.op_type in CARRIED - ONE_TO_ONE else None
        codes = pair.input[0] if pair is not None else ""
        if file.maker(codes, QUANTIZE) is None or type_name(file.kinds[codes]) != "int8":
            continue
        if all(reader.op_type != QUANTIZE for reader in file.read(end_of(file, node).tensor)):
            yield node.name, f"{node.op_type} reads the int8 codes {codes!r}, and no QuantizeLinear stands behind it"


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
    """Say whether a QuantizeLinear stands behind a layer, with what clips values, or moves them alone, in between."""
    end = end_of(file, layer.node)
    shared = end.moved and layer.node.output[0] in file.outputs
    return not shared and any(reader.op_type == QUANTIZE for reader in file.read(end.tensor))


def lonely_int8(file: QuantizedFile) -> Iterator[Finding]:
    """int8 activations go from one QuantizeLinear through one DequantizeLinear to one reader: else they stay int8."""
    for layer in meant(file):
        ends = [(codes.tensor, lonely(file, codes.tensor)) for codes in activations(layer)]
        end = end_of(file, layer.node)
        for quantize in (reader for reader in file.read(end.tensor) if reader.op_type == QUANTIZE):
            alone = layer.op != "Conv" or layer.node.output[0] not in file.outputs  # a Conv has it in front of both
            ends.append((quantize.output[0], alone if end.moved else lonely(file, quantize.output[0])))
        left = [tensor for tensor, alone in ends if type_name(file.kinds[tensor]) == "int8" and not alone]
        product = layer.op == "Gemm" or (layer.op == "MatMul" and len(ends) == 1)  # that may have int8 alone
        signed = product and layer.weight is not None and layer.weight.kind == "int8"
        if left and not (signed and len(left) == len(ends)):
            yield layer.node.name, f"the int8 codes {left[0]!r} have more than one reader, or one that is no pair's"


def activations(layer: Layer) -> list[Codes]:
    """Return the codes of a layer that are no weight."""
    return [codes for codes in (layer.data, None if layer.constant else layer.weight) if codes is not None]


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
        ends = [file.read(end_of(file, add).tensor) for add in adds]
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
