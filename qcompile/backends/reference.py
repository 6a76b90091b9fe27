"""A program interpreted with exact sums of integers, each rounded once: half to even, as QuantizeLinear does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from qcompile.backends.sums import centred, convolve
from qcompile.ir import Constant, Graph, Node, Tensor, node_proto
from qcompile.program.lower import Kind, Program, Step, Value
from qcompile.program.operands import CLIPS, clip_bounds, operands, weight_axis
from qcompile.quant.arithmetic import dequantize, quantize
from qcompile.quant.bias import integer_bias
from qcompile.quant.plan import Form, Plan
from qcompile.runtime.session import Session

Array = NDArray[Any]


@dataclass
class Reference:
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
            made = getattr(self, STEPS[step.action])(step, values)
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
        """The sum of a layer, exact, with its bias: scaled, rounded once, half to even."""
        node, target = step.node, step.outputs[0].quantizer
        assert node is not None
        if step.inputs[0].quantizer is None:
            return self._on_floats(step, values)
        sums = self.sums(step, values)
        real = sums * along(node, self.scales(step, np.float64), sums.ndim)
        if (bias := self.plan.biases.get(node.name)) is not None:
            real = real + along(node, self._bias(step, bias), sums.ndim)
        if target is None:
            return [real.astype(np.float32)]
        return [target.grid.clip(np.rint(real / target.scale) + target.zero_point)]

    def _on_floats(self, step: Step, values: dict[str, Array]) -> list[Array]:
        """A layer whose weight alone has codes, in float32."""
        assert step.node is not None
        name, data = step.node.name, [self._float(value, values) for value in step.inputs]
        bias = [self.plan.biases[name]] if name in self.plan.biases else []
        return self._session(step.node, "floats", [*data, self.plan.weights[name].dequantize(), *bias], {})

    def sums(self, step: Step, values: dict[str, Array]) -> Array:
        """Return the sum of products of codes of a layer, without its bias."""
        node, data = step.node, step.inputs[0]
        assert node is not None and data.quantizer is not None
        x, weight = centred(values[data.name], data.quantizer), self.plan.weights.get(node.name)
        if weight is not None:
            other: Array = weight.integers().astype(np.float64)
        else:
            right = step.inputs[1]
            assert right.quantizer is not None
            other = centred(values[right.name], right.quantizer)
        if node.op == "Conv":
            return convolve(x, other, node.attrs)
        turned = node.op == "Gemm" and weight is not None and weight_axis(node) == 0
        product: Array = x @ (other.T if turned else other)
        return product

    def scales(self, step: Step, kind: type[np.floating[Any]]) -> Array:
        """Return what a step of the sum is worth, computed in this type: by channel, or one for all."""
        assert step.node is not None
        weight = self.plan.weights.get(step.node.name)
        if weight is not None:
            other = weight.scale.astype(kind)
        else:
            assert step.inputs[1].quantizer is not None
            other = np.asarray([step.inputs[1].quantizer.scale], kind)
        return np.asarray(kind(step.input_scale) * other)

    def _bias(self, step: Step, bias: NDArray[np.float32]) -> Array:
        """Return a bias as files hold it."""
        if self.plan.bias == "float32":
            return bias.astype(np.float64)
        assert step.node is not None
        codes, scale = integer_bias(bias, step.input_scale, self.plan.weights[step.node.name].scale)
        return codes.astype(np.float64) * scale

    def _arithmetic(self, step: Step, values: dict[str, Array]) -> list[Array]:
        """An operator on the values of codes, in float32, and its quantizer."""
        (output,), node = step.outputs, step.node
        assert node is not None
        made = self._alone(node, "f", [self._float(value, values) for value in step.inputs])[0]
        return [made if output.quantizer is None else quantize(made, output.quantizer)]

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


def along(node: Node, channels: Array, rank: int) -> Array:
    """Reshape values [C] so that they broadcast over the output of a layer, which has so many dimensions."""
    return channels.reshape(-1, *[1] * (rank - 2)) if node.op == "Conv" else channels


STEPS: Final[dict[Kind | Form, str]] = {
    Kind.ENCODE: "_encode",
    Kind.RECODE: "_encode",
    Kind.DECODE: "_decode",
    Form.COMPUTE: "_compute",
    Form.ARITHMETIC: "_arithmetic",
    Form.CODES: "_move",
    Form.FLOAT: "_run_float",
}
