"""The integer reference: a program interpreted with exact integer arithmetic. Its codes are those of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from qcompile.backends.ort_cpu import kernels
from qcompile.backends.ort_cpu.elementwise import add, multiply
from qcompile.backends.ort_cpu.slopes import SHIFTED_SIGMOID, slope_codes, slope_quantizer
from qcompile.ir import Constant, Graph, Node, Tensor, node_proto
from qcompile.program.lower import Kind, Program, Step, Value
from qcompile.program.operands import CLIPS, clip_bounds, operands, weight_axis
from qcompile.quant.arithmetic import dequantize, quantize
from qcompile.quant.bias import integer_bias
from qcompile.quant.params import Quantizer
from qcompile.quant.plan import Form, Plan
from qcompile.runtime.session import Session
from qcompile.targets.ort_cpu.forms import BYTES, HARD_SIGMOID

Array = NDArray[Any]


@dataclass
class IntegerReference:
    """Interprets one program. Float operators, and movers of codes, run in ONNX Runtime one by one."""

    graph: Graph
    plan: Plan
    program: Program
    sessions: dict[tuple[str, str], Session] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors: dict[str, Tensor] = self.graph.tensors()

    def run(self, feeds: Mapping[str, Array], given: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return every value of the program by name: codes in their container, float values as float32.

        `given` replaces values as soon as they are made (fed the file's own codes, each layer is compared alone); the
        returned values are always the reference's own.
        """
        given, values = given or {}, dict(feeds)
        results: dict[str, Array] = {}
        for step in self.program.steps:
            made = STEPS[step.action](self, step, values)
            for value, array in zip(step.outputs, made):
                results[value.name] = array
                values[value.name] = given.get(value.name, array)
        return results

    def _encode(self, step: Step, values: dict[str, Array]) -> list[Array]:
        (source,), (target,) = step.inputs, step.outputs
        assert target.quantizer is not None
        return [quantize(self._float(source, values), target.quantizer)]

    def _decode(self, step: Step, values: dict[str, Array]) -> list[Array]:
        return [self._float(step.inputs[0], values)]

    def _float(self, value: Value, values: dict[str, Array]) -> Array:
        """Return a value as float32, whether it is codes, a float tensor or a constant."""
        if value.quantizer is not None:
            return dequantize(values[value.name], value.quantizer)
        if value.name in values:
            return values[value.name]
        return np.asarray(self.tensors[value.name].values)

    def _compute(self, step: Step, values: dict[str, Array]) -> list[Array]:
        node, data, target = step.node, step.inputs[0], step.outputs[0].quantizer
        assert node is not None and data.quantizer is not None
        x = kernels.centred(values[data.name], data.quantizer)
        weight = self.plan.weights.get(node.name)
        scale: Array
        if weight is not None:
            other = weight.integers().astype(np.float64)
            scale = np.float32(data.quantizer.scale) * weight.scale
        else:
            right = step.inputs[1]
            assert right.quantizer is not None
            other = kernels.centred(values[right.name], right.quantizer)
            scale = np.float32(data.quantizer.scale) * np.asarray([right.quantizer.scale], np.float32)
        if node.op == "Conv":
            accumulator = kernels.convolve(x, other, node.attrs)
        else:
            turned = node.op == "Gemm" and weight is not None and weight_axis(node) == 0
            accumulator = x @ (other.T if turned else other)
        along = [1] * accumulator.ndim
        along[1 if node.op == "Conv" else -1] = -1
        bias = self.plan.biases.get(node.name)
        if bias is not None and weight is not None:
            codes, _ = integer_bias(bias, data.quantizer.scale, weight.scale)
            accumulator = accumulator + codes.reshape(along)
        scale = scale.reshape(along)
        if target is None:
            return [accumulator.astype(np.float32) * scale]
        return [target.grid.clip(kernels.requantize(accumulator, scale, target))]

    def _arithmetic(self, step: Step, values: dict[str, Array]) -> list[Array]:
        node, target = step.node, step.outputs[0].quantizer
        assert node is not None and target is not None
        codes = [(self._codes(value, values), value.quantizer) for value in step.inputs]
        if node.op in ("Add", "Mul"):
            (a, qa), (b, qb) = codes
            assert qa is not None and qb is not None
            return [target.grid.clip((add if node.op == "Add" else multiply)(a, qa, b, qb, target))]
        if node.op in ("HardSigmoid", "HardSwish"):
            x, quantizer = codes[0]
            assert quantizer is not None
            slope = slope_quantizer(node, quantizer)
            gate = BYTES.clip(multiply(x, quantizer, np.ones((), BYTES.dtype), slope, SHIFTED_SIGMOID))
            if node.op == "HardSigmoid":
                return [gate]
            return [target.grid.clip(multiply(x, quantizer, gate, HARD_SIGMOID, target))]
        if node.op == "PRelu":
            return [target.grid.clip(self._prelu(node, *codes[0], target))]
        if node.op == "GlobalAveragePool":
            assert codes[0][1] is not None
            return [target.grid.clip(kernels.global_average_pool(*codes[0], target))]  # type: ignore[arg-type]
        if node.op == "AveragePool":  # sums in float, then adds the zero point before rounding
            mean = self._alone(node, "f", [self._float(step.inputs[0], values)])[0]
            return [target.grid.clip(np.rint(mean / np.float32(target.scale) + target.zero_point))]
        floats = [self._float(value, values) for value in step.inputs]
        return [quantize(self._alone(node, "f", floats)[0], target)]

    def _prelu(self, node: Node, x: Array, quantizer: Quantizer | None, target: Quantizer) -> Array:
        assert quantizer is not None
        above, below = np.maximum(x, quantizer.zero_point), np.minimum(x, quantizer.zero_point)
        scaled = BYTES.clip(multiply(below, quantizer, *slope_codes(node), target))
        return add(above, quantizer, scaled, target, target)

    def _codes(self, value: Value, values: dict[str, Array]) -> Array:
        return values[value.name]

    def _move(self, step: Step, values: dict[str, Array]) -> list[Array]:
        node, source = step.node, step.inputs[0]
        assert node is not None and source.quantizer is not None
        if node.op in CLIPS:
            bounds = clip_bounds(node)
            low, high = quantize(np.array(bounds, np.float32), source.quantizer)
            return [np.clip(values[source.name], low, high)]
        constants: dict[int, Array] = {}
        if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
            constants[2] = np.array(source.quantizer.zero_point, source.quantizer.grid.dtype)
        return self._alone(node, "codes", [values[value.name] for value in step.inputs], values, constants)

    def _run_float(self, step: Step, values: dict[str, Array]) -> list[Array]:
        assert step.node is not None
        inputs = [self._float(Value(tensor.name), values) if tensor.name else None for tensor in step.node.inputs]
        captured = {value.name: values[value.name] for value in step.inputs if value.name in values}
        return self._session(step.node, "float", inputs, captured)

    def _alone(
        self,
        node: Node,
        kind: str,
        data: list[Array],
        values: Mapping[str, Array] | None = None,
        constants: dict[int, Array] | None = None,
    ) -> list[Array]:
        """Run `node` on `data` in place of its operands."""
        inputs: list[Array | None] = [*data]
        for tensor in node.inputs[len(operands(node)) :]:
            known = isinstance(tensor, Constant) or (tensor.name and tensor.name in (values or {}))
            inputs.append(self._float(Value(tensor.name), dict(values or {})) if known else None)
        for position, array in (constants or {}).items():
            inputs[position : position + 1] = [array]
        return self._session(node, kind, inputs, {})

    def _session(self, node: Node, kind: str, inputs: list[Array | None], captured: dict[str, Array]) -> list[Array]:
        names = [f"in{k}" if array is not None else "" for k, array in enumerate(inputs)]
        given = {name: array for name, array in zip(names, inputs) if array is not None} | captured
        feeds = {name: np.asarray(array) for name, array in given.items()}  # a scalar is no array
        outputs = [f"out{k}" for k in range(len(node.outputs))]
        key = (node.name, kind)
        if key not in self.sessions:
            proto = node_proto(node, names, outputs)
            infos = [  # sizes and the like keep their length, which some operators must know; data may change its shape
                helper.make_tensor_value_info(
                    name,
                    helper.np_dtype_to_tensor_dtype(array.dtype),
                    list(array.shape) if array.dtype == np.int64 else [None] * array.ndim,
                )
                for name, array in feeds.items()
            ]
            graph = helper.make_graph([proto], "one", infos, [onnx.ValueInfoProto(name=name) for name in outputs])
            domains = {entry.domain: entry.version for entry in self.graph.import_domains or []}
            domains[""] = self.graph.opset
            imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
            self.sessions[key] = Session(helper.make_model(graph, opset_imports=imports, ir_version=8))
        made = self.sessions[key].run(feeds, outputs)
        return [made[name] for name in outputs]


STEPS: dict[Kind | Form, Callable[[IntegerReference, Step, dict[str, Array]], list[Array]]] = {
    Kind.ENCODE: IntegerReference._encode,
    Kind.RECODE: IntegerReference._encode,
    Kind.DECODE: IntegerReference._decode,
    Form.COMPUTE: IntegerReference._compute,
    Form.ARITHMETIC: IntegerReference._arithmetic,
    Form.CODES: IntegerReference._move,
    Form.FLOAT: IntegerReference._run_float,
}
