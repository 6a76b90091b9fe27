"""Rules that a plan and the graph it is for obey together. A loaded plan is held against all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Graph, Node, Tensor, constant_value, only_consumer, producer
from qcompile.program.dag import activation_dag
from qcompile.program.lower import absorbed_bounds, absorbed_end
from qcompile.program.operands import data_inputs, operands, weight_axis
from qcompile.program.sums import unrounded_operand
from qcompile.quant.plan import Edge, Form, Plan
from qcompile.quant.plan_check import LARGEST, LEAST, plan_problem
from qcompile.targets.forms import integer_form
from qcompile.targets.schema import Target

Problems = Iterator[str]
INT32_MAX = 2**31 - 1
LEAST_COSINE = 0.25  # of a weight and its rounded form: 0.58 and more at 2 bits, about 0 for that of another model


def plan_misfit(plan: Plan, graph: Graph, target: Target) -> str:
    """Return the first thing for which `plan` cannot be one for `graph`, in one line, or ""."""
    if plan.target != target.identity:
        return f"it was made for target {plan.target!r}, not {target.identity!r}"
    fit = _Fit(plan, graph, target)
    return plan_problem(plan) or next((text for rule in RULES for text in rule(fit)), "")


@dataclass
class _Fit:
    """A plan without problems of its own, and the graph."""

    plan: Plan
    graph: Graph
    target: Target

    def __post_init__(self) -> None:
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.tensors: dict[str, Tensor] = self.graph.tensors()

    def of_form(self, *forms: Form) -> Iterator[Node]:
        """Yield the nodes of these forms."""
        return (node for name, node in self.nodes.items() if self.plan.nodes[name].form in forms)

    def scale(self, tensor: Tensor, reader: str = "") -> float:
        """Return the scale in which a compute node sees `tensor`, or that of its own quantizer."""
        return self.plan.quantizers[self.plan.key(tensor.name, reader)].scale

    def output(self, node: Node) -> Tensor | None:
        """Return the tensor whose quantizer stands behind `node`, or None where its kernel gives float32."""
        end = absorbed_end(self.graph, self.plan, node.outputs[0])
        return end if end.name in self.plan.groups else None


def _units(fit: _Fit) -> Problems:
    """A unit reads and gives out what its nodes do."""
    dag = activation_dag(fit.graph)
    places = {node.name: index for index, node in enumerate(dag.nodes)}
    yield from (f"unit {unit.name!r} has no node" for unit in fit.plan.units if not unit.nodes)
    for unit in fit.plan.units:
        if unknown := [name for name in unit.nodes if name not in places]:
            yield f"unit {unit.name!r} has the node {unknown[0]!r}, which works on no activation"
        elif (found := dag.boundary([places[name] for name in unit.nodes])) != (unit.inputs, unit.outputs):
            yield f"unit {unit.name!r} has the inputs and outputs {found}, in the plan {(unit.inputs, unit.outputs)}"


def _names(fit: _Fit) -> Problems:
    """Nodes are those of the graph; tensors exist."""
    yield from (f"node {name!r} is in only one of them" for name in sorted(fit.plan.nodes.keys() ^ fit.nodes.keys()))
    yield from (f"the model has no tensor {name!r}" for name in fit.plan.groups if name not in fit.tensors)
    kinds = ((name, fit.tensors[name].dtype) for name in fit.plan.groups)
    yield from (
        f"tensor {name!r} is {kind if isinstance(kind, int) else np.dtype(kind)}, not float32"
        for name, kind in kinds
        if kind not in (None, np.float32)
    )


def _forms(fit: _Fit) -> Problems:
    """A node has a form for which the target has a kernel."""
    for name, node in fit.nodes.items():
        form, (possible, reason) = fit.plan.nodes[name].form, integer_form(node, fit.target)
        if form is Form.FLOAT or form is possible or (form is Form.CODES and _joins_codes(fit, node)):
            continue
        if form is not Form.ABSORBED or possible is not Form.CODES or not _may_be_absorbed(fit, node):
            yield f"node {name!r}, a {node.op}, cannot have the form {form}{f': {reason}' if reason else ''}"


def _joins_codes(fit: _Fit, node: Node) -> bool:
    """Say whether `node` is a Concat of codes of one quantizer."""
    groups = {fit.plan.groups.get(tensor.name) for tensor in [*node.inputs, *node.outputs]}
    return node.op == "Concat" and integer_form(node, fit.target)[0] is Form.ARITHMETIC and len(groups) == 1


def _may_be_absorbed(fit: _Fit, node: Node) -> bool:
    """Say whether a quantizer can do the work of a clip: nobody else sees the values in front of it."""
    if node.op not in fit.target.clips:
        return False
    (source,) = data_inputs(node)
    made_by = producer(source)
    alone = only_consumer(fit.graph, source) is node
    return (
        made_by is not None
        and alone
        and fit.plan.form(made_by.name) is not Form.CODES
        and made_by.op not in fit.target.dictated
    )


def _quantized(fit: _Fit) -> Problems:
    """What nodes on integers read and make has a quantizer; those that move codes have one for both."""
    groups, used = fit.plan.groups, set[str]()
    for node in fit.of_form(Form.COMPUTE, Form.ARITHMETIC, Form.CODES):
        if not fit.plan.nodes[node.name].reads_codes:
            continue
        read = operands(node) if fit.plan.form(node.name) is Form.ARITHMETIC else data_inputs(node)
        if fit.target.unrounded_sums and fit.plan.form(node.name) is Form.ARITHMETIC:
            read = [tensor for tensor in read if tensor is not unrounded_operand(fit.graph, fit.plan, node)]
        yield from (
            f"{node.name!r} reads {item.name!r} without a quantizer" for item in read if item.name not in groups
        )
        used.update(
            tensor.name for tensor in [*read, *node.outputs, absorbed_end(fit.graph, fit.plan, node.outputs[0])]
        )
    yield from (f"no node on integers reads or makes {name!r}" for name in groups if name not in used)
    for node in fit.of_form(Form.ABSORBED):
        if absorbed_end(fit.graph, fit.plan, node.outputs[0]).name not in groups:
            yield f"nothing does the work of {node.name!r}: there is no quantizer behind it"
    for node in fit.of_form(Form.COMPUTE, Form.ARITHMETIC):
        if fit.output(node) is None and node.op not in fit.target.float_output:
            yield f"the output of {node.name!r} has no quantizer"
    for node in fit.of_form(Form.CODES):
        if len({groups.get(tensor.name) for tensor in [*data_inputs(node), *node.outputs]}) > 1:
            yield f"{node.name!r} moves codes, and its input and output have two quantizers"


def _specs(fit: _Fit) -> Problems:
    """Quantizers do the work of the clips they absorb, and suit the kernels in front of them."""
    stacked = fit.plan.stacked()
    for tensor, root in fit.plan.groups.items():
        lower, upper, node = absorbed_bounds(fit.plan, fit.tensors[tensor])
        arithmetic = node is not None and fit.plan.form(node.name) is Form.ARITHMETIC
        spec = fit.plan.specs[Edge(root)]
        fixed = fit.target.dictated.get(node.op) if node is not None and arithmetic else None
        if spec.fixed != fixed and (fixed or tensor == root):
            yield f"the quantizer of {tensor!r} is {'not ' if fixed else ''}one that an operator dictates"
        if node is not None and arithmetic and node.op in fit.target.even_zero_point and not spec.even_zero_point:
            yield f"the zero point of {tensor!r} need not be even, but {node.op} wants it"
        for key in stacked[root]:
            grid = fit.plan.specs[key].grid
            if grid != (wanted := fit.target.grid(grid.bits, spec.lower)):
                yield f"quantizer {key} has the codes {grid}, the target has {wanted}"
            if fit.plan.specs[key].symmetric != fit.target.symmetric:
                yield f"quantizer {key} {'need not' if fit.target.symmetric else 'must'} have a zero point of 0"
            if fit.plan.specs[key].power_of_two != fit.target.power_activations:
                yield f"quantizer {key} {'must' if fit.target.power_activations else 'need not'} have a power of two"
            if fit.plan.specs[key].lower < lower or fit.plan.specs[key].upper > upper:
                yield f"quantizer {key} goes beyond the clip that it stands for, {lower:g} to {upper:g}"


def _reads(fit: _Fit) -> Problems:
    """Compute nodes say through which quantizer they see each of their inputs, and no other edges do."""
    layers = [node for node in fit.of_form(Form.COMPUTE) if fit.plan.nodes[node.name].reads_codes]
    edges = {Edge(item.name, node.name) for node in layers for item in data_inputs(node)}
    yield from (f"no quantizer is named for {edge}" for edge in sorted(edges - fit.plan.reads.keys()))
    yield from (f"there is no place for a quantizer on {edge}" for edge in sorted(fit.plan.reads.keys() - edges))


def _weights(fit: _Fit) -> Problems:
    """A weight has the shape and the channels of the model's; a bias is one that its kernel can add."""
    for node in fit.of_form(Form.COMPUTE):
        constant = constant_value(node.inputs[1]) is not None
        if constant != (node.name in fit.plan.weights):
            has, planned = ("a", "none") if constant else ("no", "one")
            yield f"node {node.name!r} has {has} constant weight, in the plan it has {planned}"
    for name, weight in fit.plan.weights.items():
        node = fit.nodes[name]
        if weight.spec != replace(fit.target.weight_spec(node), block=fit.plan.nodes[name].block):
            yield f"the scales of the weight of {name!r} are not those that the target asks for"
        wanted, axis = tuple(node.inputs[1].shape), weight_axis(node)
        if weight.codes.shape != wanted or weight.axis != axis:
            found = f"shape {weight.codes.shape} and axis {weight.axis}"
            yield f"the weight of {name!r} has {found}, not {wanted} and {axis}"
        elif (alike := _cosine(constant_value(node.inputs[1]), weight.dequantize())) < LEAST_COSINE:
            yield f"the weight of {name!r} is another one than the model's: their cosine is {alike:.2f}"
        if node.op == "MatMul" and name in fit.plan.biases:
            yield f"node {name!r}, a MatMul, has a bias"


