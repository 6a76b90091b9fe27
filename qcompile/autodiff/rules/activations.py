"""Activation functions, their bounds and slopes. On a kink the gradient is that of the flat side.

`mask` turns a condition into a factor: a cast and a product cost half of a Where.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import helper

from qcompile.autodiff.broadcasting import axis_of, dims_of, rank_of, unbroadcast
from qcompile.autodiff.operators import Operand, Value
from qcompile.autodiff.registry import Gradients, attribute, vjp
from qcompile.autodiff.tape import Node, Tape

Form = Callable[[Tape, Node, Value, Value], Operand]  # (tape, node, x, y) -> dy/dx, element by element

GELU_CUBIC, GELU_SCALE = 0.044715, math.sqrt(2 / math.pi)  # of the tanh approximation (Hendrycks and Gimpel, 2016)


def mask(g: Tape, condition: Value) -> Value:
    """Return 1 where `condition` holds and 0 elsewhere."""
    return g.cast(condition, to=helper.np_dtype_to_tensor_dtype(g.float_type))


CONDITIONS = {"And", "Or", "Not", "Greater", "Less", "Equal"}  # operators that give booleans


def masked(g: Tape, dy: Value, condition: Value) -> Value:
    """Return `dy` where `condition` holds and 0 elsewhere; conditions on one gradient are joined as booleans."""
    product = g.producer(dy)
    factor = g.producer(product.input[1]) if product is not None and product.op_type == "Mul" else None
    if product is not None and factor is not None and factor.op_type == "Cast":
        before = g.producer(factor.input[0])
        if before is not None and before.op_type in CONDITIONS:
            return g.mul(product.input[0], mask(g, g.logical_and(before.output[0], condition)))
    return g.mul(dy, mask(g, condition))


def inside(g: Tape, value: Value, low: Operand, high: Operand) -> Value:
    """Say where `value` is above `low` and below `high`; "" is no bound."""
    if isinstance(low, str) and not low:
        return g.less(value, high)
    above = g.greater(value, low)
    return above if isinstance(high, str) and not high else g.logical_and(above, g.less(value, high))


def _hard_sigmoid(g: Tape, node: Node, x: Value, y: Value) -> Value:
    return g.mul(mask(g, inside(g, y, 0.0, 1.0)), float(attribute(node, "alpha", 0.2)))


def _hard_swish(g: Tape, node: Node, x: Value, y: Value) -> Value:
    """h(x) + x h'(x), with h the hard sigmoid of slope 1/6."""
    gate = g.hard_sigmoid(x, alpha=1 / 6, beta=0.5)
    return g.add(gate, g.mul(mask(g, inside(g, gate, 0.0, 1.0)), g.mul(x, 1 / 6)))


def _gelu(g: Tape, node: Node, x: Value, y: Value) -> Value:
    """Phi(x) + x phi(x), exactly or by the derivative of the tanh approximation."""
    if attribute(node, "approximate", "none") == "none":
        phi = g.mul(g.exp(g.mul(g.mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
        return g.add(g.mul(g.add(g.erf(g.mul(x, math.sqrt(0.5))), 1.0), 0.5), g.mul(x, phi))
    square = g.mul(x, x)
    t = g.tanh(g.mul(g.mul(x, g.add(g.mul(square, GELU_CUBIC), 1.0)), GELU_SCALE))
    slope = g.mul(g.add(g.mul(square, 3 * GELU_CUBIC), 1.0), GELU_SCALE)
    bent = g.mul(g.mul(x, g.sub(1.0, g.mul(t, t))), slope)
    return g.mul(g.add(g.add(t, 1.0), bent), 0.5)


SLOPES: dict[str, Form] = {
    "Elu": lambda g, node, x, y: g.where(g.greater(x, 0.0), 1.0, g.add(y, float(attribute(node, "alpha", 1.0)))),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda g, node, x, y: g.where(g.greater(x, 0.0), 1.0, float(attribute(node, "alpha", 0.01))),
    "Sigmoid": lambda g, node, x, y: g.mul(y, g.sub(1.0, y)),
    "Softplus": lambda g, node, x, y: g.sigmoid(x),
    "Tanh": lambda g, node, x, y: g.sub(1.0, g.mul(y, y)),
}


def _elementwise(form: Form) -> Callable[[Tape, Node, Value], Value]:
    return lambda g, node, dy: g.mul(dy, form(g, node, node.inputs[0], node.outputs[0]))


for _name, _form in SLOPES.items():
    vjp(_name)(_elementwise(_form))


@vjp("Relu")
def _relu(g: Tape, node: Node, dy: Value) -> Gradients:
    return masked(g, dy, g.greater(node.outputs[0], 0.0))


@vjp("Clip")
def _clip(g: Tape, node: Node, dy: Value) -> Gradients:
    """dy where x is inside the bounds; a bound receives what it cuts off."""
    x, low, high = node.inputs[0], node.input(1), node.input(2)
    if not low and not high:
        return dy
    dims = dims_of(g, x)
    below = unbroadcast(g, g.mul(dy, mask(g, g.less(x, low))), dims, low) if low else None
    above = unbroadcast(g, g.mul(dy, mask(g, g.greater(x, high))), dims, high) if high else None
    return masked(g, dy, inside(g, x, low, high)), below, above


@vjp("PRelu")
def _prelu(g: Tape, node: Node, dy: Value) -> Gradients:
    """dy above 0; below, x receives dy times the slope and the slope dy times x."""
    x, slope = node.inputs
    dx = g.where(g.greater(x, 0.0), dy, g.mul(dy, slope))
    return dx, unbroadcast(g, g.mul(dy, g.min(x, 0.0)), dims_of(g, x), slope)


@vjp("Softmax")
def _softmax(g: Tape, node: Node, dy: Value) -> Gradients:
    """y (dy - sum(dy y))."""
    y = node.outputs[0]
    return g.mul(y, g.sub(dy, g.reduce_sum(g.mul(dy, y), [_axis(g, node)], keepdims=1)))


@vjp("LogSoftmax")
def _log_softmax(g: Tape, node: Node, dy: Value) -> Gradients:
    """dy - exp(y) sum(dy)."""
    return g.sub(dy, g.mul(g.exp(node.outputs[0]), g.reduce_sum(dy, [_axis(g, node)], keepdims=1)))


def _axis(g: Tape, node: Node) -> int:
    return axis_of(attribute(node, "axis", -1), rank_of(g, node.inputs[0]))
