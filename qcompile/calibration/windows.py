"""What the filters of a layer see: mean and covariance of the inputs that one of them weighs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Node
from qcompile.ir.canonical import pads_of
from qcompile.program.operands import weight_axis

POSITIONS = 128  # of a sample, spread evenly
Array = NDArray[Any]


class Windows:
    """Mean and covariance of the inputs of one layer: a two-dimensional convolution, by group, a Gemm or a MatMul.

    `sums` and `products` are float64 [G, K] and [G, K, K] over `count` windows of K = `length` inputs, in the order of
    a filter's weights: the channels of one group times the kernel's elements, or a row of the matrix.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        weight = [int(size) for size in node.inputs[1].shape]
        self.outputs = weight[weight_axis(node)]
        self.groups, self.kernel = int(node.attrs.get("group", 1)), weight[2:]
        self.length = int(np.prod(weight)) // self.outputs
        self.count = 0
        self.sums = np.zeros((self.groups, self.length))
        self.products = np.zeros((self.groups, self.length, self.length))

    def update(self, values: Array) -> None:
        """Take in the windows of a batch, [N, C, H, W] or [..., K], at some positions of each sample."""
        if not values.size:
            return
        windows = self._of_images(values) if self.kernel else self._of_rows(values)
        self.count += windows.shape[2]
        self.sums += windows.sum(2, dtype=np.float64)
        self.products += windows @ windows.transpose(0, 2, 1)

    def _of_rows(self, values: Array) -> Array:
        rows = values.reshape(len(values), -1, values.shape[-1]) if values.ndim > 1 else values[None, None]
        some = rows[:, _spread(rows.shape[1], POSITIONS)]
        return some.reshape(1, -1, values.shape[-1]).transpose(0, 2, 1)

    def _of_images(self, values: Array) -> Array:
        pads = pads_of(self.node) or [0, 0, 0, 0]
        strides = self.node.attrs.get("strides", [1, 1])
        dilations = self.node.attrs.get("dilations", [1, 1])
        padded = np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        reach = [(size - 1) * by + 1 for size, by in zip(self.kernel, dilations)]
        height, width = ((full - size) // by + 1 for full, size, by in zip(padded.shape[2:], reach, strides))
        places = _spread(height * width, POSITIONS)
        rows, columns = places // width * strides[0], places % width * strides[1]
        taps = [
            padded[:, :, rows + i * dilations[0], columns + j * dilations[1]]
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]
        windows = np.stack(taps, 2).transpose(1, 2, 0, 3)  # [C, taps, N, positions]
        return windows.reshape(*self.sums.shape, -1)

    def covariance(self) -> Array:
        """Return the covariance [C, K, K] for each output channel, [1, K, K] where all share one.

        A MatMul has no bias that could take up an error of the mean, so it counts: of its inputs these are the moments
        about zero.
        """
        mean = self.sums / self.count * (self.node.op != "MatMul")
        by_group = self.products / self.count - mean[:, :, None] * mean[:, None]
        return by_group if self.groups == 1 else np.repeat(by_group, self.outputs // self.groups, 0)

    def mean(self) -> Array:
        """Return the mean input [C, K] of each output channel."""
        return np.repeat(self.sums / self.count, self.outputs // self.groups, 0)


def _spread(size: int, most: int) -> NDArray[np.intp]:
    """Return at most so many positions of `size`, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(most, size)).astype(np.intp))
