"""Operators that pick elements: what is picked receives its gradient, what is not receives zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from qcompile.autodiff.broadcasting import axis_of, dims_of, inverse, permuted, rank_of, reshape_like, sizes, zeros_like
from qcompile.autodiff.operators import Operand, Value
from qcompile.autodiff.registry import Gradients, attribute, vjp
from qcompile.autodiff.tape import Node, Tape


@vjp("Slice")
def _slice(g: Tape, node: Node, dy: Value) -> Gradients:
    """Pad dy with zeros where a step of 1 and known sizes allow it; else put each element back by its index."""
    pads = _pads_of_slice(g, node)
    if pads is None:
        return (scattered(g, node.inputs[0], dy, lambda indices: g.slice(indices, *node.inputs[1:])),)
    return (g.pad(dy, np.array(pads, np.int64)),)


def _pads_of_slice(g: Tape, node: Node) -> list[int] | None:
    dims = dims_of(g, node.inputs[0])
    given = [g.constant(node.input(index)) for index in range(1, 5)]
    if (
        given[0] is None
        or given[1] is None
        or any(value is None and node.input(3 + i) for i, value in enumerate(given[2:]))
    ):
        return None
    starts, ends = given[0].tolist(), given[1].tolist()
    axes = list(range(len(starts))) if given[2] is None else [axis_of(axis, len(dims)) for axis in given[2].tolist()]
    known = sizes([dims[axis] for axis in axes])
    if known is None or (given[3] is not None and any(given[3] != 1)):
        return None
    pads = [0] * (2 * len(dims))
    for axis, size, start, end in zip(axes, known, starts, ends):
        first, last, _ = slice(start, end).indices(size)
        pads[axis], pads[axis + len(dims)] = first, size - max(first, last)
    return pads


@vjp("Pad")
def _pad(g: Tape, node: Node, dy: Value) -> Gradients:
    """Negative pads cut off what was added. Copies of elements (edge, reflect, wrap) are added back to them."""
    x, pads, value, axes = node.inputs[0], node.inputs[1], node.input(2), node.input(3)
    mode = attribute(node, "mode", "constant")
    if mode != "constant":
        return (scattered(g, x, dy, lambda indices: g.pad(indices, pads, "", axes, mode=mode)),)
    dx = g.pad(dy, g.neg(pads), "", axes)
    if not value:
        return (dx,)
    border = g.sub(dy, g.pad(dx, pads, "", axes))  # summed alone: two sums over all would cancel out
    return dx, None, reshape_like(g, g.reduce_sum(border, keepdims=0), value)


@vjp("Gather")
def _gather(g: Tape, node: Node, dy: Value) -> Gradients:
    """Add the rows of dy to the rows of zeros that they were picked from; the axis is brought to the front."""
    x, indices = node.inputs
    rank, picked = rank_of(g, x), rank_of(g, indices)
    axis = axis_of(attribute(node, "axis", 0), rank)
    order = [axis, *(other for other in range(rank) if other != axis)]
    front = list(range(axis, axis + picked))
    updates_order = [*front, *(other for other in range(rank + picked - 1) if other not in front)]
    zeros, updates = permuted(g, zeros_like(g, x), order), permuted(g, dy, updates_order)
    total = g.scatter_nd(zeros, g.unsqueeze(_wide(g, indices), [-1]), updates, reduction="add")
    return permuted(g, total, inverse(order)), None


@vjp("GatherElements")
def _gather_elements(g: Tape, node: Node, dy: Value) -> Gradients:
    """Add each element of dy to the one that it was picked from."""
    x, indices = node.inputs
    axis = attribute(node, "axis", 0)
    return g.scatter_elements(zeros_like(g, x), indices, dy, axis=axis, reduction="add"), None


def scattered(g: Tape, x: Value, dy: Value, move: Callable[[Value], Value]) -> Value:
    """Differentiate an operator that copies elements: `move`, applied to their indices, says where dy belongs."""
    dims = sizes(dims_of(g, x))
    indices: Operand
    if dims is not None:
        indices = np.arange(int(np.prod(dims)), dtype=np.int64).reshape(dims)
    else:
        indices = g.reshape(g.range(np.int64(0), g.size(x), np.int64(1)), g.shape(x))
    return add_at(g, x, move(g.value(indices)), dy)


def add_at(g: Tape, x: Value, indices: Value, dy: Value) -> Value:
    """Add the elements of dy to zeros of the shape of x, at `indices` into x's elements in order."""
    flat_zeros = g.expand(0.0, g.unsqueeze(_count(g, x), [0]))
    flat = g.scatter_elements(flat_zeros, g.reshape(indices, [-1]), g.reshape(dy, [-1]), axis=0, reduction="add")
    return reshape_like(g, flat, x)


def _count(g: Tape, x: Value) -> Operand:
    dims = sizes(dims_of(g, x))
    return g.size(x) if dims is None else np.int64(np.prod(dims, dtype=np.int64))


def _wide(g: Tape, indices: Value) -> Value:
    """ScatterND takes int64 only."""
    return indices if g.dtype(indices) == np.int64 else g.cast(indices, to=TensorProto.INT64)
