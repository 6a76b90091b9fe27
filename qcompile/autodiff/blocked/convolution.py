"""BlockedConv: a two-dimensional convolution from blocked layout to blocked layout, with an ordinary weight.

BlockedConv(x, weight[, bias]), attributes block, kernel_shape, strides, dilations, pads, group, activation,
activation_params: x is blocked, or [N, I, H, W] where I is less than a block; weight is [O, I/group, kh, kw]; group is
1 or the number of channels (depthwise); activation is "", "Relu" or "Clip" with its bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompile.autodiff.blocked import weights
from qcompile.autodiff.blocked.layout import DOMAIN, NCHWC, filled, pack, padded, unpack, view
from qcompile.autodiff.broadcasting import dims_of, sizes
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, attribute, lowering, vjp
from qcompile.autodiff.rules.activations import inside, masked
from qcompile.autodiff.rules.windows import Window, spread
from qcompile.autodiff.tape import Node, Tape


@dataclass(frozen=True)
class Layer:
    """One convolution: its window and sizes. `inner` and `outer` are the real numbers of channels."""

    window: Window
    block: int
    count: int
    inner: int
    outer: int
    image: tuple[int, int]
    result: tuple[int, int]

    @classmethod
    def of(cls, g: Tape, node: Node) -> Layer:
        """Read a BlockedConv."""
        count, _, *image = sizes(dims_of(g, node.inputs[0])) or []
        outer, inner, *_ = sizes(dims_of(g, node.inputs[1])) or []
        kernel, group = tuple(node.attributes["kernel_shape"]), int(node.attributes["group"])
        pads = tuple(node.attributes["pads"])
        strides, dilations = tuple(node.attributes["strides"]), tuple(node.attributes["dilations"])
        window = Window(kernel, strides, dilations, pads[:2], pads[2:], group)
        result = output_size(window, image)
        return cls(window, int(node.attributes["block"]), count, inner * group, outer, (image[0], image[1]), result)

    @property
    def depthwise(self) -> bool:
        """Say whether every channel has its own filter."""
        return self.window.group > 1

    @property
    def from_plain(self) -> bool:
        """Say whether the input is not blocked, since it has fewer channels than a block."""
        return not self.depthwise and self.inner < self.block

    @property
    def wide_in(self) -> int:
        """Channels of the input, those that fill its last block included."""
        return self.inner if self.from_plain else padded(self.inner, self.block)

    @property
    def wide_out(self) -> int:
        """The same of the output."""
        return padded(self.outer, self.block)

    @property
    def dx_shape(self) -> tuple[int, ...]:
        """The shape [N, I, H, W] of the input."""
        return self.count, self.inner, *self.image

    @property
    def dy_shape(self) -> tuple[int, ...]:
        """The shape [N, O, H, W] of the output."""
        return self.count, self.outer, *self.result


def output_size(window: Window, image: Sequence[int]) -> tuple[int, int]:
    """Return height and width of what a convolution makes of an image."""
    height, width = (
        (size + front + behind - extent) // stride + 1
        for size, front, behind, extent, stride in zip(
            image, window.front, window.behind, window.extent, window.strides
        )
    )
    return height, width


@lowering("BlockedConv", DOMAIN)
def _write(g: Tape, node: Node) -> None:
    layer = Layer.of(g, node)
    inputs = [node.inputs[0], packed_weight(g, node.inputs[1], layer)]
    if bias := node.input(2):
        inputs.append(filled(g, bias, [layer.outer], [layer.wide_out]))
    extra = {name: node.attributes[name] for name in ("activation", "activation_params") if node.attributes.get(name)}
    window = layer.window.grouped(layer.wide_out if layer.depthwise else 1)
    g.op("Conv", *inputs, domain=NCHWC, output=node.outputs[0], **window.attributes, **extra)
    g.declare(node.outputs[0], (layer.count, layer.wide_out, *layer.result))


def packed_weight(g: Tape, weight: Value, layer: Layer) -> Value:
    """Bring [O, I/group, kh, kw] to the order in which blocked convolutions read it."""
    block, (rows, columns) = layer.block, layer.window.kernel
    outer, inner = layer.wide_out, layer.wide_in
    if layer.depthwise:
        taps = view(g, filled(g, weight, [layer.outer], [outer]), outer // block, block, rows * columns)
        return view(g, g.transpose(taps, perm=[0, 2, 1]), outer, 1, rows, columns)
    full = filled(g, weight, [layer.outer, layer.inner], [outer, inner])
    if layer.from_plain:
        parts = view(g, full, outer // block, block, inner, rows * columns)
        return view(g, g.transpose(parts, perm=[0, 2, 3, 1]), outer, inner, rows, columns)
    parts = view(g, full, outer // block, block, inner // block, block, rows * columns)
    return view(g, g.transpose(parts, perm=[0, 2, 4, 3, 1]), outer, inner, rows, columns)


@vjp("BlockedConv", domain=DOMAIN)
def _blocked_conv(g: Tape, node: Node, dy: Value) -> Gradients:
    layer = Layer.of(g, node)
    dy = _through_activation(g, node, dy)
    g.describe(dy, like=node.outputs[0])
    return (
        _input_gradient(g, node.inputs[0], node.inputs[1], dy, layer),
        weights.gradient(g, node.inputs[0], dy, layer, node.inputs[1]),
        _bias_gradient(g, dy, layer) if node.input(2) else None,
    )


def _through_activation(g: Tape, node: Node, dy: Value) -> Value:
    y, bounds = node.outputs[0], node.attributes.get("activation_params", ())
    match attribute(node, "activation", ""):
        case "Relu":
            return masked(g, dy, g.greater(y, 0.0))
        case "Clip":
            return masked(g, dy, inside(g, y, *map(float, bounds)))
    return dy


def _bias_gradient(g: Tape, dy: Value, layer: Layer) -> Value:
    parts = view(g, dy, layer.count, layer.wide_out // layer.block, -1, layer.block)
    per_sample = g.reduce_sum(parts, [2], keepdims=0)  # both axes in one node take ten times as long
    total = view(g, g.reduce_sum(per_sample, [0], keepdims=0), -1)
    return total if layer.wide_out == layer.outer else g.slice(total, [0], [layer.outer], [0])


def _input_gradient(g: Tape, x: Value, weight: Value, dy: Value, layer: Layer) -> Value:
    """Convolve dy with the kernel turned around.

    Behind a stride dy is first spread with zeros between its rows and columns (depthwise), or brought to the plain
    layout for a transposed convolution, which is faster there where channels mix.
    """
    window = layer.window
    if layer.from_plain or (not layer.depthwise and any(stride > 1 for stride in window.strides)):
        like = x if layer.from_plain else unpack(g, x, layer.dx_shape)
        dx = spread(g, unpack(g, dy, layer.dy_shape), weight, window, like)
        return dx if layer.from_plain else pack(g, dx, layer.dx_shape, layer.wide_in)
    front = [extent - 1 - before for extent, before in zip(window.extent, window.front)]
    reached = [
        size * stride + before - extent + 1
        for size, stride, before, extent in zip(layer.result, window.strides, front, window.extent)
    ]  # rows and columns without pads behind: fewer than the image has, or more where a stride exceeds the kernel
    behind = [max(size - length, 0) for size, length in zip(layer.image, reached)]
    group = layer.wide_in if layer.depthwise else 1
    turned = Window(window.kernel, (1, 1), window.dilations, tuple(front), tuple(behind), group)
    spaced, kernel = _with_zeros_between(g, dy, layer), _turned_weight(g, weight, layer)
    dx = g.op("Conv", spaced, kernel, domain=NCHWC, **turned.attributes)
    if any(length > size for size, length in zip(layer.image, reached)):
        sizes_found = (max(size, length) for size, length in zip(layer.image, reached))
        cells = view(g, dx, layer.count, layer.wide_in // layer.block, *sizes_found, layer.block)
        cells = g.slice(cells, [0, 0], list(layer.image), [2, 3])
        dx = view(g, cells, layer.count, layer.wide_in, *layer.image)
    g.declare(dx, (layer.count, layer.wide_in, *layer.image))
    return dx


def _with_zeros_between(g: Tape, dy: Value, layer: Layer) -> Value:
    down, across = layer.window.strides
    if down == across == 1:
        return dy
    height, width = layer.result
    cells = view(g, dy, layer.count * layer.wide_out // layer.block * height, 1, width, layer.block)
    cells = g.pad(cells, [0, 0, 0, 0, 0, down - 1, 0, (across - 1) * layer.block])
    return view(g, cells, layer.count, layer.wide_out, height * down, width * across)


def _turned_weight(g: Tape, weight: Value, layer: Layer) -> Value:
    """Return the packed weight with its taps in reverse order and, where channels mix, input and output exchanged."""
    block, (rows, columns) = layer.block, layer.window.kernel
    outer, inner, taps = layer.wide_out, layer.wide_in, rows * columns
    backwards = list(range(taps))[::-1]
    if layer.depthwise:
        packed = view(g, packed_weight(g, weight, layer), outer // block, taps, block)
        return view(g, g.gather(packed, backwards, axis=1), outer, 1, rows, columns)
    full = filled(g, weight, [layer.outer, layer.inner], [outer, inner])
    parts = view(g, full, outer // block, block, inner // block, block, taps)
    parts = view(g, g.transpose(parts, perm=[2, 0, 4, 1, 3]), inner // block * (outer // block), taps, block * block)
    turned = g.gather(parts, backwards, axis=1) if taps > 1 else parts
    return view(g, turned, inner, outer, rows, columns)
