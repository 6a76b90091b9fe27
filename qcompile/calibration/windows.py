"""What the filters of a convolution see: the covariance of the inputs under a window."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Node
from qcompile.ir.canonical import pads_of

POSITIONS = 128  # of a sample, spread evenly
Array = NDArray[Any]


class Windows:
    """Covariance of the inputs of one two-dimensional convolution, by group.

    `sums` and `products` are float64 [G, K] and [G, K, K] over `count` windows of K inputs: the channels of one group
    times the kernel's elements, in the order of the weight.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        weight = [int(size) for size in node.inputs[1].shape]
        self.groups, self.kernel = int(node.attrs.get("group", 1)), weight[2:]
        length = weight[1] * self.kernel[0] * self.kernel[1]
        self.count = 0
        self.sums = np.zeros((self.groups, length))
        self.products = np.zeros((self.groups, length, length))

    def update(self, values: Array) -> None:
        """Take in the windows of a batch [N, C, H, W] at some positions of each sample."""
        if not values.size:
            return
        pads = pads_of(self.node) or [0, 0, 0, 0]
        strides = self.node.attrs.get("strides", [1, 1])
        dilations = self.node.attrs.get("dilations", [1, 1])
        padded = np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        reach = [(size - 1) * by + 1 for size, by in zip(self.kernel, dilations)]
        height, width = ((full - size) // by + 1 for full, size, by in zip(padded.shape[2:], reach, strides))
        places = np.unique(np.linspace(0, height * width - 1, min(POSITIONS, height * width)).astype(int))
        rows, columns = places // width * strides[0], places % width * strides[1]
        taps = [
            padded[:, :, rows + i * dilations[0], columns + j * dilations[1]]
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]
        windows = np.stack(taps, 2).transpose(1, 2, 0, 3)  # [C, taps, N, positions]
        windows = windows.reshape(*self.sums.shape, -1)
        self.count += windows.shape[2]
        self.sums += windows.sum(2, dtype=np.float64)
        self.products += windows @ windows.transpose(0, 2, 1)

    def covariance(self) -> Array:
        """Return the covariance [C, K, K] for each output channel, [1, K, K] where all share one."""
        mean = self.sums / self.count
        by_group = self.products / self.count - mean[:, :, None] * mean[:, None]
        outputs = int(self.node.inputs[1].shape[0])
        return by_group if self.groups == 1 else np.repeat(by_group, outputs // self.groups, 0)
