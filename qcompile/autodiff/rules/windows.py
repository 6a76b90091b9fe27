"""The geometry that convolutions and pools share: strides, dilations and explicit pads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qcompile.autodiff.broadcasting import dims_of, sizes
from qcompile.autodiff.operators import Operand, Value
from qcompile.autodiff.registry import UnknownFormError, attribute
from qcompile.autodiff.tape import Dim, Node, Tape


@dataclass(frozen=True)
class Window:
    """How a kernel slides. Pads are those in front and those behind, per spatial dimension."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    front: tuple[int, ...]
    behind: tuple[int, ...]
    group: int = 1

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def spatial(self) -> list[int]:
        """The spatial axes of a tensor [N, C, ...]."""
        return list(range(2, 2 + self.rank))

    @property
    def extent(self) -> tuple[int, ...]:
        """How far a dilated kernel reaches."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations))

    @property
    def pads(self) -> tuple[int, ...]:
        """All pads, as ONNX writes them."""
        return (*self.front, *self.behind)

    @property
    def attributes(self) -> dict[str, Any]:
        """The window as attributes of Conv and ConvTranspose."""
        return {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": self.pads,
            "group": self.group,
        }

    def grouped(self, group: int) -> Window:
        """The same window in a convolution of so many groups."""
        return replace(self, group=group)

    def unpadded(self) -> Window:
        """The same window without pads."""
        return replace(self, front=(0,) * self.rank, behind=(0,) * self.rank)


def window_of(g: Tape, node: Node, kernel: tuple[int, ...]) -> Window:
    """Read the window of a convolution or a pool; automatic pads become numbers."""
    rank = len(kernel)
    strides = tuple(attribute(node, "strides", [1] * rank))
    dilations = tuple(attribute(node, "dilations", [1] * rank))
    pads = tuple(attribute(node, "pads", [0] * 2 * rank))
    window = Window(kernel, strides, dilations, pads[:rank], pads[rank:], int(attribute(node, "group", 1)))
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        return window.unpadded()
    if node.op == "ConvTranspose" and (mode != "NOTSET" or "output_shape" in node.attributes):
        raise UnknownFormError("runtimes differ in its automatic pads: write them out")
    reach = window.extent if node.op == "Conv" else kernel  # ONNX Runtime pads a pool as if it were not dilated
    return window if mode == "NOTSET" else _same(dims_of(g, node.inputs[0])[2:], window, reach, mode == "SAME_UPPER")


def _same(dims: tuple[Dim, ...], window: Window, reach: tuple[int, ...], upper: bool) -> Window:
    """Pads that make the output as large as the input divided by the stride, rounded up."""
    totals = []
    for dim, stride, extent in zip(dims, window.strides, reach):
        if not isinstance(dim, int) and stride > 1:
            raise UnknownFormError("auto_pad with strides needs known sizes")
        rest = (dim - 1) % stride if isinstance(dim, int) else 0
        totals.append(max(extent - 1 - rest, 0))
    return _halved(window, totals, upper)


def _halved(window: Window, totals: list[int], upper: bool) -> Window:
    half, rest = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return replace(window, front=half, behind=rest) if upper else replace(window, front=rest, behind=half)


def spread(g: Tape, dy: Value, weight: Operand, window: Window, like: Value) -> Value:
    """Carry the gradient of a convolution's output back to its input `like`.

    dy: [N, O, ...]; weight: [O, I/group, ...] as Conv has it, which is ConvTranspose's own order. Rows of the input
    behind the last window get zeros: through output_padding where sizes are known, else through Pad.
    """
    inputs, outputs = sizes(dims_of(g, like)[2:]), g.shape_of(dy)
    results = None if outputs is None else sizes(outputs[2:])
    if all(stride == 1 for stride in window.strides):
        return g.conv_transpose(dy, weight, **window.attributes)
    if inputs is None or results is None:
        return _spread_at_run_time(g, dy, weight, window, like)
    ends = [
        size - ((count - 1) * stride + extent - front - behind)
        for size, count, stride, extent, front, behind in zip(
            inputs, results, window.strides, window.extent, window.front, window.behind
        )
    ]
    if any(end < 0 for end in ends):
        raise UnknownFormError("its last window hangs over the border")
    return g.conv_transpose(dy, weight, output_padding=ends, **window.attributes)


def _spread_at_run_time(g: Tape, dy: Value, weight: Operand, window: Window, like: Value) -> Value:
    full = g.conv_transpose(dy, weight, **window.unpadded().attributes)
    last = 2 + window.rank
    ends = g.sub(g.sub(g.shape(like, start=2, end=last), g.shape(full, start=2, end=last)), [-p for p in window.front])
    pads = g.concat([-pad for pad in window.front], ends, axis=0)
    return g.pad(full, pads, "", window.spatial)
