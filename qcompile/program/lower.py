"""Lower graph and plan to a program: the one list of steps that the emitted file and both simulations are made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from qcompile.ir import (
    Constant,
    Graph,
    Node,
    Tensor,
    captured_names,
    only_consumer,
    producer,
    topological,
    unique_name,
)
from qcompile.program.operands import clip_bounds, data_inputs, operands
from qcompile.quant.params import Quantizer
from qcompile.quant.plan import Edge, Form, Plan


class Kind(StrEnum):
    """What a step does with its values."""

    ENCODE = "encode"  # float32 -> codes
    RECODE = "recode"  # codes -> codes of another quantizer
    DECODE = "decode"  # codes -> float32
    RUN = "run"  # nodes, on codes and floats


@dataclass(frozen=True)
class Value:
    """A value of the program: codes of a quantizer, or (without one) a tensor of the float graph.

    `key` is that of the quantizer in the plan; None where no plan has it.
    """

    name: str
    quantizer: Quantizer | None = None
    key: Edge | None = None


@dataclass(frozen=True)
class Step:
    """One step: `inputs` are its data (codes where they have a quantizer, constants as they stand in the node).

    `nodes` are those that are done in it. A RUN has the one whose kernel it is and the clips behind it that the
    quantizer of its output carries out; its `form` names the kernel. An ENCODE has the clips that it carries out behind
    a float node. `others` are tensors that the node reads besides: shapes and indices that are computed as the model
    runs.
    """

    kind: Kind
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...] = ()
    form: Form | None = None
    others: tuple[Value, ...] = ()

    @property
    def action(self) -> Kind | Form:
        """What has to be done: the form of a RUN, else the kind."""
        return self.form or self.kind

    @property
    def node(self) -> Node | None:
        """The node whose kernel a RUN is."""
        return self.nodes[0] if self.kind is Kind.RUN else None

    @property
    def clips(self) -> tuple[Node, ...]:
        """The clips that the quantizer of the output carries out."""
        return self.nodes[1:] if self.kind is Kind.RUN else self.nodes

    @property
    def reads(self) -> tuple[Value, ...]:
        """Everything that has to be made before."""
        return self.inputs + self.others

    @property
    def is_layer(self) -> bool:
        """Say whether this computes with a weight and may have a bias."""
        return self.form is Form.COMPUTE and self.nodes[0].op != "MatMul"

    @property
    def input_scale(self) -> float:
        """The scale of the codes that this reads first; infinite in front of a float, beside which any bias fits."""
        quantizer = self.inputs[0].quantizer
        return math.inf if quantizer is None else quantizer.scale


@dataclass(frozen=True)
class Program:
    """Steps in executable order, whose nodes are those of `graph`; every value is made before it is read.

    `tensors` maps the names of codes, those of narrower quantizers too, to the tensors that they stand for.
    """

    graph: Graph
    steps: tuple[Step, ...]
    tensors: dict[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Callable[..., Program], tuple[Any, ...]]:
        """On the way to another process steps have the names of their nodes, not the nodes: these hang together."""
        names = [[node.name for node in step.nodes] for step in self.steps]
        return _with_nodes, (self.graph, [replace(step, nodes=()) for step in self.steps], names, self.tensors)

    def residual_operand(self, value: Value) -> Value | None:
        """Return the other operand of the Add that alone reads `value`, or None."""
        readers = [step for step in self.steps if any(item.name == value.name for item in step.inputs)]
        if len(readers) != 1 or readers[0].node is None or readers[0].node.op != "Add" or len(readers[0].inputs) != 2:
            return None
        return next((item for item in readers[0].inputs if item.name != value.name), value)


def _with_nodes(
    graph: Graph, steps: Sequence[Step], names: Sequence[Sequence[str]], tensors: dict[str, str]
) -> Program:
    """Return the program of these steps, with the nodes of those names."""
    nodes = {node.name: node for node in graph.nodes}
    groups = (tuple(nodes[name] for name in group) for group in names)
    return Program(graph, tuple(replace(step, nodes=group) for step, group in zip(steps, groups)), tensors)


def lower(graph: Graph, plan: Plan) -> Program:
    """Lower `graph` as `plan` decides; the plan's quantizers must have been calibrated."""
    lowering = _Lowering(graph, plan)
    for node in topological(graph):
        lowering.add(node)
    for tensor in graph.outputs:
        lowering.real(tensor)
    tensors = {value.name: tensor for (tensor, _), value in lowering.coded.items()}
    return Program(graph, tuple(lowering.steps), tensors)


def absorbed_end(graph: Graph, plan: Plan, tensor: Tensor) -> Tensor:
    """Follow absorbed clips from the tensor that a node makes to the one whose quantizer stands in its place."""
    clips = absorbed_clips(graph, plan, tensor)
    return clips[-1].outputs[0] if clips else tensor


def absorbed_clips(graph: Graph, plan: Plan, tensor: Tensor) -> list[Node]:
    """Return the clips behind the tensor that a node makes which a quantizer carries out."""
    clips: list[Node] = []
    while (reader := only_consumer(graph, tensor)) and plan.form(reader.name) is Form.ABSORBED:
        clips.append(reader)
        tensor = reader.outputs[0]
    return clips


