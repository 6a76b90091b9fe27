"""A quantized ONNX file of any origin, as rules look at it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from qcompile.emission.emitted import Emitted, attribute
from qcompile.errors import InputError, QCompileError
from qcompile.ir.functions import inline
from qcompile.ir.load import QUANTIZED, read_any
from qcompile.ir.protos import all_nodes
from qcompile.runtime.unpack import behind, made_by
from qcompile.targets.schema import Target

DEQUANTIZE: Final = "DequantizeLinear"
QUANTIZE: Final = "QuantizeLinear"
WITH_SCALE: Final = 7  # inputs of a QGemm that gives float; with more, it gives codes
BIT_OPERATORS: Final = ("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")
# what ONNX Runtime moves Q and DQ across, or drops: a node before or behind it is quantized as if it were not there
CARRIED: Final = frozenset(["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Identity", "Dropout"])


def read_quantized(path: Path) -> QuantizedFile:
    """Read a quantized file; raises InputError where it is no ONNX model, or nothing in it is quantized."""
    model = inline(read_any(path))
    if not any(is_quantized(node) for node in all_nodes(model.graph.node)):
        remedy = "give a quantized file; qcompile IN.onnx -o OUT.onnx --data FROM makes one"
        raise InputError("nothing in it is quantized", where=str(path), remedy=remedy)
    name_nodes(model)
    return QuantizedFile(model)


def is_quantized(node: NodeProto) -> bool:
    """Say whether a node quantizes, or works on codes."""
    return node.op_type in QUANTIZED or node.op_type.startswith("QLinear")


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own: rules and runtimes speak of nodes by name. Good names stay."""
    count = Counter(node.name for node in model.graph.node)
    taken = set(count)
    for node in model.graph.node:
        if node.name and count[node.name] == 1:
            continue
        stem = node.name or next((name for name in node.output if name), node.op_type)
        names = (stem if not tail else f"{stem}_{tail}" for tail in range(len(model.graph.node) + 1))
        node.name = next(name for name in names if name not in taken)
        taken.add(node.name)


class QuantizedFile(Emitted):
    """A model with what rules ask of it, whoever wrote it. Every node has a name of its own."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self._made: dict[str, NDArray[Any] | None] = {}
        super().__init__(model, Target.load("ort-cpu"))

    def value(self, name: str) -> NDArray[Any] | None:
        """Return the array of a constant; what nodes make of constants, ONNX Runtime computes. None if it cannot."""
        if name not in self.constants or name in self.initializers:
            return super().value(name)
        if name not in self._made:
            self._made[name] = self._computed(name)
        return self._made[name]

    def integers(self, name: str) -> NDArray[np.int64] | None:
        """Return the codes of a constant tensor as int64, or None."""
        values = self.value(name)
        return None if values is None else values.astype(np.int64)

    def before(self, name: str) -> NodeProto | None:
        """Return the node that makes `name`, in front of what only moves values."""
        node = self.makers.get(name)
        while node is not None and node.op_type in CARRIED and node.input:
            node = self.makers.get(node.input[0])
        return node

    def read(self, name: str) -> list[NodeProto]:
        """Return the nodes that read a tensor."""
        return self.readers.get(name, [])

    def _computed(self, name: str) -> NDArray[Any] | None:
        makers = {output: node for output, node in self.makers.items() if output in self.constants}
        try:
            return made_by(self.model, behind(name, makers), name)
        except QCompileError:  # a type that numpy lacks, an operator of a library that is not here
            return None

    def _kinds(self, node: NodeProto) -> dict[str, int]:
        scale = {node.output[1]: TensorProto.FLOAT} if node.op_type == "DynamicQuantizeLinear" else {}
        return super()._kinds(node) | scale

    def _kind(self, node: NodeProto) -> int:
        if node.op_type == QUANTIZE and len(node.input) < 3 and (kind := attribute(node, "output_dtype", 0)):
            return int(kind)
        if node.op_type == "DynamicQuantizeLinear":
            return TensorProto.UINT8
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            return TensorProto.INT32
        if node.op_type.startswith("QLinear") or (node.op_type == "QGemm" and len(node.input) > WITH_SCALE):
            return self.kinds.get(node.input[1 if node.op_type == "QLinearConcat" else 0], TensorProto.UNDEFINED)
        return super()._kind(node)
