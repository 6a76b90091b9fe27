"""Resize, which is linear and works on one axis after the other: its transpose is a matrix per axis."""

from __future__ import annotations

import numpy as np

from qcompile.autodiff.broadcasting import axis_of, dims_of, inverse, permuted, rank_of, size_along
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, UnknownFormError, attribute, vjp
from qcompile.autodiff.tape import Dim, Node, Tape

SHAPE_ATTRIBUTES = {"axes", "keep_aspect_ratio_policy"}


@vjp("Resize")
def _resize(g: Tape, node: Node, dy: Value) -> Gradients:
    """dx = A dy along every resized axis, with A' what the operator itself makes of the identity matrix."""
    before, after = dims_of(g, node.inputs[0]), dims_of(g, node.outputs[0])
    if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise UnknownFormError("it crops")
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnknownFormError("it keeps the aspect ratio")
    if any(_differ(*pair) for pair in zip(before[:2], after[:2])):
        raise UnknownFormError("it resizes batch or channels")
    gradient = dy
    for axis in range(2, len(before)):
        scale = _scale(g, node, axis)
        if scale != 1 and (before[axis] is None or before[axis] != after[axis]):
            gradient = _along(g, gradient, _matrix(g, node, axis, scale), axis, len(before))
    return (gradient,)


def _differ(before: Dim, after: Dim) -> bool:
    return isinstance(before, int) and isinstance(after, int) and before != after


def _matrix(g: Tape, node: Node, axis: int, scale: float | None) -> Value:
    """Return A [size, resized]: row i is what becomes of a 1 at position i."""
    size, resized = (g.value(size_along(g, value, axis)) for value in (node.inputs[0], node.outputs[0]))
    known = g.constant(size)
    if known is None:
        identity = g.op("EyeLike", g.expand(0.0, g.concat(size, size, axis=0)))
    else:
        identity = g.value(np.eye(known.item(), dtype=g.float_type))
    kept = {name: value for name, value in node.attributes.items() if name not in SHAPE_ATTRIBUTES}
    image = g.unsqueeze(identity, [0, 1])
    if scale is None:
        return g.squeeze(g.resize(image, "", "", g.concat([1, 1], size, resized, axis=0), **kept), [0, 1])
    return g.squeeze(g.resize(image, "", np.array([1, 1, 1, scale], np.float32), **kept), [0, 1])


def _scale(g: Tape, node: Node, axis: int) -> float | None:
    """Return the scale along `axis` if the node was given scales: they place the samples, not the rounded sizes."""
    if not node.input(2):
        return None
    scales = g.constant(node.input(2))
    if scales is None:
        raise UnknownFormError("its scales are not constant")
    if not scales.size:  # how older exporters leave them out
        return None
    rank = rank_of(g, node.inputs[0])
    axes = [axis_of(item, rank) for item in attribute(node, "axes", range(rank))]
    return float(scales[axes.index(axis)]) if axis in axes else 1.0


def _along(g: Tape, gradient: Value, matrix: Value, axis: int, rank: int) -> Value:
    """Multiply [size, resized] into one axis."""
    if axis == rank - 1:
        return g.matmul(gradient, g.transpose(matrix, perm=[1, 0]))
    if axis == rank - 2:
        return g.matmul(matrix, gradient)
    order = [other for other in range(rank) if other != axis]
    behind = g.matmul(g.transpose(gradient, perm=[*order, axis]), g.transpose(matrix, perm=[1, 0]))
    return permuted(g, behind, inverse([*order, axis]))
