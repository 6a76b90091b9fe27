"""Sums, products and functions of one element that are not activations; binary operators broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import helper

from qcompile.autodiff.broadcasting import broadcast_dims, dims_of, unbroadcast
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, vjp
from qcompile.autodiff.tape import Node, Tape

Unary = Callable[[Tape, Value, Value, Value], Value]  # (tape, x, y, dy) -> dx
Binary = Callable[[Tape, Value, Value, Value, Value], tuple[Value, Value]]  # (tape, a, b, y, dy) -> da, db unreduced

TINY = 1e-30  # the root of 0, where nothing has happened yet (a silent band of a spectrum), has the slope 0
UNARY: dict[str, Unary] = {
    "Abs": lambda g, x, y, dy: g.mul(dy, g.sign(x)),
    "Cos": lambda g, x, y, dy: g.neg(g.mul(dy, g.sin(x))),
    "Erf": lambda g, x, y, dy: g.mul(dy, g.mul(g.exp(g.neg(g.mul(x, x))), 2 / math.sqrt(math.pi))),
    "Exp": lambda g, x, y, dy: g.mul(dy, y),
    "Identity": lambda g, x, y, dy: dy,
    "Log": lambda g, x, y, dy: g.div(dy, x),
    "Neg": lambda g, x, y, dy: g.neg(dy),
    "Reciprocal": lambda g, x, y, dy: g.neg(g.mul(dy, g.mul(y, y))),
    "Sin": lambda g, x, y, dy: g.mul(dy, g.cos(x)),
    "Sqrt": lambda g, x, y, dy: g.div(g.mul(dy, g.mul(g.sign(y), 0.5)), g.max(y, TINY)),
}

BINARY: dict[str, Binary] = {
    "Add": lambda g, a, b, y, dy: (dy, dy),
    "Sub": lambda g, a, b, y, dy: (dy, g.neg(dy)),
    "Mul": lambda g, a, b, y, dy: (g.mul(dy, b), g.mul(dy, a)),
    "Div": lambda g, a, b, y, dy: (g.div(dy, b), g.neg(g.div(g.mul(dy, y), b))),
    "Pow": lambda g, a, b, y, dy: (_power_by_base(g, a, b, dy), g.mul(dy, _power_by_exponent(g, a, y))),
}


def _power_by_base(g: Tape, base: Value, exponent: Value, dy: Value) -> Value:
    constant = g.constant(exponent)
    if constant is not None and constant.size == 1 and constant.item() == 2:
        return g.mul(dy, g.mul(base, 2.0))  # Pow costs ten times a product
    return g.mul(dy, g.mul(g.pow(base, g.sub(exponent, 1.0)), exponent))


def _power_by_exponent(g: Tape, base: Value, y: Value) -> Value:
    """y ln(base), and 0 where the base is 0, as the limit is for positive exponents."""
    return g.mul(y, g.log(g.where(g.greater(base, 0.0), base, 1.0)))


def _unary(form: Unary) -> Callable[[Tape, Node, Value], Value]:
    return lambda g, node, dy: form(g, node.inputs[0], node.outputs[0], dy)


def _binary(form: Binary) -> Callable[[Tape, Node, Value], Gradients]:
    def rule(g: Tape, node: Node, dy: Value) -> Gradients:
        a, b = node.inputs
        dims = broadcast_dims(dims_of(g, a), dims_of(g, b))
        da, db = form(g, a, b, node.outputs[0], dy)
        return unbroadcast(g, da, dims, a), unbroadcast(g, db, dims, b)

    return rule


for _name, _form in UNARY.items():
    vjp(_name)(_unary(_form))
for _name, _pair in BINARY.items():
    vjp(_name)(_binary(_pair))


@vjp("Sum")
def _sum(g: Tape, node: Node, dy: Value) -> Gradients:
    """Every term receives dy."""
    dims = dims_of(g, node.outputs[0])
    return [unbroadcast(g, dy, dims, term) for term in node.inputs]


@vjp("Max", "Min")
def _extreme(g: Tape, node: Node, dy: Value) -> Gradients:
    """The first input that equals the result receives dy."""
    y = node.outputs[0]
    dims, parts, free = dims_of(g, y), [], ""
    for term in node.inputs:
        chosen = g.equal(term, y) if not free else g.logical_and(g.equal(term, y), free)
        free = g.logical_not(chosen) if not free else g.logical_and(free, g.logical_not(chosen))
        parts.append(unbroadcast(g, g.where(chosen, dy, 0.0), dims, term))
    return parts


@vjp("Where")
def _where(g: Tape, node: Node, dy: Value) -> Gradients:
    """Each element of dy goes where its value came from."""
    condition, a, b = node.inputs
    dims = broadcast_dims(dims_of(g, condition), broadcast_dims(dims_of(g, a), dims_of(g, b)))
    da, db = g.where(condition, dy, 0.0), g.where(condition, 0.0, dy)
    return None, unbroadcast(g, da, dims, a), unbroadcast(g, db, dims, b)


@vjp("Cast")
def _cast(g: Tape, node: Node, dy: Value) -> Gradients:
    """Between float types dy is cast back; casts to integers end the sweep before they get here."""
    dtype = g.dtype(node.inputs[0])
    return g.cast(dy, to=helper.np_dtype_to_tensor_dtype(dtype or g.float_type))
