"""What files of QuantizeLinear and DequantizeLinear must satisfy, by the facts of their target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from qcompile.emission.emitted import Emitted, Finding, Rule, attribute, same_parameters, type_name
from qcompile.emission.rules import no_unused_initializer, unique_names
from qcompile.program.dag import SHAPE_SOURCES
from qcompile.quant.powers import is_power


def activation_codes(emitted: Emitted) -> Iterator[Finding]:
    """Activations have codes of the target's type, with zero points of 0 where it wants that and they can be."""
    target = emitted.target
    for node in emitted.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        kind, (_, zero_point) = emitted.kinds[node.output[0]], emitted.parameters(node)
        around_0 = target.costly_zero_points and type_name(kind) == "int8"
        if type_name(kind) != target.activations and not around_0:
            yield node.name, f"it makes {type_name(kind)}, not {target.activations}"
        elif (target.symmetric or around_0) and np.any(zero_point):
            yield node.name, f"its zero point is {int(zero_point)}, not 0"


def _layers(emitted: Emitted) -> list[onnx.NodeProto]:
    """Return the nodes with a quantized weight; what moves values may stand between them and a DequantizeLinear."""
    return [node for node in emitted.nodes if emitted.weight(node) is not None]


def symmetric_weights(emitted: Emitted) -> Iterator[Finding]:
    """Weights are int8 or int4 constants with zero points of 0."""
    for node in _layers(emitted):
        weight = emitted.weight(node)
        if weight is None:
            continue
        kind, (_, zero_point) = emitted.kinds[weight.input[0]], emitted.parameters(weight)
        if kind not in (TensorProto.INT8, TensorProto.INT4) or np.any(zero_point):
            yield node.name, f"its weight is {type_name(kind)} with zero points that are not 0"


def powers_of_two(emitted: Emitted) -> Iterator[Finding]:
    """Scales of activations and of weights are powers of two where the target wants these."""
    weights = {weight.output[0] for node in _layers(emitted) if (weight := emitted.weight(node)) is not None}
    biases = {name for node in _layers(emitted) for name in node.input[2:] if node.op_type in emitted.target.compute}
    for node in emitted.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] not in biases:
            what = "weights" if node.output[0] in weights else "activations"
            scale, _ = emitted.parameters(node)
            if what in emitted.target.power_of_two and not (scale is not None and is_power(scale)):
                yield node.name, "its scale is no power of two"


def one_scale_per_tensor(emitted: Emitted) -> Iterator[Finding]:
    """Weights of the operators that the target names, and of depthwise convolutions, have one scale."""
    for node in _layers(emitted):
        weight = emitted.weight(node)
        if weight is None or not emitted.target.per_tensor_weights.intersection(
            [node.op_type, _depthwise(emitted, node)]
        ):
            continue
        scale, _ = emitted.parameters(weight)
        if scale is None or np.ndim(scale):
            yield node.name, "its weight has scales by channel"


def _depthwise(emitted: Emitted, node: onnx.NodeProto) -> str:
    """Return "depthwise" where a node is such a convolution; one whose weight is packed has no shape to tell."""
    weight = emitted.weight(node)
    stored = emitted.initializers.get(weight.input[0]) if weight is not None else None
    alone = stored is not None and list(stored.dims[1:2]) == [1]
    return "depthwise" if alone and attribute(node, "group", 1) > 1 else ""


def bias_type(emitted: Emitted) -> Iterator[Finding]:
    """Biases have the type that the target takes."""
    for node in emitted.integer:
        if len(node.input) < 3 or not node.input[2]:
            continue
        made_by = emitted.maker(node.input[2], "DequantizeLinear")
        kind = emitted.kinds.get(made_by.input[0] if made_by is not None else node.input[2], TensorProto.UNDEFINED)
        if type_name(kind) != {"float32": "float"}.get(emitted.target.bias, emitted.target.bias):
            yield node.name, f"its bias is {type_name(kind)}, not {emitted.target.bias}"


def movers_behind_dequantize(emitted: Emitted) -> Iterator[Finding]:
    """Nothing but quantizers and packed weights works on codes where the target has movers and clips in float."""
    if emitted.target.movement == "codes":
        return
    on_codes = emitted.on_codes()
    for node in emitted.nodes:
        packed = node.input and node.input[0] in emitted.constants
        if node.name in on_codes and not (packed or node.op_type in SHAPE_SOURCES):
            yield node.name, f"it is a {node.op_type} on codes"


def no_pair_twice(emitted: Emitted) -> Iterator[Finding]:
    """No value is rounded twice to one grid."""
    for node in emitted.nodes:
        before = emitted.maker(node.input[0], "DequantizeLinear") if node.op_type == "QuantizeLinear" else None
        if before is not None and same_parameters(emitted, before, node) and not _clips_behind(emitted, node):
            yield node.name, "it makes the codes that the DequantizeLinear in front of it has read"


def _clips_behind(emitted: Emitted, node: onnx.NodeProto) -> bool:
    return any(reader.op_type == "Clip" for reader in emitted.readers.get(node.output[0], []))


RULES: Final[dict[str, Rule]] = {
    "activation-codes": activation_codes,
    "symmetric-weights": symmetric_weights,
    "powers-of-two": powers_of_two,
    "one-scale-per-tensor": one_scale_per_tensor,
    "bias-type": bias_type,
    "movers-behind-dequantize": movers_behind_dequantize,
    "no-pair-twice": no_pair_twice,
    "no-unused-initializer": no_unused_initializer,
    "unique-names": unique_names,
}
