"""A unit of the program as a differentiable graph: fake-quant weights and activations, a loss against the float unit.

Weights are rounded softly (AdaRound, Nagel et al., 2020) on their own grid with a trained scale; activation quantizers
have a trained scale (LSQ, Esser et al., 2020) and are dropped element by element (QDrop, Wei et al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompile.ir import Constant, Graph, Node, Tensor, node_proto
from qcompile.ir.graph import element_type, is_real
from qcompile.program.lower import Kind, Step, Value
from qcompile.program.operands import operands
from qcompile.quant.arithmetic import fake_quantize
from qcompile.quant.params import Quantizer, WeightQuantizer
from qcompile.quant.plan import Edge, Form, Plan
from qcompile.training.recipe import PULL, VALUES_PER_WEIGHT, ParameterKind
from qcompile.training.rounding import soft_code, soft_start

Array = NDArray[Any]
LOSS, RECONSTRUCTION = "region/loss", "region/reconstruction"
STRENGTH, EXPONENT, STRETCH = "region/strength", "region/exponent", "region/stretch"
UNIT_ERROR = "region/unit_error"


class UntrainableError(Exception):
    """This unit cannot be trained; the text says why."""


@dataclass(frozen=True)
class Parameter:
    """A trained tensor: its start value and what it belongs to, a node by name or a quantizer by its key."""

    kind: ParameterKind
    start: NDArray[np.float32]
    owner: str = ""
    key: Edge | None = None
    highest: float = np.inf  # of a scale in the log domain: what an absorbed clip allows


@dataclass
class Region:
    """The graph of one region and what to feed it.

    `feeds` maps graph inputs to (side, value): "q" for the quantized prefix, "f" for the float model. `masks` maps mask
    inputs to the value whose shape they have, and are True with the probability `quantized`.
    """

    model: onnx.ModelProto
    parameters: dict[str, Parameter]
    feeds: dict[str, tuple[str, str]]
    masks: dict[str, tuple[int, ...]]
    quantized: float


@dataclass
class RegionBuilder:
    """Writes the steps of one region with pseudo-operators for fake quantization.

    `shapes` of what is fed, and `inner` ones of what steps make, by the names of values, are those of `batch` samples.
    `samples` says how many training draws from: the fewer they are beside the weights, the more these are held where
    they start. `shares` are the probabilities that an element is quantized, where the samples determine the weights and
    where they do not; there are no masks where all are.
    """

    graph: Graph
    plan: Plan
    shapes: Mapping[tuple[str, str], tuple[int, ...]]
    inner: Mapping[str, tuple[int, ...]]
    tensor_of: Mapping[str, str]
    batch: int
    samples: float = math.inf
    shares: tuple[float, float] = (0.5, 0.5)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    feeds: dict[str, tuple[str, str]] = field(default_factory=dict)
    masks: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors: dict[str, Tensor] = self.graph.tensors()
        self.known: set[str] = set()

    def build(self, steps: Sequence[Step], inputs: Sequence[Value], outputs: Sequence[Value]) -> Region:
        """Return the region that computes `outputs` from `inputs`."""
        aims = [self.shapes["f", self._tensor(value)] for value in self._aims(outputs)]
        self.targets = sum(map(math.prod, aims)) // self.batch
        self.quantized = self.shares[self._values_per_weight(steps) < VALUES_PER_WEIGHT]
        for value in inputs:
            self._input(value)
        for step in steps:
            WRITERS[step.action](self, step)
        self._loss(outputs)
        graph = helper.make_graph(self.nodes, "region", self.inputs, [onnx.ValueInfoProto(name=LOSS)], self.constants)
        imports = [helper.make_opsetid("", self.graph.opset), helper.make_opsetid("qcompile", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        return Region(model, self.parameters, self.feeds, self.masks, self.quantized)

    # inputs and the loss

    def _input(self, value: Value) -> None:
        """What a region reads is quantized, or a mixture with the float value, if kept, drawn for each element."""
        tensor = self._tensor(value)
        if value.quantizer is None:
            self._feed(value.name, "q", value.name, element_type(self.tensors[value.name]))
            return
        grid = value.quantizer.grid
        codes = self._feed(f"{value.name}/codes", "q", value.name, helper.np_dtype_to_tensor_dtype(grid.dtype))
        scale = self._constant(np.float32(value.quantizer.scale))
        zero = self._constant(np.array(value.quantizer.zero_point, grid.dtype))
        if self.quantized == 1.0 or ("f", tensor) not in self.shapes:
            self._node("DequantizeLinear", [codes, scale, zero], value.name)
            return
        exact = self._feed(f"{value.name}/exact", "f", tensor, TensorProto.FLOAT)
        quantized = self._node("DequantizeLinear", [codes, scale, zero])
        self._node("Where", [*self._masks(value.name), quantized, exact], value.name)

    def _tensor(self, value: Value) -> str:
        """Return the tensor of the graph that a value stands for."""
        return self.tensor_of.get(value.name, value.name)

    def _feed(self, name: str, side: str, value: str, kind: int) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, self.shapes[side, value]))
        self.feeds[name] = (side, value)
        return name

    def _loss(self, outputs: Sequence[Value]) -> None:
        """Squared error, summed over channels, mean over samples and positions, plus the rounding regulariser."""
        for name in (STRENGTH, EXPONENT, STRETCH, UNIT_ERROR):
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
        errors = []
        for value in self._aims(outputs):
            tensor = self._tensor(value)
            target = self._feed(f"{value.name}/target", "f", tensor, TensorProto.FLOAT)
            shape = self.shapes["f", tensor]
            total = self._own("SquaredError", [value.name, target], f"{value.name}/error")
            count = np.float32(shape[1] / np.prod(shape)) if len(shape) > 1 else np.float32(1 / np.prod(shape))
            errors.append(self._node("Mul", [total, self._constant(count)]))
        error = self._node("Identity", [self._sum(errors)], RECONSTRUCTION)
        relative = self._node("Div", [error, UNIT_ERROR])
        for part in (self._undecided(), self._moved()):
            relative = self._node("Add", [relative, part])
        self._node("Identity", [relative], LOSS)

    def _aims(self, outputs: Sequence[Value]) -> list[Value]:
        """Return the outputs that are real numbers for each sample."""
        tensors = ((value, self._tensor(value)) for value in outputs)
        return [
            value
            for value, name in tensors
            if is_real(self.tensors[name]) and 0 not in self.shapes.get(("f", name), (0,))
        ]

    def _values_per_weight(self, steps: Sequence[Step]) -> float:
        """Return how many target values all samples have for each weight."""
        layers = {step.node.name for step in steps if step.node is not None} & self.plan.weights.keys()
        weights = sum(self.plan.weights[name].codes.size for name in layers)
        return self.samples * self.targets / max(weights, 1)

    def _rounding(self) -> dict[str, Parameter]:
        return {name: item for name, item in self.parameters.items() if item.kind is ParameterKind.ROUNDING}

    def _undecided(self) -> str:
        """What asks every rounding variable to decide: the mean over the weights, times the strength."""
        rounding = self._rounding()
        penalties = [self._own("RoundingPenalty", [name, EXPONENT, STRETCH], f"{name}/penalty") for name in rounding]
        weights = sum(item.start.size for item in rounding.values())
        mean = self._node("Mul", [self._sum(penalties), self._constant(np.float32(1 / weights))])
        return self._node("Mul", [mean, STRENGTH])

    def _moved(self) -> str:
        """What holds the rounding variables where they start: the squared way of each, beside the number of targets.

        With as many weights as target values a unit learns its few samples by heart.
        """
        one, zero, ways = self._constant(np.float32(1)), self._constant(np.float32(0)), []
        for name, item in self._rounding().items():
            start = self._constant(-soft_code(item.start))
            way = self._own("FakeQuantWeight", [name, one, start, STRETCH], f"{name}/way", rounding="adaround")
            ways.append(self._own("SquaredError", [way, zero], f"{name}/squared_way"))
        return self._node("Mul", [self._sum(ways), self._constant(np.float32(PULL / (self.samples * self.targets)))])

    def _sum(self, numbers: Sequence[str]) -> str:
        total = numbers[0]
        for number in numbers[1:]:
            total = self._node("Add", [total, number])
        return total

    # one method per action of a step

    def encode(self, step: Step) -> None:
        """A quantizer of its own: in front of a compute node, or behind a float one."""
        (source,), (target,) = step.inputs, step.outputs
        tensor = self.tensors.get(source.name)
        assert target.quantizer is not None
        if isinstance(tensor, Constant):
            self.constants.append(numpy_helper.from_array(fake_quantize(tensor.values, target.quantizer), target.name))
            return
        self._fake_quantize(self._read(source), target)

    def decode(self, step: Step) -> None:
        """Nothing: values here are float already."""
        self._node("Identity", [step.inputs[0].name], step.outputs[0].name)

    def compute(self, step: Step) -> None:
        """A layer with soft-rounded weights."""
        node = step.node
        assert node is not None
        inputs = [self._read(value) for value in step.inputs]
        weight = self.plan.weights.get(node.name)
        if weight is not None:
            inputs.append(self._weight(node, weight))
            bias = self.plan.biases.get(node.name)
            if bias is not None:
                inputs.append(self._parameter_of(f"{node.name}/bias", ParameterKind.BIAS, bias, node.name))
        self._operator(step, inputs)

    def arithmetic(self, step: Step) -> None:
        """An operator, then its quantizer."""
        assert step.node is not None
        rest = [self._read(Value(tensor.name)) for tensor in step.node.inputs[len(operands(step.node)) :]]
        self._operator(step, [self._read(value) for value in step.inputs] + rest)

    def keep(self, step: Step) -> None:
        """Movers, clips and float operators, on float values."""
        node = step.node
        assert node is not None
        data = [value.name for value in step.inputs] if step.form is Form.CODES else []
        rest = [self._read(Value(tensor.name)) if tensor.name else "" for tensor in node.inputs[len(data) :]]
        outputs = [value.name for value in step.outputs]
        self.nodes.append(node_proto(node, [*data, *rest], outputs))

    # the pieces they share

    def _operator(self, step: Step, inputs: list[str]) -> None:
        """Write the node, the clips absorbed behind it, and its quantizer."""
        (target,), node = step.outputs, step.node
        assert node is not None
        current = f"{target.name}/raw"
        self.nodes.append(node_proto(node, inputs, [current]))
        for clip in step.clips:
            clipped = f"{target.name}/{clip.name}"
            rest = [self._read(Value(tensor.name)) if tensor.name else "" for tensor in clip.inputs[1:]]
            self.nodes.append(node_proto(clip, [current, *rest], [clipped]))
            current = clipped
        if target.quantizer is None:
            self._node("Identity", [current], target.name)
        else:
            self._fake_quantize(current, target)

    def _fake_quantize(self, source: str, target: Value) -> None:
        quantizer = target.quantizer
        assert quantizer is not None
        assert target.key is not None
        inputs = [source, self._activation_scale(target.key, quantizer), *self._masks(target.name)]
        facts = asdict(quantizer.grid) | {"zero_point": quantizer.zero_point}
        self._own("FakeQuantActivation", inputs, target.name, **facts)

    def _activation_scale(self, key: Edge, quantizer: Quantizer) -> str:
        start = self._constant(np.float32(quantizer.scale))
        spec = self.plan.specs[key]
        if spec.fixed is not None or spec.power_of_two:
            return start
        name = f"{key}/log_scale"  # the text of a key has quotes: no two are alike
        limit = [np.log(spec.upper / quantizer.high)] if np.isfinite(spec.upper) and spec.upper > 0 else []
        limit += [np.log(spec.lower / quantizer.low)] if np.isfinite(spec.lower) and quantizer.low < 0 else []
        highest = float(min(limit, default=np.inf))
        zero = np.zeros((), np.float32)
        self._parameter(name, Parameter(ParameterKind.ACTIVATION_SCALE, zero, key=key, highest=highest))
        return self._node("Mul", [start, self._node("Exp", [name])])

    def _weight(self, node: Node, weight: WeightQuantizer) -> str:
        """Return W = scale (base + h): base the grid point below the float weight, h between it and the next one.

        Filters are rows here: elementwise operators are up to 90 times slower on shapes that end in ones.
        """
        exact = np.asarray(node.inputs[1].values, np.float32)
        step, start, base = soft_start(exact, weight)
        shape = exact.shape
        if weight.spec.block:
            rows, columns = weight.shared_shape
            shape = (rows, exact.shape[0] // rows, columns, exact.shape[1] // columns)
            step = step.reshape(shape)[:, :1, :, :1]
        elif exact.ndim > 2 and weight.axis == 0:
            shape = (len(exact), exact.size // len(exact))
            step = step.reshape(-1, 1)
        start, base = start.reshape(shape), base.reshape(shape)
        scale = self._constant(step)
        if weight.spec.is_free:
            name, start_at = f"{node.name}/weight_log_scale", np.zeros(step.shape, np.float32)
            factor = self._parameter_of(name, ParameterKind.WEIGHT_SCALE, start_at, node.name)
            scale = self._node("Mul", [scale, self._node("Exp", [factor])])
        variable = self._parameter_of(f"{node.name}/rounding", ParameterKind.ROUNDING, start, node.name)
        inputs = [variable, scale, self._constant(base), STRETCH]
        filters = self._own("FakeQuantWeight", inputs, f"{node.name}/weight", rounding="adaround")
        return (
            filters if shape == exact.shape else self._node("Reshape", [filters, self._constant(np.array(exact.shape))])
        )

    def _parameter_of(self, name: str, kind: ParameterKind, start: Array, owner: str) -> str:
        return self._parameter(name, Parameter(kind, start.astype(np.float32), owner))

    def _parameter(self, name: str, parameter: Parameter) -> str:
        if name not in self.parameters:
            self.parameters[name] = parameter
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, parameter.start.shape))
        return name

    def _masks(self, of: str) -> list[str]:
        """Return the mask that says which elements of a value are quantized, or none where all are."""
        if self.quantized == 1.0:
            return []
        name = f"{of}/mask"
        self.masks[name] = self.inner[of] if of in self.inner else self.shapes["q", of]
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.BOOL, self.masks[name]))
        return [name]

    def _read(self, value: Value) -> str:
        tensor = self.tensors.get(value.name)
        if isinstance(tensor, Constant) and value.name not in self.known:
            self.known.add(value.name)
            self.constants.append(numpy_helper.from_array(np.asarray(tensor.values), value.name))
        return value.name

    def _constant(self, array: Any) -> str:
        name = f"region/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = f"region/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output or name], name, **attributes))
        return output or name

    def _own(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Write an operator of the domain of autodiff."""
        return self._node(op, inputs, output, domain="qcompile", **attributes)


WRITERS: Final[dict[Kind | Form, Callable[[RegionBuilder, Step], None]]] = {
    Kind.ENCODE: RegionBuilder.encode,
    Kind.RECODE: RegionBuilder.encode,
    Kind.DECODE: RegionBuilder.decode,
    Form.COMPUTE: RegionBuilder.compute,
    Form.ARITHMETIC: RegionBuilder.arithmetic,
    Form.CODES: RegionBuilder.keep,
    Form.FLOAT: RegionBuilder.keep,
}
