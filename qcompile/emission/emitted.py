"""An emitted file as its target's rules look at it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcompile.ir.store import values_of
from qcompile.program.operands import operand_count
from qcompile.targets.schema import Target

CODES: Final = (TensorProto.UINT8, TensorProto.INT8)
KEEP_TYPE: Final = frozenset(
    [
        *("Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "ReduceMax"),
        *("Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("Add", "BitShift", "BitwiseAnd", "BitwiseOr", "Mul", "Sub"),  # take packed weights apart
    ]
)  # operators whose outputs have the type of their first input, of those that meet codes or packed weights


@dataclass(frozen=True)
class Violation:
    """A broken rule: its name in `RULES`, the node (or tensor) it was found at, and what is wrong there."""

    rule: str
    node: str
    detail: str

    def __str__(self) -> str:
        return f"{self.node}: {self.detail} [{self.rule}]"


Finding = tuple[str, str]  # node name, detail


class Emitted:
    """An emitted model with what the rules ask of it: who makes and reads a tensor, constants, element types.

    `integer` are the nodes that are held to the rules of integer kernels: compute nodes between DequantizeLinear and
    with a quantized weight always, and those named in `planned`.
    """

    def __init__(self, model: onnx.ModelProto, target: Target, planned: Collection[str] = ()) -> None:
        graph, self.target = model.graph, target
        self.nodes = list(graph.node)
        self.outputs = {output.name for output in graph.output}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys([*node.input, *captured(node)]):
                self.readers.setdefault(name, []).append(node)
        self.constants: set[str] = set(self.initializers)
        self.kinds: dict[str, int] = {name: tensor.data_type for name, tensor in self.initializers.items()}
        self.kinds |= {item.name: item.type.tensor_type.elem_type for item in graph.input}
        for node in self.nodes:
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)
            self.kinds.update(self._kinds(node))
        self.integer = [node for node in self.nodes if node.name in planned or self._quantized_compute(node)]

    def maker(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """Return the node that makes tensor `name` if it is an `op_type`."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == op_type else None

    def value(self, name: str) -> NDArray[Any] | None:
        """Return the array of an initializer or a Constant node."""
        if name in self.initializers:
            return values_of(self.initializers[name])
        node = self.maker(name, "Constant")
        tensors = [item.t for item in node.attribute if item.name == "value"] if node is not None else []
        return values_of(tensors[0]) if tensors else None

    def parameters(self, node: onnx.NodeProto) -> tuple[NDArray[Any] | None, NDArray[Any]]:
        """Return scale and zero point of a QuantizeLinear or DequantizeLinear; an absent zero point is 0."""
        zero_point = self.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return self.value(node.input[1]), np.zeros((), np.uint8) if zero_point is None else zero_point

    def operands(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of `node` that carry data."""
        return list(node.input[: operand_count(node.op_type, len(node.input))])

    def weight(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the DequantizeLinear of a compute node's constant weight."""
        dequantize = self.maker(node.input[1], "DequantizeLinear") if node.op_type in self.target.compute else None
        return dequantize if dequantize is not None and dequantize.input[0] in self.constants else None

    def on_codes(self) -> set[str]:
        """Return the names of the nodes that read codes themselves: they need no fusion."""
        movers = (node for node in self.nodes if node.op_type != "DequantizeLinear" and node.input)
        return {node.name for node in movers if self.kinds.get(node.input[0]) in CODES}

    def _quantized_compute(self, node: onnx.NodeProto) -> bool:
        return self.weight(node) is not None and self.maker(node.input[0], "DequantizeLinear") is not None

    def _kinds(self, node: onnx.NodeProto) -> dict[str, int]:
        return dict.fromkeys(node.output, self._kind(node))

    def _kind(self, node: onnx.NodeProto) -> int:
        if node.op_type == "QuantizeLinear":
            return self.kinds.get(node.input[2], TensorProto.UINT8) if len(node.input) > 2 else TensorProto.UINT8
        if node.op_type == "DequantizeLinear":
            return self.kinds.get(node.input[1], TensorProto.FLOAT)
        if node.op_type == "Cast":
            return int(attribute(node, "to", TensorProto.UNDEFINED))
        if node.op_type == "Constant":
            return next((item.t.data_type for item in node.attribute if item.name == "value"), TensorProto.UNDEFINED)
        known = node.op_type in KEEP_TYPE and bool(node.input)
        return self.kinds.get(node.input[0], TensorProto.UNDEFINED) if known else TensorProto.UNDEFINED


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every name that the subgraphs of `node` read."""
    for item in node.attribute:
        for graph in [item.g] if item.type == onnx.AttributeProto.GRAPH else item.graphs:
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from captured(inner)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return the value of an attribute."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def same_parameters(emitted: Emitted, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Say whether two Q/DQ nodes have equal constant scales and zero points."""
    pairs = zip(emitted.parameters(one), emitted.parameters(other))
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)


def type_name(kind: int) -> str:
    """Return the name of an element type."""
    return str(TensorProto.DataType.Name(kind)).lower()


Rule = Callable[[Emitted], Iterator[Finding]]