def absorbed_bounds(plan: Plan, tensor: Tensor) -> tuple[float, float, Node | None]:
    """Return the bounds of the clips that the quantizer of `tensor` absorbs, and the node in front of them."""
    lower, upper = -np.inf, np.inf
    node = producer(tensor)
    while node is not None and plan.form(node.name) is Form.ABSORBED:
        bounds = clip_bounds(node) or (lower, upper)
        lower, upper = max(lower, bounds[0]), min(upper, bounds[1])
        node = producer(data_inputs(node)[0])
    return lower, upper, node


@dataclass
class _Lowering:
    graph: Graph
    plan: Plan
    steps: list[Step] = field(default_factory=list)
    coded: dict[tuple[str, Edge], Value] = field(default_factory=dict)  # (tensor, quantizer key) -> codes
    floats: set[str] = field(default_factory=set)  # tensors whose float value exists

    def __post_init__(self) -> None:
        self.tensors = self.graph.tensors()
        self.taken = set(self.tensors)
        self.floats.update(tensor.name for tensor in self.graph.inputs)

    def add(self, node: Node) -> None:
        """Add the steps of one node, behind those that make what it reads."""
        form = self.plan.form(node.name)
        if form is Form.FLOAT:
            names = [tensor.name for tensor in node.inputs] + sorted(captured_names(node) & set(self.tensors))
            values = tuple(self.real(self.tensors[name]) for name in names if name)
            self.floats.update(tensor.name for tensor in node.outputs)
            self._run(form, values, tuple(Value(tensor.name) for tensor in node.outputs), [node])
        elif form is Form.CODES:
            sources = tuple(self.codes(tensor) for tensor in data_inputs(node))
            outputs = tuple(self._new_codes(tensor, self.plan.key(tensor.name)) for tensor in node.outputs)
            self._run(form, sources, outputs, [node], self._others(node))
        elif form in (Form.COMPUTE, Form.ARITHMETIC):
            data, reader = (data_inputs(node), node.name) if form is Form.COMPUTE else (operands(node), "")
            inputs = tuple(self.operand(tensor, reader) for tensor in data)
            nodes = [node, *absorbed_clips(self.graph, self.plan, node.outputs[0])]
            end = nodes[-1].outputs[0]
            if end.name in self.plan.groups and end.name not in self.plan.unrounded:
                output = self._new_codes(end, self.plan.key(end.name))
            else:
                output = Value(end.name)
                self.floats.add(end.name)
            self._run(form, inputs, (output,), nodes, self._others(node))

    def _others(self, node: Node) -> tuple[Value, ...]:
        """Return the values that a node on integers reads besides its operands and constants."""
        rest = node.inputs[len(operands(node)) :]
        return tuple(self.real(tensor) for tensor in rest if tensor.name and not isinstance(tensor, Constant))

    def operand(self, tensor: Tensor, reader: str) -> Value:
        """Return what a node on integers works on: codes, or the float value of what has no quantizer."""
        return self.codes(tensor, reader) if tensor.name in self.plan.groups else self.real(tensor)

    def codes(self, tensor: Tensor, reader: str = "") -> Value:
        """Return the codes of `tensor` that a compute node sees, or without one the tensor's own."""
        key = self.plan.key(tensor.name, reader)
        if (tensor.name, key) in self.coded:
            return self.coded[tensor.name, key]
        own = self.plan.key(tensor.name)
        if key != own and (tensor.name, own) in self.coded and not isinstance(tensor, Constant):
            kind, source, clips = Kind.RECODE, self.coded[tensor.name, own], tuple[Node, ...]()
        else:
            start, clips = self._absorbed_start(tensor)
            kind, source = Kind.ENCODE, self.real(start)
        codes = self._new_codes(tensor, key)
        self.steps.append(Step(kind, (source,), (codes,), clips))
        return codes

    def real(self, tensor: Tensor) -> Value:
        """Return the float value of `tensor`."""
        if tensor.name not in self.floats and not isinstance(tensor, Constant) and tensor.name in self.plan.groups:
            self.steps.append(Step(Kind.DECODE, (self.codes(tensor),), (Value(tensor.name),)))
            self.floats.add(tensor.name)
        return Value(tensor.name)

    def _absorbed_start(self, tensor: Tensor) -> tuple[Tensor, tuple[Node, ...]]:
        """Return the tensor in front of the clips that the quantizer of `tensor` carries out, and the clips."""
        clips: list[Node] = []
        while tensor.inputs and self.plan.form(tensor.inputs[0].name) is Form.ABSORBED:
            clips.insert(0, tensor.inputs[0])
            tensor = data_inputs(tensor.inputs[0])[0]
        return tensor, tuple(clips)

    def _new_codes(self, tensor: Tensor, key: Edge) -> Value:
        quantizer = self.plan.quantizers[key]
        name = unique_name(f"{tensor.name}_q{quantizer.bits}", self.taken)
        value = self.coded[tensor.name, key] = Value(name, quantizer, key)
        return value

    def _run(
        self,
        form: Form,
        inputs: tuple[Value, ...],
        outputs: tuple[Value, ...],
        nodes: Sequence[Node],
        others: tuple[Value, ...] = (),
    ) -> None:
        self.steps.append(Step(Kind.RUN, inputs, outputs, tuple(nodes), form, others))
