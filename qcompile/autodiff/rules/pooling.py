"""Pools."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.autodiff.broadcasting import dims_of, shape, sizes
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, UnknownFormError, attribute, vjp
from qcompile.autodiff.rules.movement import add_at
from qcompile.autodiff.rules.reductions import ratio
from qcompile.autodiff.rules.windows import Window, spread, window_of
from qcompile.autodiff.tape import Node, Tape


@vjp("MaxPool")
def _max_pool(g: Tape, node: Node, dy: Value, indices: Value | None = None) -> Gradients:
    """Each maximum receives dy; of equal ones the first, which is the one that ONNX Runtime's indices name."""
    if attribute(node, "storage_order", 0):
        raise UnknownFormError("its indices are in column order")
    return add_at(g, node.inputs[0], g.extra_output(node, 1), dy)


@vjp("AveragePool")
def _average_pool(g: Tape, node: Node, dy: Value) -> Gradients:
    """Every element of a window receives its share of dy: a transposed convolution, channel by channel, with ones."""
    x = node.inputs[0]
    channels = dims_of(g, x)[1]
    if not isinstance(channels, int):
        raise UnknownFormError("the number of channels is unknown")
    if attribute(node, "ceil_mode", 0) and sizes(dims_of(g, node.outputs[0])[2:]) is None:
        raise UnknownFormError("ceil_mode needs known sizes")
    kernel = tuple(node.attributes["kernel_shape"])
    window = window_of(g, node, kernel)
    ones = np.full((channels, 1, *kernel), 1 / math.prod(kernel), g.float_type)
    if any(window.pads) and not attribute(node, "count_include_pad", 0):
        dy = g.div(dy, _covered(g, x, ones[:1], window))
        g.describe(dy, like=node.outputs[0])
    return spread(g, dy, ones, window.grouped(channels), like=x)


def _covered(g: Tape, x: Value, ones: NDArray[Any], window: Window) -> Value:
    """Return what fraction of each window is not padding, [1, 1, ...]: the same convolution of an image of ones."""
    dims = sizes(dims_of(g, x)[2:])
    image = g.concat([1, 1], g.shape(x, start=2), axis=0) if dims is None else np.array([1, 1, *dims], np.int64)
    return g.conv(g.expand(1.0, image), ones, **window.attributes)


@vjp("GlobalAveragePool")
def _global_average_pool(g: Tape, node: Node, dy: Value) -> Gradients:
    """dy divided by the number of positions, repeated."""
    x, y = node.inputs[0], node.outputs[0]
    return g.expand(g.div(dy, ratio(g, x, y)), shape(g, x))
