"""What a file of the academic target must satisfy: float operators alone, and whole quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx

from qcompile.backends.academic.writer import MARK, ROW
from qcompile.emission.emitted import Emitted, Finding, Rule
from qcompile.emission.rules import no_unused_initializer, unique_names
from qcompile.quant.powers import is_power

INTEGER: Final = (  # beginnings of names
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QLinear",
)


def float_operators(emitted: Emitted) -> Iterator[Finding]:
    """No operator works on integers, nor is one written that runtimes make integer kernels of."""
    for node in emitted.nodes:
        if node.op_type.startswith(INTEGER):
            yield node.name, f"it is a {node.op_type}, in a float graph"


def whole_quantizers(emitted: Emitted) -> Iterator[Finding]:
    """A quantizer is Div, Round, Mul, Clip, with one scale above 0, and bounds around 0 that are on its grid."""
    for clip in emitted.nodes:
        if not clip.doc_string.startswith(MARK):
            continue
        row = row_of(emitted, clip)
        if [node.op_type for node in row] != list(ROW) or row[0].input[1] != row[2].input[1]:
            yield clip.name, "in front of it are not Div, Round and Mul with one scale"
            continue
        found = [emitted.value(name) for name in (row[0].input[1], *clip.input[1:])]
        if any(value is None or value.ndim or value.dtype != np.float32 for value in found):
            yield clip.name, "scale and bounds are not float32 constants of rank 0"
            continue
        scale, low, high = (np.float32(value) for value in found)
        exact = all(np.rint(bound / scale) * scale == bound for bound in (low, high)) if scale > 0 else False
        if "activations" in emitted.target.power_of_two and not is_power(scale):
            yield clip.name, f"its scale {scale:g} is no power of two"
        if not exact or not low <= 0 <= high:
            yield clip.name, f"{low:g} .. {high:g} is no grid around 0 of the scale {scale:g}"


def row_of(emitted: Emitted, clip: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the nodes in a row that end in `clip`, as many as a quantizer has, or fewer."""
    row = [clip]
    while len(row) < len(ROW) and (made_by := emitted.makers.get(row[0].input[0])) is not None:
        row.insert(0, made_by)
    return row


RULES: Final[dict[str, Rule]] = {
    "float-operators": float_operators,
    "whole-quantizers": whole_quantizers,
    "no-unused-initializer": no_unused_initializer,
    "unique-names": unique_names,
}
