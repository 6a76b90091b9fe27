"""What a file must satisfy to run on ONNX Runtime's integer kernels, checked on the file itself.

A broken rule goes unnoticed by ONNX Runtime: the file loads, but a node runs in float, twice as slowly, or (a wrong
bias scale before 1.31) with wrong numbers. Nothing is run here; `runtime.fused` looks at what became of the file.
Each rule yields (node, detail) for every place where it is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from qcompile.backends.ort_cpu.composites import COMPOSITES
from qcompile.emission.emitted import CODES, Emitted, Finding, Rule, attribute, same_parameters, type_name
from qcompile.emission.rules import no_unused_initializer, unique_names
from qcompile.quant.grid import WEIGHTS


def dequantized_inputs(emitted: Emitted) -> Iterator[Finding]:
    """Every operand of an integer node comes from a DequantizeLinear; an operator on codes needs none."""
    for node in emitted.integer:
        for name in emitted.operands(node):
            if emitted.kinds.get(name) not in CODES and emitted.maker(name, "DequantizeLinear") is None:
                yield node.name, f"its input {name!r} does not come from a DequantizeLinear"


def one_quantizer(emitted: Emitted) -> Iterator[Finding]:
    """The output of an integer node goes to exactly one QuantizeLinear; Gemm and MatMul may have none at all."""
    for node in emitted.integer:
        readers = emitted.readers.get(node.output[0], [])
        quantizers = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if (not quantizers and node.op_type in emitted.target.float_output) or emitted.kinds[node.output[0]] in CODES:
            continue
        if len(quantizers) != 1:
            yield node.name, f"its output has {len(quantizers)} QuantizeLinear behind it"
        elif len(readers) > 1 or node.output[0] in emitted.outputs:
            yield node.name, "its output is read in float besides the QuantizeLinear"


def no_double_requantization(emitted: Emitted) -> Iterator[Finding]:
    """ONNX Runtime merges Q -> DQ -> Q -> DQ of unequal parameters into one other pair, unless a Clip follows."""
    for node in emitted.nodes:
        dequantize = emitted.maker(node.input[0], "DequantizeLinear") if node.op_type == "QuantizeLinear" else None
        if dequantize is None or emitted.maker(dequantize.input[0], "QuantizeLinear") is None:
            continue
        clipped = all(reader.op_type == "Clip" for reader in emitted.readers.get(node.output[0], []))
        if not clipped and not same_parameters(emitted, dequantize, node):
            yield node.name, f"it quantizes {dequantize.output[0]!r} again with other parameters and no Clip behind"


def no_float_clip(emitted: Emitted) -> Iterator[Finding]:
    """No Relu or Clip reads the float output of an integer node: the quantizer's range clips, or Max and Min do."""
    for node in emitted.integer:
        for clip in emitted.readers.get(node.output[0], []):
            if clip.op_type not in emitted.target.clips or emitted.kinds[node.output[0]] in CODES:
                continue
            behind = emitted.readers.get(clip.output[0], [])
            if any(item.op_type == "QuantizeLinear" for item in behind):
                yield node.name, f"{clip.op_type} {clip.name!r} stands in float between it and its QuantizeLinear"
            elif node.op_type in emitted.target.float_output:
                yield node.name, f"{clip.op_type} {clip.name!r} reads its float output: Max and Min would do"


def no_merged_sum(emitted: Emitted) -> Iterator[Finding]:
    """No Add reads an integer MatMul in float, but with a constant of rank 3: of others a float Gemm is made."""
    for node in emitted.integer:
        for add in emitted.readers.get(node.output[0], []) if node.op_type == "MatMul" else []:
            constants = [value for name in add.input if (value := emitted.value(name)) is not None]
            if add.op_type == "Add" and not any(value.ndim > 2 for value in constants):
                yield node.name, f"Add {add.name!r} reads its float output: Sum would do"


def unsigned_activations(emitted: Emitted) -> Iterator[Finding]:
    """Activations have the codes of the target: int8 ones stay float at every branch and in front of every Clip."""
    wanted = emitted.target.activations
    for node in emitted.nodes:
        if node.op_type == "QuantizeLinear" and (found := type_name(emitted.kinds[node.output[0]])) != wanted:
            yield node.name, f"it makes {found}, not {wanted}"


def signed_weights(emitted: Emitted) -> Iterator[Finding]:
    """Weights reach DequantizeLinear as int8 with zero point 0 along the output channels: others are float or slow."""
    for node in emitted.integer:
        dequantize = emitted.weight(node)
        if dequantize is None:
            continue
        scale, zero_point = emitted.parameters(dequantize)
        if (found := type_name(emitted.kinds[dequantize.input[0]])) != WEIGHTS.container:
            yield node.name, f"its weight is {found}, not {WEIGHTS.container}"
        elif scale is None or scale.ndim > 1 or zero_point.any():
            yield node.name, "its weight needs a constant scale per channel (or one) and zero point 0"
        elif node.op_type == "Gemm" and len(dequantize.input) < 3:  # ONNX Runtime 1.31
            yield node.name, "its weight's zero point has to be written out"
        elif scale.ndim == 1 and attribute(dequantize, "axis", 1) not in output_axes(node):
            yield node.name, "its weight is quantized along another axis than the output channels"