def _cosine(exact: Any, rounded: NDArray[Any]) -> float:
    """Return the cosine of two weights; 1 where one of them is zero."""
    one, two = (np.ravel(values).astype(np.float64) for values in (exact, rounded))
    norms = np.sqrt((one @ one) * (two @ two))
    return float(one @ two / norms) if norms > 0 else 1.0


def _scales(fit: _Fit) -> Problems:
    """Products and quotients of scales fit into float32, biases into int32: kernels compute with them."""
    for node in fit.of_form(Form.COMPUTE, Form.ARITHMETIC):
        if not fit.plan.nodes[node.name].reads_codes:
            continue
        output = fit.output(node)
        products, made = _products(fit, node), fit.scale(output) if output is not None else 1.0
        sums = products * 2.0**31  # the largest that an accumulator holds
        if (
            (products < LEAST).any()
            or (sums > LARGEST).any()
            or (products / made < LEAST).any()
            or (sums / made > LARGEST).any()
        ):
            yield f"the scales around {node.name!r} do not suit each other: their products leave float32"
        bias = fit.plan.biases.get(node.name)
        if bias is not None and not (np.abs(bias) <= products * INT32_MAX).all():
            yield f"the bias of {node.name!r} does not fit into int32 at the scales of its input and weight"
        share = fit.target.least_output_scale.get(node.op)
        if share is not None and fit.plan.form(node.name) is Form.ARITHMETIC:
            least = np.float32(share * fit.scale(operands(node)[0]))
            if made < least:
                yield f"the scale behind {node.name!r} is {made:g}, its kernel takes {least:g} or more"


def _products(fit: _Fit, node: Node) -> NDArray[np.float64]:
    """Return the scales of what `node` adds up: by channel of a weight, or of each operand."""
    if fit.plan.form(node.name) is Form.COMPUTE:
        weight = fit.plan.weights.get(node.name)
        data = np.array([fit.scale(tensor, node.name) for tensor in data_inputs(node)])
        channels = np.ones(1) if weight is None else weight.scale.astype(np.float64)
        return np.asarray(data.prod(keepdims=True) * channels)
    scales = np.array([fit.scale(tensor) for tensor in operands(node) if tensor.name in fit.plan.groups])
    return scales.prod(keepdims=True) if node.op == "Mul" else scales


RULES: tuple[Callable[[_Fit], Problems], ...] = (
    _names,
    _units,
    _forms,
    _quantized,
    _specs,
    _reads,
    _weights,
    _scales,
)
