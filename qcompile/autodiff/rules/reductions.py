"""Sums, means, extremes and norms over axes."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import helper

from qcompile.autodiff.broadcasting import dims_of, rank_of, shape, sizes
from qcompile.autodiff.operators import Operand, Value
from qcompile.autodiff.registry import Gradients, attribute, vjp
from qcompile.autodiff.rules.activations import mask
from qcompile.autodiff.tape import Node, Tape


@vjp("ReduceSum")
def _reduce_sum(g: Tape, node: Node, dy: Value) -> Gradients:
    """dy, repeated."""
    return g.expand(_kept(g, node, dy), shape(g, node.inputs[0])), None


@vjp("ReduceMean")
def _reduce_mean(g: Tape, node: Node, dy: Value) -> Gradients:
    """dy divided by the number of elements of each mean, repeated."""
    x, y = node.inputs[0], node.outputs[0]
    share = g.div(_kept(g, node, dy), ratio(g, x, y))
    return g.expand(share, shape(g, x)), None


@vjp("ReduceMax", "ReduceMin")
def _reduce_extreme(g: Tape, node: Node, dy: Value) -> Gradients:
    """Elements that equal the extreme share dy."""
    x = node.inputs[0]
    chosen = mask(g, g.equal(x, _kept(g, node, node.outputs[0])))
    count = _kept(g, node, g.op(*["ReduceSum", chosen, *node.inputs[1:]], **node.attributes))
    return g.mul(chosen, g.div(_kept(g, node, dy), count)), None


@vjp("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
def _reduce_norm(g: Tape, node: Node, dy: Value) -> Gradients:
    """dy times the slope of the norm y: sign x, x / y, 2x, exp(x - y)."""
    x, y = node.inputs[0], _kept(g, node, node.outputs[0])
    slope = SLOPES[node.op](g, x, y)
    return g.mul(slope, _kept(g, node, dy)), None


TINY = 1e-30  # the norm of zeros has the slope 0
SLOPES: dict[str, Callable[[Tape, Value, Value], Value]] = {
    "ReduceL1": lambda g, x, y: g.sign(x),
    "ReduceL2": lambda g, x, y: g.div(x, g.max(y, TINY)),
    "ReduceSumSquare": lambda g, x, y: g.mul(x, 2.0),
    "ReduceLogSumExp": lambda g, x, y: g.exp(g.sub(x, y)),
}


def ratio(g: Tape, large: Value, small: Value) -> Operand:
    """Return how many elements of `large` there are for one of `small`; equal symbols, such as the batch, cancel."""
    whole, part = list(dims_of(g, large)), list(dims_of(g, small))
    for symbol in [dim for dim in part if isinstance(dim, str) and dim in whole]:
        part.remove(symbol)
        whole.remove(symbol)
    above, below = sizes(whole), sizes(part)
    if above is None or below is None:
        kind = helper.np_dtype_to_tensor_dtype(g.float_type)
        return g.div(g.cast(g.size(large), to=kind), g.cast(g.size(small), to=kind))
    return math.prod(above) / math.prod(below)


def _kept(g: Tape, node: Node, reduced: Value) -> Value:
    """Give a reduced value its dimensions of size 1 back."""
    axes = node.input(1)
    known = g.constant(axes) if axes else None
    empty = not axes or (known is not None and known.size == 0)
    if attribute(node, "keepdims", 1) or (empty and attribute(node, "noop_with_empty_axes", 0)):
        return reduced
    return g.reshape(reduced, [1] * rank_of(g, node.inputs[0])) if empty else g.unsqueeze(reduced, axes)
