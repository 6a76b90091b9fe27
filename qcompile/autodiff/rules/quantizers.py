"""Fake quantization of activations and of weights, and what it is trained for: operators of our own.

FakeQuantActivation(x, scale, mask), attributes low, high, container, zero_point, surrogate
    y = scale * (clip(round(x / scale) + zero_point, low, high) - zero_point), the codes in the type `container`; where
    mask is given and False, y = x (QDrop, Wei et al., 2022). scale is one number, mask has the shape of x.
FakeQuantWeight(variable, scale, base, stretch), attributes rounding, levels
    y = scale * (base + code(variable)): code is trained, base is the rest of the grid; scale and base broadcast.
    rounding "adaround": code = clip(stretch (sigmoid(v) - 1/2) + 1/2, 0, 1), between two neighbours (Nagel et al.,
    2020, with a stretch of 1.2); the larger stretch, a number, is, the harder they are rounded;
    the name of a surrogate: code = round(clip(v, 0, levels)), without stretch.
RoundingPenalty(variable, exponent, stretch)
    y = sum of 1 - |2h - 1|^exponent with h = clip(stretch (sigmoid(v) - 1/2) + 1/2, 0, 1) (Nagel et al., 2020).
SquaredError(a, b)
    y = sum of (a - b)^2.

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
from qcompile.autodiff.rules.activations import inside, mask, masked
from qcompile.autodiff.tape import Node, Tape
from qcompile.errors import InputError
from qcompile.quant.grid import Grid

DOMAIN = "qcompile"
SMALLEST = 1e-12  # distance from the middle between two codes whose logarithm is still taken

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
    """QuantizeLinear, Clip on codes of a narrow grid, DequantizeLinear: as in the emitted file, so the same numbers."""
    x, scale, chosen = node.inputs[0], node.inputs[1], node.input(2)
    grid = grid_of(node)
    zero, low, high = np.array([attribute(node, "zero_point", 0), grid.low, grid.high], grid.dtype)
    scale = g.reshape(scale, np.empty(0, np.int64))  # a scalar, whatever it is stored as
    codes = g.quantize_linear(x, scale, zero)
    if grid.is_narrow:
        codes = g.clip(codes, low, high)
    if not chosen:
        g.op("DequantizeLinear", codes, scale, zero, output=node.outputs[0])
        return
    g.op("Where", chosen, g.dequantize_linear(codes, scale, zero), x, output=node.outputs[0])


@vjp("FakeQuantActivation", domain=DOMAIN)
def _activation(g: Tape, node: Node, dy: Value) -> Gradients:
    """dx = dy where x stays on the grid or was not quantized; dscale = (<dy, y> - <dx, x>)/scale.

    The second follows from dy/dscale = (y - x [inside])/scale: two dot products instead of a chain over all elements.
    """
    x, scale, chosen, y = node.inputs[0], node.inputs[1], node.input(2), node.outputs[0]
    zero, step = float(attribute(node, "zero_point", 0)), g.reshape(scale, np.empty(0, np.int64))
    grid = grid_of(node)
    low, high = g.mul(step, grid.low - zero - 0.5), g.mul(step, grid.high - zero + 0.5)
    passing = inside(g, x, low, high)
    if chosen:
        passing = g.logical_or(passing, g.logical_not(chosen))
    straight = masked(g, dy, passing)
    dscale = g.div(g.sub(_dot(g, dy, y), _dot(g, straight, x)), step)
    surrogate = _surrogate(attribute(node, "surrogate", "ste"))
    dx = surrogate(g, lambda: g.div(g.sub(x, y), step), straight)
    return dx, g.reshape(dscale, g.shape(scale))


def grid_of(node: Node) -> Grid:
    """Return the codes of a FakeQuantActivation."""
    grid = Grid(*(node.attributes[name] for name in ("low", "high", "container")))
    if not grid.is_held:
        raise InputError(f"codes {grid}", where=f"node {node.name!r}", remedy="take codes that the type has")
    return grid


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
    variable, scale, base, *stretch = node.inputs
    rounding = _rounding(node)
    dims = broadcast_dims(dims_of(g, variable), broadcast_dims(dims_of(g, scale), dims_of(g, base)))
    dcode = g.mul(dy, scale)
    dscale = g.mul(dy, g.add(base, rounding.code(g, node)))
    dvariable = rounding.derivative(g, node, unbroadcast(g, dcode, dims, variable))
    return dvariable, unbroadcast(g, dscale, dims, scale), unbroadcast(g, dcode, dims, base), *(None for _ in stretch)


def _rounding(node: Node) -> Rounding:
    name = attribute(node, "rounding", "adaround")
    return ADAROUND if name == "adaround" else _nearest(_surrogate(name))


def _soft_code(g: Tape, node: Node) -> Value:
    variable, *_, stretch = node.inputs
    return g.clip(g.add(g.mul(g.sub(g.sigmoid(variable), 0.5), stretch), 0.5), 0.0, 1.0)


def _soft_derivative(g: Tape, node: Node, dcode: Value) -> Value:
    """Stretch s (1 - s) where the code is not cut off: a weight that has settled stays."""
    variable, *_, stretch = node.inputs
    sigmoid = g.sigmoid(variable)
    slope = g.mul(g.mul(sigmoid, g.sub(1.0, sigmoid)), stretch)
    code = _soft_code(g, node)
    return g.mul(dcode, g.mul(slope, mask(g, inside(g, code, 0.0, 1.0))))


ADAROUND = Rounding(_soft_code, _soft_derivative)


def _nearest(surrogate: Surrogate) -> Rounding:
    def clipped(g: Tape, node: Node) -> Value:
        return g.clip(node.inputs[0], 0.0, float(node.attributes["levels"]))

    def code(g: Tape, node: Node) -> Value:
        return g.round(clipped(g, node))

    def derivative(g: Tape, node: Node, dcode: Value) -> Value:
        passing = inside(g, node.inputs[0], 0.0, float(node.attributes["levels"]))
        straight = masked(g, dcode, passing)
        return surrogate(g, lambda: g.sub(clipped(g, node), code(g, node)), straight)

    return Rounding(code, derivative)


# --- what is trained for


@lowering("RoundingPenalty", DOMAIN)
def _write_penalty(g: Tape, node: Node) -> None:
    decided = g.pow(g.abs(_undecided(g, node)), node.inputs[1])
    g.op("ReduceSum", g.sub(1.0, decided), output=node.outputs[0], keepdims=0)


@vjp("RoundingPenalty", domain=DOMAIN)
def _penalty(g: Tape, node: Node, dy: Value) -> Gradients:
    """-2 e t |t|^(e - 2) by h, with t = 2h - 1; the power as exp(k log), which costs half of Pow."""
    side, exponent = _undecided(g, node), node.inputs[1]
    distance = g.max(g.abs(side), SMALLEST)
    power = g.exp(g.mul(g.log(distance), g.sub(exponent, 2.0)))
    dcode = g.mul(g.mul(side, power), g.mul(dy, g.mul(exponent, -2.0)))
    return _soft_derivative(g, node, dcode), None, None


def _undecided(g: Tape, node: Node) -> Value:
    """Return 2h - 1: -1 and 1 are decided, 0 is in the middle."""
    return g.sub(g.mul(_soft_code(g, node), 2.0), 1.0)


@lowering("SquaredError", DOMAIN)
def _write_error(g: Tape, node: Node) -> None:
    off = g.sub(*node.inputs)
    g.op("Reshape", _dot(g, off, off), np.empty(0, np.int64), output=node.outputs[0])


@vjp("SquaredError", domain=DOMAIN)
def _error(g: Tape, node: Node, dy: Value) -> Gradients:
    slope = g.mul(g.sub(*node.inputs), g.mul(dy, 2.0))
    return slope, g.neg(slope)
