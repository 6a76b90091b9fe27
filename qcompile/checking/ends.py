"""Where the output of a node goes: to a QuantizeLinear, behind what moves and clips values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import NodeProto

from qcompile.checking.graph import CARRIED, QUANTIZE, QuantizedFile
from qcompile.checking.layers import bounds_of
from qcompile.emission.emitted import attribute, type_name

CLIPS: Final = ("Relu", "Clip")


@dataclass(frozen=True)
class End:
    """Where the output of a node goes: a tensor behind what moves and clips values, one reader after the other.

    `clips` are the Relu and Clip on the way; `shared` says that what one of them reads is an output of the model too.
    `moved`: a QuantizeLinear behind is copied to where the values come from.
    """

    tensor: str
    clips: list[NodeProto]
    shared: bool
    moved: bool


def end_of(file: QuantizedFile, node: NodeProto) -> End:
    """Return where the output of a node goes."""
    name, clips, shared, moved = node.output[0], list[NodeProto](), False, False
    while len(readers := file.read(name)) == 1 and readers[0].op_type in {*CARRIED, *CLIPS}:
        clipping = readers[0].op_type in CLIPS
        shared |= clipping and name in file.outputs
        moved |= not clipping
        clips += readers if clipping else []
        name = readers[0].output[0]
    return End(name, clips, shared, moved)


def quantizes(file: QuantizedFile, reader: NodeProto) -> bool:
    """Say whether a reader is a QuantizeLinear, or a Relu or Clip that the one behind it makes superfluous."""
    if reader.op_type not in CLIPS:
        return reader.op_type == QUANTIZE
    behind = [item for item in file.read(end_of(file, reader).tensor) if item.op_type == QUANTIZE]
    return bool(behind) and absorbs(file, behind[0], reader)


def read_inside(file: QuantizedFile, node: NodeProto) -> bool:
    """Say whether other nodes alone read the output of a node: it is no output of the model."""
    return node.output[0] not in file.outputs and bool(file.read(node.output[0]))


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
