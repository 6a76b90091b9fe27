"""Programs as ONNX Runtime wants them: it makes integer kernels of what is planned, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import helper

from qcompile.backends.ort_cpu.composites import COMPOSITES
from qcompile.backends.ort_cpu.spelling import Operators, repeats, reshape_in_front, spelling
from qcompile.emission.writer import Writer
from qcompile.ir import Node, constant_value
from qcompile.program.lower import Kind, Step, Value

LARGEST = 3e38  # as a bound of a Clip that changes nothing, but is not removed as infinity would be
# Between DequantizeLinear and QuantizeLinear ONNX Runtime gives these an integer kernel, planned or not. That of
# Softmax is far off; the others are float because the plan says so.
FUSED_AT_LOAD: Final = {
    "Add",
    "Mul",
    "Concat",
    "MatMul",
    "AveragePool",
    "GlobalAveragePool",
    "LeakyRelu",
    "Sigmoid",
    "Softmax",
}
QUANTIZED_AT_LOAD: Final = {"Conv", "ConvTranspose", "Gemm"}  # by ONNX Runtime, where their weight is float


@dataclass
class OrtWriter(Writer):
    """Writes one program for ONNX Runtime; the fake form too, which always runs there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.quantized = {
            value.name for step in self.program.steps if step.kind is Kind.ENCODE for value in step.inputs
        }
        self.sources: dict[str, Value] = {}  # float tensor -> the codes it was read from
        self.products: set[str] = set()  # float32 outputs of integer kernels, and those transposed

    def decode(self, step: Step) -> None:
        """Codes -> float32; what was read from which codes is kept for those who would be fused with it."""
        self.sources[step.outputs[0].name] = step.inputs[0]
        super().decode(step)

    def arithmetic(self, step: Step) -> None:
        """An operator between DequantizeLinear and QuantizeLinear, or several in its place."""
        assert step.node is not None
        if step.node.op in COMPOSITES:
            COMPOSITES[step.node.op](self, step)
        else:
            super().arithmetic(step)

    def codes(self, step: Step) -> None:
        """An operator on codes: no float in between, nothing to fuse."""
        assert step.node is not None
        if repeated := [] if self.fake else repeats(step.node):
            self._gather(step.node, step.inputs[0].name, repeated, step.outputs[0].name)
        else:
            super().codes(step)

    def _gather(self, node: Node, codes: str, repeated: list[tuple[int | None, int]], output: str) -> None:
        """Write a Resize that repeats rows and columns, in channels-last: columns first, they are fewer then."""
        codes = self.add("Transpose", [codes], codes, perm=[0, 2, 3, 1])
        for axis in (2, 1):
            size, scale = repeated[axis - 1]
            if scale > 1:
                codes = self.add("Gather", [codes, self._places(node, codes, axis, size, scale)], codes, axis=axis)
        self.nodes.append(helper.make_node("Transpose", [codes], [output], node.name, perm=[0, 3, 1, 2]))

    def _places(self, node: Node, source: str, axis: int, size: int | None, scale: int) -> str:
        """Return the name of 0, 0, 1, 1, ...: each place of an axis `scale` times; computed where its size is open."""
        if size is not None:
            return self.constants.add(np.repeat(np.arange(size), scale), f"{node.name}_places")
        zero, one, factor = (self.constants.scalar(number, np.int64) for number in (0, 1, scale))
        length = self.add("Shape", [source], node.name, start=axis, end=axis + 1)
        length = self.add("Squeeze", [length], node.name)
        count = self.add("Mul", [length, factor], node.name)
        return self.add("Div", [self.add("Range", [zero, count, one], node.name), factor], node.name)

    def keep(self, step: Step) -> None:
        """A float operator, as it stands or in another spelling."""
        node = step.node
        assert node is not None
        inputs = self.inputs(node)
        if node.op in FUSED_AT_LOAD and any(tensor.name in self.quantized for tensor in node.outputs):
            inputs = [self._unfused(name) if name in self.sources else name for name in inputs]
        if node.op in QUANTIZED_AT_LOAD and node.inputs[0].name in self.sources:
            inputs[0] = self._guarded(node, self.sources[node.inputs[0].name])
        if operators := [] if self.fake else spelling(node, inputs, self.products, self.constants.add):
            self._row(node, inputs[0], operators)
        else:
            if node.op == "Transpose" and inputs[0] in self.products:  # ONNX Runtime moves it behind what follows
                self.products.add(node.outputs[0].name)
            self.stand(node, inputs)

    def operator(self, step: Step, inputs: list[str]) -> None:
        """Write the node of a step with these inputs, and the quantizer behind it."""
        super().operator(step, inputs)
        if step.outputs[0].quantizer is None:
            self.products.add(step.outputs[0].name)

    def in_front(self, node: Node, source: str) -> str:
        """Return `source`, behind a Reshape that changes nothing where the node must not move to channels-last."""
        shape = reshape_in_front(node)
        return self.add("Reshape", [source, self.constants.add(np.array(shape), "same")], source) if shape else source

    def _row(self, node: Node, source: str, operators: Operators) -> None:
        """Write operators in a row in the place of a float node; the last has its name."""
        for op, inputs in operators[:-1]:
            source = self.add(op, [source, *inputs], f"{node.name}")
        op, inputs = operators[-1]
        self.nodes.append(helper.make_node(op, [source, *inputs], [node.outputs[0].name], node.name))

    def _unfused(self, name: str) -> str:
        """Read a dequantized tensor through a Clip that changes nothing: ONNX Runtime does not look behind it."""
        bounds = [self.constants.add(np.float32(bound), "largest") for bound in (-LARGEST, LARGEST)]
        return self.add("Clip", [name, *bounds], name)

    def _guarded(self, node: Node, codes: Value) -> str:
        """Read codes through a scale per channel, all equal: ONNX Runtime then leaves a float weight as it is.

        From 1.22 on it rounds the float weight of an operator between DequantizeLinear and QuantizeLinear to int8 per
        tensor, but only behind a scalar scale.
        """
        weight, quantizer = constant_value(node.inputs[1]), codes.quantizer
        if weight is None or quantizer is None:
            return str(node.inputs[0].name)
        axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1 if node.attrs.get("transB", 0) else 0}[node.op]
        along = 0 if node.attrs.get("transA", 0) else 1
        channels = weight.shape[axis] * (node.attrs.get("group", 1) if node.op == "Conv" else 1)
        if channels == 1:  # one scale is a scalar to ONNX Runtime
            return self._unfused(node.inputs[0].name)
        scale = self.constants.add(np.full(channels, quantizer.scale, np.float32), f"{codes.name}_scales")
        zeros = self.constants.add(np.full(channels, quantizer.zero_point, quantizer.grid.dtype), f"{codes.name}_zeros")
        return self.add("DequantizeLinear", [codes.name, scale, zeros], codes.name, axis=along)
