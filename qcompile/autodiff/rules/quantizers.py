"""Fake quantization of activations and of weights: two operators of our own, lowered to standard ones.

FakeQuantActivation(x, scale, mask), attributes bits, zero_point, surrogate
    y = scale * (clip(round(x / scale) + zero_point, 0, n) - zero_point) with n = 2^bits - 1; where mask is given and
    False, y = x (QDrop, Wei et al., 2022). scale is one number, mask has the shape of x.
FakeQuantWeight(variable, scale, base), attributes rounding, levels
    y = scale * (base + code(variable)): code is trained, base is the rest of the grid; scale and base broadcast.
    rounding "adaround": code = clip(1.2 sigmoid(v) - 0.1, 0, 1), between two neighbours (Nagel et al., 2020);
    the name of a surrogate: code = round(clip(v, 0, levels)).

Backward, round has the derivative 1 (straight-through) times the factor of its surrogate. Elements that clip cut off
have none; the scale of an activation learns from all (LSQ, Esser et al., 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qcompile.autodiff.broadcasting import broadcast_dims, dims_of, unbroadcast
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, UnknownFormError, attribute, lowering, vjp
from qcompile.autodiff.rules.activations import inside, mask
from qcompile.autodiff.tape import Node, Tape
from qcompile.errors import InputError

DOMAIN = "qcompile"
STRETCH, SHIFT = 1.2, -0.1  # zeta - gamma and gamma of the rectified sigmoid

# surrogate -> (tape, where rounding took place: a thunk of x - round(x) in grid units, gradient) -> gradient
Surrogate = Callable[[Tape, Callable[[], Value], Value], Value]
SURROGATES: dict[str, Surrogate] = {
    "ste": lambda g, remainder, dy: dy,
}


@dataclass(frozen=True)
class Rounding:
    """How a trained variable becomes a code: `code(tape, node)`, and its derivative applied to a gradient."""

    code: Callable[[Tape, Node], Value]
    derivative: Callable[[Tape, Node, Value], Value]


# --- activations


@lowering("FakeQuantActivation", DOMAIN)
def _write_activation(g: Tape, node: Node) -> None:
    """QuantizeLinear, Clip on codes below 8 bits, DequantizeLinear: what the emitted file has, so the same numbers."""
    x, scale, chosen = node.inputs[0], node.inputs[1], node.input(2)
    levels, zero = _levels(node), np.uint8(attribute(node, "zero_point", 0))
    scale = g.reshape(scale, np.empty(0, np.int64))  # a scalar, whatever it is stored as
    codes = g.quantize_linear(x, scale, zero)
    if levels < 255:
        codes = g.clip(codes, np.uint8(0), np.uint8(levels))
    if not chosen:
        g.op("DequantizeLinear", codes, scale, zero, output=node.outputs[0])
        return
    change = g.sub(g.dequantize_linear(codes, scale, zero), x)
    g.op("Add", x, g.mul(change, mask(g, chosen)), output=node.outputs[0])


@vjp("FakeQuantActivation", domain=DOMAIN)
def _activation(g: Tape, node: Node, dy: Value) -> Gradients:
    """dx = dy where x stays on the grid or was not quantized; dscale = (<dy, y> - <dx, x>)/scale.

    The second follows from dy/dscale = (y - x [inside])/scale: two dot products instead of a chain over all elements.
    """
    x, scale, chosen, y = node.inputs[0], node.inputs[1], node.input(2), node.outputs[0]
    zero, step = float(attribute(node, "zero_point", 0)), g.reshape(scale, np.empty(0, np.int64))
    low, high = g.mul(step, -zero - 0.5), g.mul(step, _levels(node) - zero + 0.5)
    passing = inside(g, x, low, high)
    if chosen:
        passing = g.logical_or(passing, g.logical_not(chosen))
    straight = g.mul(dy, mask(g, passing))
    dscale = g.div(g.sub(_dot(g, dy, y), _dot(g, straight, x)), step)
    surrogate = _surrogate(attribute(node, "surrogate", "ste"))
    dx = surrogate(g, lambda: g.div(g.sub(x, y), step), straight)
    return dx, g.reshape(dscale, g.shape(scale))


def _levels(node: Node) -> int:
    bits = int(node.attributes["bits"])
    if not 2 <= bits <= 8:
        raise InputError(
            f"an activation of {bits} bits", where=f"node {node.name!r}", remedy="take 2 to 8: codes are uint8"
        )
    return (1 << bits) - 1


def _dot(g: Tape, a: Value, b: Value) -> Value:
    """Return the sum of products as [1, 1]: a Gemm of rows costs a third of Mul and ReduceSum."""
    return g.gemm(g.reshape(a, [1, -1]), g.reshape(b, [1, -1]), transB=1)


def _surrogate(name: str) -> Surrogate:
    if name not in SURROGATES:
        raise UnknownFormError(f"there is no rounding surrogate {name!r}; known: {', '.join(sorted(SURROGATES))}")
    return SURROGATES[name]


# --- weights


@lowering("FakeQuantWeight", DOMAIN)
def _write_weight(g: Tape, node: Node) -> None:
    scale, base = node.inputs[1:3]
    g.op("Mul", scale, g.add(base, _rounding(node).code(g, node)), output=node.outputs[0])


@vjp("FakeQuantWeight", domain=DOMAIN)
def _weight(g: Tape, node: Node, dy: Value) -> Gradients:
    """dvariable = dy scale code'; dscale = dy (base + code), summed to its shape."""
    variable, scale, base = node.inputs
    rounding = _rounding(node)
    dims = broadcast_dims(dims_of(g, variable), broadcast_dims(dims_of(g, scale), dims_of(g, base)))
    dcode = g.mul(dy, scale)
    dscale = g.mul(dy, g.add(base, rounding.code(g, node)))
    dvariable = rounding.derivative(g, node, unbroadcast(g, dcode, dims, variable))
    return dvariable, unbroadcast(g, dscale, dims, scale), unbroadcast(g, dcode, dims, base)


def _rounding(node: Node) -> Rounding:
    name = attribute(node, "rounding", "adaround")
    return ADAROUND if name == "adaround" else _nearest(_surrogate(name))


def _soft_code(g: Tape, node: Node) -> Value:
    return g.clip(g.add(g.mul(g.sigmoid(node.inputs[0]), STRETCH), SHIFT), 0.0, 1.0)


def _soft_derivative(g: Tape, node: Node, dcode: Value) -> Value:
    """1.2 s (1 - s) where the code is not cut off: a weight that has settled stays."""
    sigmoid = g.sigmoid(node.inputs[0])
    slope = g.mul(g.mul(sigmoid, g.sub(1.0, sigmoid)), STRETCH)
    return g.mul(g.mul(dcode, slope), mask(g, inside(g, _soft_code(g, node), 0.0, 1.0)))


ADAROUND = Rounding(_soft_code, _soft_derivative)


def _nearest(surrogate: Surrogate) -> Rounding:
    def clipped(g: Tape, node: Node) -> Value:
        return g.clip(node.inputs[0], 0.0, float(node.attributes["levels"]))

    def code(g: Tape, node: Node) -> Value:
        return g.round(clipped(g, node))

    def derivative(g: Tape, node: Node, dcode: Value) -> Value:
        passing = inside(g, node.inputs[0], 0.0, float(node.attributes["levels"]))
        straight = g.mul(dcode, mask(g, passing))
        return surrogate(g, lambda: g.sub(clipped(g, node), code(g, node)), straight)

    return Rounding(code, derivative)
