"""Convolutions of any rank. The gradient of the weight has several forms, the fastest that fits is taken."""

from __future__ import annotations

import numpy as np

from qcompile.autodiff.broadcasting import dims_of, reshape_like, size_along, sizes
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, UnknownFormError, vjp
from qcompile.autodiff.rules.matrices import transposed
from qcompile.autodiff.rules.windows import Window, spread, window_of
from qcompile.autodiff.tape import Node, Tape


@vjp("Conv")
def _conv(g: Tape, node: Node, dy: Value) -> Gradients:
    """dx is the transposed convolution of dy; dw correlates x with dy; db sums dy over batch and positions."""
    x, weight = node.inputs[:2]
    window = window_of(g, node, _kernel(g, weight))
    dx = spread(g, dy, weight, window, like=x)
    return dx, weight_gradient(g, x, dy, window, weight), g.reduce_sum(dy, [0, *window.spatial], keepdims=0)


@vjp("ConvTranspose")
def _conv_transpose(g: Tape, node: Node, dy: Value) -> Gradients:
    """The roles of x and dy are those of a convolution's output and input, with the same weight."""
    x, weight = node.inputs[:2]
    window = window_of(g, node, _kernel(g, weight))
    dx = g.conv(dy, weight, **window.attributes)
    return dx, weight_gradient(g, dy, x, window, weight), g.reduce_sum(dy, [0, *window.spatial], keepdims=0)


def weight_gradient(g: Tape, x: Value, dy: Value, window: Window, weight: Value) -> Value:
    """Return the gradient [O, I/group, ...] of the weight of a convolution: x is [N, I, ...] and dy [N, O, ...]."""
    plain = all(stride == 1 for stride in window.strides)
    if plain and window.group == 1 and all(size == 1 for size in window.kernel) and not any(window.pads):
        return _pointwise(g, x, dy, weight)
    if plain and window.rank == 2 and _keeps_size(g, x, dy, window):
        return _shifted(g, x, dy, window, weight)
    return _swapped(g, x, dy, window)


def _keeps_size(g: Tape, x: Value, dy: Value, window: Window) -> bool:
    """Say whether output and input are of one size; output_padding may make an exception from what the pads say."""
    sums = tuple(front + behind + 1 for front, behind in zip(window.front, window.behind))
    return sums == window.extent and dims_of(g, x)[2:] == dims_of(g, dy)[2:]


def _kernel(g: Tape, weight: Value) -> tuple[int, ...]:
    kernel = sizes(dims_of(g, weight)[2:])
    if kernel is None:
        raise UnknownFormError("the kernel's size is unknown")
    return tuple(kernel)


def _channels(g: Tape, weight: Value) -> tuple[int, int]:
    """Return the first two dimensions of a weight."""
    outer, inner = dims_of(g, weight)[:2]
    if not isinstance(outer, int) or not isinstance(inner, int):
        raise UnknownFormError("the number of channels is unknown")
    return outer, inner


def _pointwise(g: Tape, x: Value, dy: Value, weight: Value) -> Value:
    """Kernel 1: a product of matrices over positions, per sample; then the sum over samples.

    The one with fewer channels is transposed.
    """
    inner, outer = (g.reshape(value, [0, 0, -1]) for value in (x, dy))
    few, many = dims_of(g, x)[1], dims_of(g, dy)[1]
    if isinstance(few, int) and isinstance(many, int) and few <= many:
        total = g.reduce_sum(g.matmul(outer, transposed(g, inner, 3)), [0], keepdims=0)
    else:
        total = transposed(g, g.reduce_sum(g.matmul(inner, transposed(g, outer, 3)), [0], keepdims=0), 2)
    return reshape_like(g, total, weight)


def _shifted(g: Tape, x: Value, dy: Value, window: Window, weight: Value) -> Value:
    """Stride 1, output as large as the input: x shifted along the columns, dy along the rows, a product per group.

    dw[o, i, r, c] sums dy[o, p - r', q] x[i, p, q + c'] over p and q, with r' and c' the offsets of tap (r, c); so the
    k*k shifts of an im2col become k of x and k of dy. For depthwise kernels this is up to twice as fast as `_swapped`.
    """
    (rows, columns), group = window.kernel, window.group
    outer, inner = _channels(g, weight)
    by_row, by_column = (
        [tap * dilation - front for tap in range(size)]
        for size, dilation, front in zip(window.kernel, window.dilations, window.front)
    )
    xs = [g.reshape(_shift(g, x, 3, offset), [0, group, inner, -1]) for offset in by_column]
    ds = [g.reshape(_shift(g, dy, 2, -offset), [0, group, outer // group, -1]) for offset in by_row]
    product = g.matmul(g.concat(*xs, axis=2), transposed(g, g.concat(*ds, axis=2), 4))
    total = g.reduce_sum(product, [0], keepdims=0)
    taps = g.reshape(total, [group, columns, inner, rows, outer // group])
    return g.reshape(g.transpose(taps, perm=[0, 4, 2, 3, 1]), [outer, inner, rows, columns])


def _shift(g: Tape, value: Value, axis: int, offset: int) -> Value:
    """Move the content forward by `offset`: result[i] = value[i + offset], zeros where that is outside."""
    return g.pad(value, [-offset, offset], "", [axis]) if offset else value


def _swapped(g: Tape, x: Value, dy: Value, window: Window) -> Value:
    """Any form: a convolution whose batch are the channels of x, whose kernel is dy, whose channels are the samples.

    Strides and dilations change places. Behind a stride that left rows over, the result is cropped to the kernel.
    """
    axes, group = window.spatial, window.group
    data, kernel = g.transpose(x, perm=[1, 0, *axes]), g.transpose(dy, perm=[1, 0, *axes])
    if group > 1:
        known = sizes(dims_of(g, x)[2:])
        spatial = g.shape(x, start=2) if known is None else np.array(known, np.int64)
        parts = g.reshape(data, g.concat([group, -1], size_along(g, x, 0), spatial, axis=0))
        swapped = g.transpose(parts, perm=[1, 0, 2, *(axis + 1 for axis in axes)])
        data = g.reshape(swapped, g.concat([0, -1], spatial, axis=0))
    places = {"strides": window.dilations, "dilations": window.strides, "pads": window.pads, "group": group}
    result = g.conv(data, kernel, **places)
    if any(stride > 1 for stride in window.strides):
        result = g.slice(result, [0] * window.rank, list(window.kernel), axes)
    return g.transpose(result, perm=[1, 0, *axes])