def no_lowest_weight(emitted: Emitted) -> Iterator[Finding]:
    """No weight is -128: two products with the code 0 of the other side overflow the int16 sums of kernels on Arm."""
    for node in emitted.integer:
        dequantize = emitted.weight(node)
        if dequantize is not None and least_constant(emitted, dequantize.input[0]) < WEIGHTS.low:
            yield node.name, "its weight holds -128"


def least_constant(emitted: Emitted, name: str) -> int:
    """Return a lower bound of a constant of integers, which may be unpacked from codes: codes * step + offset."""
    value, node = emitted.value(name), emitted.makers.get(name)
    if value is not None or node is None:
        return int(value.min()) if value is not None and value.size else 0
    if node.op_type == "Cast":
        return least_constant(emitted, node.input[0])
    return sum(least_constant(emitted, part) for part in node.input) if node.op_type == "Add" else 0


def exact_bias(emitted: Emitted) -> Iterator[Finding]:
    """A bias is int32 with scale float32(input scale * weight scale), zero point 0."""
    for node in emitted.integer:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or not node.input[2]:
            continue
        bias = emitted.maker(node.input[2], "DequantizeLinear")
        data, weight = emitted.maker(node.input[0], "DequantizeLinear"), emitted.weight(node)
        if bias is None or emitted.kinds[bias.input[0]] != TensorProto.INT32:
            yield node.name, "its bias is not int32 behind a DequantizeLinear"
        elif data is not None and weight is not None:
            (scale, zero_point), inputs, weights = map(emitted.parameters, (bias, data, weight))
            if scale is None or inputs[0] is None or weights[0] is None:
                yield node.name, "a scale of its input, weight or bias is not constant"
            elif zero_point.any() or not np.array_equal(np.atleast_1d(scale), np.atleast_1d(inputs[0] * weights[0])):
                yield node.name, "its bias scale is not float32(input scale * weight scale)"


def even_zero_points(emitted: Emitted) -> Iterator[Finding]:
    """Outputs of kernels that round after adding the zero point have an even one: then both orders agree."""
    late = emitted.target.even_zero_point - COMPOSITES.keys()  # in the file these are others
    for node in emitted.nodes:
        if node.op_type not in late or any(
            emitted.maker(name, "DequantizeLinear") is None for name in emitted.operands(node)
        ):
            continue
        for reader in emitted.readers.get(node.output[0], []):
            if reader.op_type == "QuantizeLinear" and (emitted.parameters(reader)[1] % 2).any():
                yield node.name, f"its output has the odd zero point {int(emitted.parameters(reader)[1])}"


def clip_bounds(emitted: Emitted) -> Iterator[Finding]:
    """A Clip on codes has two scalar constants of their type as bounds, and lets the code of zero through."""
    for node in emitted.nodes:
        if node.op_type != "Clip" or emitted.kinds.get(node.input[0]) not in CODES:
            continue
        bounds, wanted = [emitted.value(name) for name in node.input[1:] if name], emitted.target.activations
        if len(bounds) != 2 or any(bound is None or bound.ndim or bound.dtype != wanted for bound in bounds):
            yield node.name, f"it clips codes and needs both bounds as {wanted} scalar constants"
            continue
        quantize = emitted.maker(node.input[0], "QuantizeLinear")
        zero_point = int(emitted.parameters(quantize)[1]) if quantize is not None else None
        low, high = (int(bound) for bound in bounds if bound is not None)
        if low > high or (zero_point is not None and not low <= zero_point <= high):
            yield node.name, f"its grid {low}..{high} is empty or leaves out the zero point {zero_point}"


def scalar_parameters(emitted: Emitted) -> Iterator[Finding]:
    """An activation's scale and zero point are constants of rank 0, the scale finite and above 0.

    The exception is a float layer, which reads codes through equal scales per channel so that its weight stays float.
    """
    for node in emitted.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] in emitted.constants:
            continue
        scale, zero_point = emitted.parameters(node)
        if (
            scale is not None
            and scale.ndim == 1
            and np.ptp(scale) == 0 == np.ptp(zero_point)
            and guards_float_layer(emitted, node)
        ):
            scale, zero_point = scale[0], zero_point[0]
        if scale is None or scale.ndim or zero_point.ndim:
            yield node.name, "scale and zero point are not constants of rank 0"
        elif not (np.isfinite(scale) and scale > 0):
            yield node.name, f"its scale is {float(scale)}"


def guards_float_layer(emitted: Emitted, node: onnx.NodeProto) -> bool:
    """Say whether only layers with a float weight read this DequantizeLinear."""
    readers = emitted.readers.get(node.output[0], [])
    return bool(readers) and all(
        reader.op_type in ("Conv", "ConvTranspose", "Gemm") and reader.input[1] in emitted.constants
        for reader in readers
    )


def output_axes(node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the output-channel axis of a compute node's weight: counted from the front and from the end."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return (0,)
    return (1, -1)


RULES: Final[dict[str, Rule]] = {
    "dequantized-inputs": dequantized_inputs,
    "one-quantizer": one_quantizer,
    "no-double-requantization": no_double_requantization,
    "no-float-clip": no_float_clip,
    "no-merged-sum": no_merged_sum,
    "unsigned-activations": unsigned_activations,
    "signed-weights": signed_weights,
    "no-lowest-weight": no_lowest_weight,
    "exact-bias": exact_bias,
    "even-zero-points": even_zero_points,
    "clip-bounds": clip_bounds,
    "scalar-parameters": scalar_parameters,
    "no-unused-initializer": no_unused_initializer,
    "unique-names": unique_names,
}
