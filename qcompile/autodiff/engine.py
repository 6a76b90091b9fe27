"""Reverse-mode differentiation: a forward graph becomes one that also computes gradients.

The sweep visits the nodes between the trainable tensors and the seeds in reverse order; a rule per operator turns the
gradients of its outputs into those of its inputs, and contributions to one tensor are added (Griewank and Walther,
Evaluating Derivatives, 2008, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from qcompile.autodiff.broadcasting import zeros_like
from qcompile.autodiff.operators import Operand, Value
from qcompile.autodiff.registry import LOWERINGS, RULES, NoGradientRule, Rules, UnknownFormError
from qcompile.autodiff.tape import Node, Tape
from qcompile.errors import InputError, nearest


@dataclass(frozen=True)
class Differentiated:
    """A model with the outputs of the forward graph and, behind them, the gradients: trainable -> output name."""

    model: ModelProto
    gradients: Mapping[Value, Value]


def differentiate(model: ModelProto, loss: Value, trainable: Sequence[Value], rules: Rules = RULES) -> Differentiated:
    """Return `model` with the gradient of `loss` by each of `trainable` as further outputs.

    `loss` is a value of one element; `trainable` names initializers, graph inputs or inner values of a float type. The
    model must be of opset 18 or later; operators of the domain "qcompile" are replaced by standard ones. A trainable
    tensor that the loss does not depend on has a gradient of zeros.
    Raises NoGradientRule where a node in between cannot be differentiated.
    """
    tape = record(model)
    dims = tape.shape_of(loss) or ()
    if any(dim != 1 for dim in dims):
        raise InputError(f"the loss {loss!r} has the shape {dims}", remedy="reduce it to one element")
    found = gradients(tape, {loss: np.ones(len(dims) * (1,), tape.float_type)}, trainable, rules)
    found |= {name: zeros_like(tape, name) for name in trainable if name not in found}
    named = {name: tape.op("Identity", found[name], output=tape.unique(f"{name}_gradient")) for name in trainable}
    for name, gradient in named.items():
        tape.describe(gradient, like=name)
    outputs = [item.name for item in model.graph.output]
    return Differentiated(tape.assemble(dict.fromkeys([*outputs, loss, *named.values()])), named)


def record(model: ModelProto) -> Tape:
    """Put the forward graph on a tape, operators that ONNX does not have lowered to those it has."""
    tape = Tape(model)
    for proto in model.graph.node:
        node = Node.of(proto)
        lower = LOWERINGS.get((node.domain, node.op))
        if lower is None:
            tape.keep(proto)
        else:
            lower(tape, node)
        tape.forward.append(node)
    tape.infer()
    return tape


def gradients(
    tape: Tape, seeds: Mapping[Value, Operand], trainable: Sequence[Value], rules: Rules = RULES
) -> dict[Value, Value]:
    """Append the reverse pass: return the gradient of each trainable tensor that the seeds depend on.

    `seeds` gives the gradient at which the sweep begins, per value: 1.0 for a loss, or the derivative of a loss by the
    outputs of a region, of their shape.
    """
    known = {*tape.known_values(), *(name for node in tape.forward for name in node.outputs)}
    for name in (*seeds, *trainable):
        if name not in known:
            raise InputError(
                f"the graph has no tensor {name!r}", where=tape.model.graph.name, remedy=nearest(name, known)
            )
    active = _active(tape, trainable)
    found: dict[Value, Value] = {name: tape.value(seed) for name, seed in seeds.items()}
    for node in reversed(tape.forward):
        above = [found.get(name) if name else None for name in node.outputs]
        targets = active.intersection((*node.inputs, *node.captured))
        if targets and any(above):
            for name, gradient in zip(node.outputs, above):
                if gradient:
                    tape.describe(gradient, like=name)
            for name, part in _contributions(tape, node, above, rules):
                if name in targets:
                    found[name] = sum_of(tape, found[name], part) if name in found else part
    return {name: found[name] for name in trainable if name in found}


def sum_of(tape: Tape, a: Value, b: Value) -> Value:
    """Return a + b; products with one factor in common, such as the slope at a value with two uses, share it."""
    factors = [node.input for node in map(tape.producer, (a, b)) if node is not None and node.op_type == "Mul"]
    if len(factors) == 2 and factors[0][1] == factors[1][1]:
        return tape.mul(sum_of(tape, factors[0][0], factors[1][0]), factors[0][1])
    return tape.add(a, b)


def _active(tape: Tape, trainable: Iterable[Value]) -> set[Value]:
    """Return the values that depend on trainable tensors by way of floats."""
    active = set(trainable)
    for node in tape.forward:
        if not active.isdisjoint((*node.inputs, *node.captured)):
            active.update(name for name in node.outputs if name and _is_float(tape, name))
    return active


def _is_float(tape: Tape, name: Value) -> bool:
    dtype = tape.dtype(name)
    return dtype is None or dtype.kind == "f"


def _contributions(
    tape: Tape, node: Node, above: Sequence[Value | None], rules: Rules
) -> Iterable[tuple[Value, Value]]:
    rule = rules.get((node.domain, node.op))
    if rule is None:
        raise NoGradientRule.of(node)
    try:
        parts = rule(tape, node, *above)
    except UnknownFormError as error:
        raise NoGradientRule.of(node, str(error)) from error
    listed = [parts] if parts is None or isinstance(parts, str) else parts
    return [(name, part) for name, part in zip(node.inputs, listed) if part is not None]
