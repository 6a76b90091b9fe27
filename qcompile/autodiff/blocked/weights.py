"""Gradients of the weights of blocked convolutions.

All forms share one idea: the sum over positions and samples becomes the sum over channels and kernel of another blocked
convolution, in which one operand already lies in memory as a weight has to. Which form is fast depends on the shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.autodiff.blocked.layout import NCHWC, cut, moved, unpack, view
from qcompile.autodiff.operators import Value
from qcompile.autodiff.rules.convolution import weight_gradient
from qcompile.autodiff.tape import Tape

if TYPE_CHECKING:
    from qcompile.autodiff.blocked.convolution import Layer

SMALL_IMAGE = 400  # positions up to which samples make better lanes than a product per sample


def gradient(g: Tape, x: Value, dy: Value, layer: Layer, weight: Value) -> Value:
    """Return the gradient [O, I/group, kh, kw] by the fastest form that fits."""
    if layer.depthwise:
        return _depthwise(g, x, dy, layer)
    if not layer.from_plain:
        if _is_pointwise(layer) and _grouped(layer):
            return _pointwise(g, x, dy, layer)
        if _keeps_size(layer):
            if layer.image[1] % layer.block == 0:
                return _by_rows(g, x, dy, layer)
            if layer.count % layer.block == 0 and layer.image[0] * layer.image[1] <= SMALL_IMAGE:
                return _by_samples(g, x, dy, layer)
        elif _grouped(layer) and not _is_plain(layer):
            return _by_taps(g, x, dy, layer)
    plain_x = x if layer.from_plain else unpack(g, x, layer.dx_shape)
    return weight_gradient(g, plain_x, unpack(g, dy, layer.dy_shape), layer.window, weight)


def _is_plain(layer: Layer) -> bool:
    return all(stride == 1 for stride in layer.window.strides)


def _is_pointwise(layer: Layer) -> bool:
    return _is_plain(layer) and layer.window.kernel == (1, 1) and not any(layer.window.pads)


def _keeps_size(layer: Layer) -> bool:
    """Say whether stride and dilation are 1 and the pads, equal in front and behind, make up for an odd kernel."""
    window = layer.window
    return (
        _is_plain(layer)
        and window.dilations == (1, 1)
        and window.front == window.behind
        and all(2 * pad + 1 == size for pad, size in zip(window.front, window.kernel))
    )


def _grouped(layer: Layer) -> int:
    """Return how many samples make their positions a multiple of the block, 0 if the batch cannot be cut so."""
    positions, samples = layer.result[0] * layer.result[1], 1
    while samples * positions % layer.block:
        samples *= 2
    return 0 if layer.count % samples else samples


def _depthwise(g: Tape, x: Value, dy: Value, layer: Layer) -> Value:
    """Every channel of every sample is a group of its own: x slides over dy as its kernel."""
    window, block = layer.window, layer.block
    channels = layer.count * layer.wide_out
    reach = [stride * (size - 1) + 1 for stride, size in zip(window.strides, layer.result)]
    ends = [
        dilation * (taps - 1) + extent - size - front
        for dilation, taps, extent, size, front in zip(
            window.dilations, window.kernel, reach, layer.image, window.front
        )
    ]
    behind = [max(end, 0) for end in ends]  # rows that a stride left over make taps too many
    sums = g.op(
        "Conv", view(g, x, 1, channels, *layer.image), view(g, dy, channels, 1, *layer.result), domain=NCHWC,
        kernel_shape=layer.result, group=channels, pads=(*window.front, *behind),
        strides=window.dilations, dilations=window.strides,
    )  # fmt: skip
    found = [
        (size + front + end - extent) // dilation + 1
        for size, front, end, extent, dilation in zip(layer.image, window.front, behind, reach, window.dilations)
    ]
    rows, columns = window.kernel
    if tuple(found) != window.kernel:
        taps = view(g, sums, channels // block, *found, block)
        sums = g.slice(taps, [0, 0], [rows, columns], [1, 2])
    total = g.reduce_sum(view(g, sums, layer.count, -1, rows * columns, block), [0], keepdims=0)
    weight = view(g, g.transpose(total, perm=[0, 2, 1]), layer.wide_out, 1, rows, columns)
    return cut(g, weight, [layer.outer], [layer.wide_out])


def _pointwise(g: Tape, x: Value, dy: Value, layer: Layer) -> Value:
    """Kernel 1: positions are the channels that are summed."""
    outer, inner = layer.wide_out, layer.wide_in
    if outer >= inner:
        sums = _products(g, x, (layer.count, layer.inner, *layer.result), dy, outer, layer)  # [O/B, I, B]
        weight = view(g, g.transpose(sums, perm=[0, 2, 1]), outer, layer.inner, 1, 1)
        return cut(g, weight, [layer.outer], [outer])
    sums = _products(g, dy, layer.dy_shape, x, inner, layer)  # [I/B, O, B]
    weight = view(g, g.transpose(sums, perm=[1, 0, 2]), layer.outer, inner, 1, 1)
    return cut(g, weight, [layer.outer, layer.inner], [layer.outer, inner])


def _products(g: Tape, small: Value, small_shape: tuple[int, ...], big: Value, wide: int, layer: Layer) -> Value:
    """Return sums over samples and positions of products, [wide/B, channels of small, B].

    `big` stays as it lies and is read as the weight of a convolution; only `small` is rearranged, to be its input.
    """
    block, samples, positions = layer.block, _grouped(layer), layer.result[0] * layer.result[1]
    channels, groups = small_shape[1], layer.count // samples
    few = unpack(g, small, small_shape)
    if samples > 1:
        few = g.transpose(view(g, few, groups, samples, channels, positions), perm=[0, 2, 1, 3])
        parts = view(g, big, groups, samples, wide // block, positions * block)
        big = g.transpose(parts, perm=[0, 2, 1, 3])
    few = view(g, few, groups, channels, samples * positions // block, block)
    few = g.transpose(few, perm=[0, 2, 1, 3])
    sums = g.op(
        "Conv", view(g, few, 1, layer.count * positions, 1, channels),
        view(g, big, groups * wide, samples * positions, 1, 1), domain=NCHWC, group=groups, kernel_shape=(1, 1),
    )  # fmt: skip
    return g.reduce_sum(view(g, sums, groups, wide // block, channels, block), [0], keepdims=0)


def _by_taps(g: Tape, x: Value, dy: Value, layer: Layer) -> Value:
    """Behind a stride: x once for each tap, at the positions that the tap reads; then as for kernel 1."""
    window, block = layer.window, layer.block
    blocks, (rows, columns) = layer.wide_in // block, window.kernel
    cells = view(g, x, layer.count, blocks, *layer.image, block)
    if any(window.pads):
        (top, left), (bottom, right) = window.front, window.behind
        cells = g.pad(cells, [0, 0, top, left, 0, 0, 0, bottom, right, 0])
    taps = []
    for row in range(rows):
        for column in range(columns):
            starts = [row * window.dilations[0], column * window.dilations[1]]
            ends = [
                start + (size - 1) * stride + 1 for start, size, stride in zip(starts, layer.result, window.strides)
            ]
            taps.append(g.slice(cells, starts, ends, [2, 3], list(window.strides)))
    together = g.concat(*taps, axis=1) if len(taps) > 1 else taps[0]
    sums = _products(g, dy, layer.dy_shape, together, rows * columns * layer.wide_in, layer)  # [kh kw I/B, O, B]
    parts = view(g, sums, rows * columns, blocks, layer.outer, block)
    weight = view(g, g.transpose(parts, perm=[2, 1, 3, 0]), layer.outer, layer.wide_in, rows, columns)
    return cut(g, weight, [layer.outer, layer.inner], [layer.outer, layer.wide_in])


def _by_rows(g: Tape, x: Value, dy: Value, layer: Layer) -> Value:
    """Lanes are neighbouring columns, the kernel spans all rows: one convolution for each column of the kernel."""
    block, (rows, columns), (height, width) = layer.block, layer.window.kernel, layer.image
    blocks, pad = layer.wide_out // block, layer.window.front
    lines = view(g, dy, layer.count, blocks, height, width * block)
    data = g.transpose(unpack(g, x, layer.dx_shape), perm=[0, 2, 1, 3])  # [N, H, I, W]
    data = view(g, data, 1, layer.count * block, height, layer.inner * width // block)
    kernels = [
        view(
            g, moved(g, lines, (pad[1] - c) * block, 3, 4), layer.count * layer.wide_out, block, height, width // block
        )
        for c in range(columns)
    ]
    sums = [
        g.op(
            "Conv", data, kernel, domain=NCHWC, group=layer.count, kernel_shape=(height, width // block),
            strides=(1, width // block), pads=(pad[0], 0, pad[0], 0),
        )
        for kernel in kernels
    ]  # fmt: skip
    totals = [g.reduce_sum(view(g, part, layer.count, -1), [0], keepdims=0) for part in sums]
    taps = [view(g, total, blocks, rows, layer.inner, block, 1) for total in totals]
    together = g.concat(*taps, axis=4) if columns > 1 else taps[0]
    weight = view(g, g.transpose(together, perm=[0, 3, 2, 1, 4]), layer.wide_out, layer.inner, rows, columns)
    return cut(g, weight, [layer.outer], [layer.wide_out])


def _by_samples(g: Tape, x: Value, dy: Value, layer: Layer) -> Value:
    """Lanes are samples, one convolution for each column of the kernel: for small images."""
    block, (rows, columns), (height, width) = layer.block, layer.window.kernel, layer.image
    pad, batches, blocks = layer.window.front, layer.count // layer.block, layer.wide_out // layer.block
    plain = view(g, unpack(g, x, layer.dx_shape), 1, layer.count, 1, layer.inner * height * width)
    lanes = view(g, g.op("ReorderInput", plain, domain=NCHWC), batches, layer.inner, height, width, block)
    data = g.transpose(lanes, perm=[0, 3, 2, 1, 4])  # [N/B, W, H, I, B]
    kernel = g.transpose(view(g, dy, batches, block, blocks, height, width, block), perm=[2, 0, 4, 3, 1, 5])
    kernel = view(g, kernel, layer.wide_out, layer.count * width, height, 1)
    taps = [
        g.op(
            "Conv", view(g, moved(g, data, column - pad[1], 1, 5), 1, layer.count * width, height, layer.inner), kernel,
            domain=NCHWC, kernel_shape=(height, 1), pads=(pad[0], 0, pad[0], 0),
        )
        for column in range(columns)
    ]  # fmt: skip
    parts = [view(g, tap, blocks, rows, layer.inner, block, 1) for tap in taps]
    together = g.concat(*parts, axis=4) if columns > 1 else parts[0]
    weight = view(g, g.transpose(together, perm=[0, 3, 2, 1, 4]), layer.wide_out, layer.inner, rows, columns)
    return cut(g, weight, [layer.outer], [layer.wide_out])
