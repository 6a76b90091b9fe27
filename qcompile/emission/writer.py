"""Write a program as an ONNX file: QuantizeLinear, integer Clip, DequantizeLinear around the float operators.

Runtimes turn DequantizeLinear -> operator -> QuantizeLinear into an integer kernel when they load the file. What one of
them wants written otherwise is its backend's: a subclass of `Writer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcompile.emission import pack
from qcompile.emission.constants import Constants, content_key
from qcompile.ir import (
    Constant,
    Graph,
    Node,
    Tensor,
    node_proto,
    restore_types,
    unique_name,
    value_info,
)
from qcompile.ir.protos import all_nodes
from qcompile.ir.store import Store
from qcompile.program.lower import Kind, Program, Step, Value
from qcompile.program.operands import CLIPS, clip_bounds, float_bias, operands
from qcompile.quant.arithmetic import ends, fake_quantize, quantize
from qcompile.quant.bias import integer_bias
from qcompile.quant.grid import WEIGHTS, Grid
from qcompile.quant.params import Quantizer, WeightQuantizer
from qcompile.quant.plan import Form, Plan

ANY = (-np.inf, np.inf)
WIDEST_IR = 8  # what ONNX Runtime 1.19 and everything later reads


@dataclass
class Writer:
    """Writes one program. `packing` are forms of weights in the order tried, `biases` "int32" or "float32".

    `movement`: what moves codes stands on them ("codes") or "behind-dq". `around_0`: codes are written less their zero
    point where int8 holds them. `fake` keeps weights and biases in float. Large constants go to `store`, if there is
    one.

    The fake form is the float simulation: the same nodes around float weights, to be run without Q/DQ fusion.
    """

    graph: Graph
    plan: Plan
    program: Program
    packing: tuple[str, ...] = ("planes",)
    biases: str = "int32"
    movement: str = "codes"
    around_0: bool = False
    fake: bool = False
    store: Store | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensors: dict[str, Tensor] = self.graph.tensors()
        codes = {value.name for step in self.program.steps for value in step.outputs}
        kept = {name for name, tensor in self.tensors.items() if not isinstance(tensor, Constant)}
        kept |= {tensor.name for tensor in self.graph.outputs}
        self.constants = Constants(kept | codes, self.store)
        self.names = {node.name for node in self.graph.nodes}
        self.dequantized: dict[str, str] = {}  # codes -> their float reading for integer kernels
        self.bounds: dict[str, tuple[float, float]] = {}  # floats behind a clip -> where they end
        self.uncoded: set[str] = set()  # codes that only their float reading stands for
        self.weights: dict[tuple[Any, ...], str] = {}  # what defines a weight -> its float reading
        self.opset = self.graph.opset
        self.writers: dict[Kind | Form, Callable[[Step], None]] = {
            Kind.ENCODE: self.encode,
            Kind.RECODE: self.encode,
            Kind.DECODE: self.decode,
            Form.COMPUTE: self.compute,
            Form.ARITHMETIC: self.arithmetic,
            Form.CODES: self.codes,
            Form.FLOAT: self.keep,
        }

    def model(self) -> onnx.ModelProto:
        """Return the whole program as a model with the graph's own inputs and outputs."""
        for tensor in self.graph.outputs:
            if isinstance(tensor, Constant):  # equal constants share a name, an output needs its own
                value = self.constants.add(np.asarray(tensor.values), f"{tensor.name}_value")
                self.nodes.append(helper.make_node("Identity", [value], [tensor.name], self.name(tensor.name)))
        inputs = [value_info(tensor) for tensor in self.graph.inputs]
        return self.fragment(inputs, [value_info(tensor) for tensor in self.graph.outputs])

    def fragment(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the program's steps as a model with other inputs and outputs."""
        for step in self.program.steps:
            self.writers[step.action](step)
        self._drop_unread({output.name for output in outputs})
        graph = helper.make_graph(self.nodes, self.graph.name or "graph", inputs, outputs, self.constants.protos)
        restore_types(graph, self.graph)
        domains = {entry.domain: entry.version for entry in self.graph.import_domains or []} | {"": self.opset}
        imports = [helper.make_opsetid(domain, version) for domain, version in domains.items() if domain != "ai.onnx"]
        ir_version = max(WIDEST_IR, helper.find_min_ir_version_for(imports, ignore_unknown=True))
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="qcompile")

    def _drop_unread(self, outputs: set[str]) -> None:
        """Drop a DequantizeLinear whose only reader took another way to the codes, and constants of other spellings."""
        read = outputs | {name for node in all_nodes(self.nodes) for name in node.input}
        self.nodes = [node for node in self.nodes if node.op_type != "DequantizeLinear" or node.output[0] in read]
        read = outputs | {name for node in all_nodes(self.nodes) for name in node.input}
        self.constants.keep(read)

    # one method per action of a step

    def encode(self, step: Step) -> None:
        """Float32 or codes -> codes; a constant becomes an initializer of codes."""
        (source,), (target,) = step.inputs, step.outputs
        tensor = self.tensors.get(source.name)
        if isinstance(tensor, Constant) and target.quantizer is not None:
            name = self.constants.put(quantize(tensor.values, self.written(target.quantizer)), target.name)
            self.dequantized[target.name] = self.reading(name, target.quantizer, f"{target.name}_dq")
            return
        self.codes_of(self.clipped(step, self.float_of(source)), target)

    def decode(self, step: Step) -> None:
        """Codes -> float32 for readers that are float, and for outputs of the graph."""
        (source,), (target,) = step.inputs, step.outputs
        assert source.quantizer is not None
        if source.name in self.uncoded:
            self.add("Identity", [self.float_of(source)], target.name, output=target.name)
        else:
            self.reading(source.name, source.quantizer, target.name)

    def compute(self, step: Step) -> None:
        """Conv, Gemm or MatMul between DequantizeLinear and QuantizeLinear, integer weight, int32 bias."""
        assert step.node is not None
        inputs = [self.float_of(value) for value in step.inputs]
        weight = self.plan.weights.get(step.node.name)
        if weight is not None:
            inputs.append(self._weight(step.node, weight))
            inputs += self.bias(step.node, step.inputs[0], weight)
        self.operator(step, inputs)

    def arithmetic(self, step: Step) -> None:
        """An operator between DequantizeLinear and QuantizeLinear."""
        assert step.node is not None
        self.operator(step, [self.float_of(value) for value in step.inputs] + self.rest(step.node))

    def codes(self, step: Step) -> None:
        """An operator on codes: no float in between, nothing to fuse."""
        node, source = step.node, step.inputs[0]
        assert node is not None and source.quantizer is not None
        if self.movement == "behind-dq":
            self._move_floats(step, node, source.quantizer)
            return
        outputs = [value.name for value in step.outputs]
        if node.op in CLIPS and (bounds := clip_bounds(node)):
            low, high = map(int, quantize(np.array(bounds, np.float32), source.quantizer))
            grid = replace(source.quantizer.grid, low=low, high=high)
            self.nodes.append(self.clip(source.name, grid, outputs[0], node.name))
            return
        if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
            zero = self.constants.scalar(source.quantizer.zero_point, source.quantizer.grid.dtype)
            rest = [self._input(node.inputs[1]), zero, *map(self._input, node.inputs[3:])]  # not the float 0
        else:
            rest = self.rest(node)
        others = [value.name for value in step.inputs[1:]]
        self.nodes.append(node_proto(node, [self.in_front(node, source.name), *others, *rest], outputs))

    def _move_floats(self, step: Step, node: Node, quantizer: Quantizer) -> None:
        """Write what moves or clips codes on their float reading; a clip ends where the grid has a value."""
        outputs = [self.constants.unique(f"{value.name}_dq") for value in step.outputs]
        data, rest = [self.float_of(value) for value in step.inputs], self.rest(node)
        if node.op in CLIPS and (bounds := clip_bounds(node)):
            low, high = fake_quantize(np.array(bounds, np.float32), quantizer)
            rest = self.stored((low, high), outputs[0])
            self.nodes.append(helper.make_node("Clip", [*data, *rest], outputs, node.name))
        else:
            self.nodes.append(node_proto(node, [*data, *rest], outputs))
        self.dequantized |= {value.name: output for value, output in zip(step.outputs, outputs)}
        self.uncoded |= {value.name for value in step.outputs}

    def keep(self, step: Step) -> None:
        """A float operator, as it stands."""
        assert step.node is not None
        self.stand(step.node, self.inputs(step.node))

    def stand(self, node: Node, inputs: list[str]) -> None:
        """Write a float node as it stands, with other inputs."""
        inputs = [self.in_front(node, name) for name in inputs[:1]] + inputs[1:]
        self.nodes.append(node_proto(node, inputs, [tensor.name for tensor in node.outputs]))

    def in_front(self, node: Node, source: str) -> str:
        """Return what `node`, which moves codes or is float, reads in the place of `source`: that itself."""
        return source

    # the pieces they share

    def operator(self, step: Step, inputs: list[str]) -> None:
        """Write the node of a step with these inputs, and the quantizer behind it."""
        (target,), node = step.outputs, step.node
        assert node is not None
        output = self.constants.unique(f"{target.name}_f") if target.quantizer else target.name
        self.nodes.append(node_proto(node, inputs, [output]))
        if target.quantizer:
            self.codes_of(self.clipped(step, output), target)

    def clipped(self, step: Step, source: str) -> str:
        """Write the clips that a quantizer around 0 stands for, so that they fuse with the layer; return the result."""
        key = step.outputs[0].key
        if self.fake or key is None or not self.plan.specs[key].symmetric:
            return source
        for clip in step.clips:
            result = self.constants.unique(f"{clip.outputs[0].name}_f")
            self.nodes.append(node_proto(clip, [source, *map(self._input, clip.inputs[1:])], [result]))
            (least, most), (lower, upper) = self.bounds.get(source, ANY), clip_bounds(clip) or ANY
            self.bounds[result] = max(least, lower), min(most, upper)
            source = result
        return source

    def codes_of(self, source: str, target: Value) -> None:
        """Write QuantizeLinear, and the Clip of a narrow grid, that make the codes of `target` from a float tensor."""
        assert target.quantizer is not None
        quantizer, codes = self.written(target.quantizer), target.name
        grid = quantizer.grid
        narrow = grid.is_narrow and not self._stays_within(source, quantizer)
        if narrow and self.movement == "behind-dq":
            source, narrow = self._to_ends(source, quantizer, target.name), False
        if narrow:
            codes = self.constants.unique(f"{target.name}_{grid.dtype.kind}{8 * grid.dtype.itemsize}")
        parameters = self.parameters(quantizer, target.name)
        self.nodes.append(
            helper.make_node("QuantizeLinear", [source, *parameters], [codes], self.name(f"{target.name}/Q"))
        )
        if narrow:
            self.nodes.append(self.clip(codes, grid, target.name, self.name(f"{target.name}/Clip")))

    def _to_ends(self, source: str, quantizer: Quantizer, stem: str) -> str:
        """Write a Clip of floats to the values that a grid ends with; return the result."""
        return self.add("Clip", [source, *self.stored(ends(quantizer), stem)], stem)

    def stored(self, bounds: tuple[np.float32, np.float32], stem: str) -> list[str]:
        """Store the bounds of a Clip of floats; return their names."""
        names = (f"{stem}_low", f"{stem}_high")
        return [self.constants.add(bound, name if bound else "float_0") for bound, name in zip(bounds, names)]

    def _stays_within(self, source: str, quantizer: Quantizer) -> bool:
        """Say whether QuantizeLinear alone makes codes of the grid: the values end before, or the container does."""
        whole = replace(quantizer, grid=quantizer.grid.whole)
        first, last = quantize(np.array(self.bounds.get(source, ANY), np.float32), whole)
        return bool(quantizer.grid.low <= first and last <= quantizer.grid.high)

    def float_of(self, value: Value) -> str:
        """Return the float32 reading of codes, one DequantizeLinear for all integer kernels; floats are their own."""
        if value.quantizer is None:
            return value.name
        if value.name not in self.dequantized:
            name = self.constants.unique(f"{value.name}_dq")
            self.dequantized[value.name] = self.reading(value.name, value.quantizer, name)
        return self.dequantized[value.name]

    def reading(self, source: str, quantizer: Quantizer, output: str) -> str:
        """Write a DequantizeLinear of codes; return its output, `output`."""
        parameters = self.parameters(self.written(quantizer), source)
        self.nodes.append(
            helper.make_node("DequantizeLinear", [source, *parameters], [output], self.name(f"{output}/DQ"))
        )
        return output

    def written(self, quantizer: Quantizer) -> Quantizer:
        """Return the quantizer with the codes that the file has: of the same values."""
        grid, zero = quantizer.grid, quantizer.zero_point
        moved = Quantizer(Grid(grid.low - zero, grid.high - zero, "int8"), quantizer.scale, 0)
        return moved if self.around_0 and zero and moved.grid.is_held else quantizer

    def parameters(self, quantizer: Quantizer, stem: str) -> list[str]:
        """Return the names of scale and zero point."""
        scale = self.constants.add(np.float32(quantizer.scale), f"{stem}_scale")
        return [scale, self.constants.scalar(quantizer.zero_point, quantizer.grid.dtype)]

    def clip(self, source: str, grid: Grid, output: str, name: str) -> onnx.NodeProto:
        """Return a Clip of codes to `grid`."""
        bounds = [self.constants.scalar(bound, grid.dtype) for bound in (grid.low, grid.high)]
        return helper.make_node("Clip", [source, *bounds], [output], name)

    def _weight(self, node: Node, weight: WeightQuantizer) -> str:
        stem = node.inputs[1].name
        if self.fake:
            return self.constants.add(weight.dequantize(), stem)
        alone = not self.plan.nodes[node.name].reads_codes
        key = (weight.axis, content_key(weight.integers()), weight.scale.tobytes(), weight.spec, alone)
        if key not in self.weights:
            values, along = along_channels(weight, weight.scale, weight.axis)
            scale = self.constants.add(values, f"{stem}_scale")
            if alone and self._takes_int4(weight):
                inputs = [self.constants.proto(pack.int4_initializer(weight.integers(), f"{stem}_int4")), scale]
            else:
                # a Gemm without zero points stays float; shared ones bar the file from session.x64quantprecision
                zeros = self.constants.own(np.zeros(values.shape, WEIGHTS.dtype), f"{stem}_zeros")
                inputs = [self._integers(weight, stem), scale, zeros]
            output = self.constants.unique(f"{stem}_dq")
            self.weights[key] = self.add("DequantizeLinear", inputs, output, output=output, **along)
        return self.weights[key]

    def _takes_int4(self, weight: WeightQuantizer) -> bool:
        return "int4" in self.packing and self.opset >= pack.INT4_OPSET and pack.fits_int4(weight)

    def _integers(self, weight: WeightQuantizer, stem: str) -> str:
        if self._takes_int4(weight):
            nibbles = self.constants.proto(pack.int4_initializer(weight.integers(), f"{stem}_int4"))
            return self.add("Cast", [nibbles], stem, to=TensorProto.INT8)
        if "planes" in self.packing and pack.worth_packing(weight):
            return pack.unpack_planes(weight, stem, self.constants, self.add)
        return self.constants.own(weight.integers(), f"{stem}_{WEIGHTS.container}")

    def bias(self, node: Node, data: Value, weight: WeightQuantizer) -> list[str]:
        """Return the float reading of a layer's bias, or nothing where it has none."""
        bias = self.plan.biases.get(node.name)
        if bias is None:
            return []
        stem = bias_name(node)
        if self.biases == "float32" or data.quantizer is None:
            return [self.constants.add(bias, stem)]
        codes, scale = integer_bias(bias, data.quantizer.scale, weight.scale)
        if self.fake:
            return [self.constants.add(codes.astype(np.float32) * scale, stem)]
        scale, along = along_channels(weight, scale, 0)
        inputs = [self.constants.add(codes, f"{stem}_int32"), self.constants.add(scale, f"{stem}_scale")]
        output = self.constants.unique(f"{stem}_dq")
        return [self.add("DequantizeLinear", inputs, output, output=output, **along)]

    def rest(self, node: Node) -> list[str]:
        """Return the inputs behind the operands: shapes, indices, bounds."""
        return [self._input(tensor) for tensor in node.inputs[len(operands(node)) :]]

    def inputs(self, node: Node) -> list[str]:
        """Return the names of all inputs of a float node; constants are stored."""
        return [self._input(tensor) for tensor in node.inputs]

    def _input(self, tensor: Tensor) -> str:
        if not isinstance(tensor, Constant):
            return str(tensor.name)
        return self.constants.add(np.asarray(tensor.values), str(tensor.name))

    def add(self, op: str, inputs: list[str], stem: str, *, output: str = "", **attributes: Any) -> str:
        """Write one more node, with names made of `stem`; return its output."""
        output = output or self.constants.unique(f"{stem}_u")
        self.nodes.append(helper.make_node(op, inputs, [output], self.name(f"{stem}/{op}"), **attributes))
        return output

    def name(self, stem: str) -> str:
        """Return a node name of its own."""
        return unique_name(stem, self.names)


def along_channels(weight: WeightQuantizer, scale: NDArray[np.float32], axis: int) -> tuple[Any, dict[str, int]]:
    """Return scales as a DequantizeLinear reads them, a scalar where there is one for all, and its attributes."""
    if weight.spec.block:
        return scale.reshape(weight.shared_shape), {"axis": 1 - axis, "block_size": weight.spec.block}
    return (scale[0], {}) if weight.spec.per_tensor else (scale, {"axis": axis})


def bias_name(node: Node) -> str:
    """Return the name of a layer's bias: that of the model's own, or one for a bias that it did not have."""
    return str(node.inputs[2].name) if float_bias(node) is not None else f"{node.name}_bias"
