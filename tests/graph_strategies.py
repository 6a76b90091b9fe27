"""Random ONNX graphs for property tests: convolutional and linear layers, branches, joins, movers, float islands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
CLASSES = 5


@dataclass
class Drawn:
    """A tensor of the graph under construction: shape without the batch."""

    name: str
    shape: tuple[int, ...]


@dataclass
class Builder:
    """Adds nodes one by one; random weights come from one generator, so a graph is a function of what was drawn."""

    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def normal(self, *shape: int, size: float = 1.0) -> str:
        return self.constant(self.random.normal(0, size, shape).astype(np.float32))

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> Drawn:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return Drawn(name, shape)


def _conv(b: Builder, x: Drawn, draw: st.DrawFn) -> Drawn:
    channels, height, width = x.shape
    kernel, stride = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 1, 2]))
    dilation = draw(st.sampled_from([1, 1, 2])) if kernel == 3 else 1
    depthwise = draw(st.booleans())
    groups = channels if depthwise else draw(st.sampled_from([1, 2 if channels % 2 == 0 else 1]))
    outputs = channels if depthwise else groups * draw(st.integers(1, 6))
    pad = dilation * (kernel - 1) // 2
    fan = kernel * kernel * channels // groups
    inputs = [x.name, b.normal(outputs, channels // groups, kernel, kernel, size=fan**-0.5)]
    if draw(st.booleans()):
        inputs.append(b.normal(outputs, size=0.5))
    auto = draw(st.sampled_from(["NOTSET", "SAME_UPPER"])) if stride == 1 and dilation == 1 else "NOTSET"
    padding = {"pads": [pad] * 4} if auto == "NOTSET" else {"auto_pad": auto}
    size = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "dilations": [dilation] * 2}
    y = b.add("Conv", inputs, (outputs, *size), **shape, group=groups, **padding)
    if not draw(st.booleans()):
        return y
    scale = b.constant(b.random.uniform(0.5, 1.5, outputs).astype(np.float32))
    variance = b.constant(b.random.uniform(0.5, 1.5, outputs).astype(np.float32))
    moments = [b.normal(outputs, size=0.3), b.normal(outputs, size=0.3), variance]
    return b.add("BatchNormalization", [y.name, scale, *moments], y.shape)


def _activation(b: Builder, x: Drawn, draw: st.DrawFn) -> Drawn:
    op = draw(st.sampled_from(["Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh"]))
    if op == "Clip":
        low = draw(st.sampled_from([0.0, -1.0]))
        return b.add(op, [x.name, b.constant(np.float32(low)), b.constant(np.float32(6.0))], x.shape)
    return b.add(op, [x.name], x.shape)


def _join(b: Builder, x: Drawn, others: list[Drawn], draw: st.DrawFn) -> Drawn:
    op = draw(st.sampled_from(["Add", "Add", "Mul", "Concat", "Sub"]))
    if op == "Concat":
        fitting = [other for other in others if other.shape[1:] == x.shape[1:] and len(other.shape) == len(x.shape)]
        other = draw(st.sampled_from(fitting or [x]))
        return b.add(op, [x.name, other.name], (x.shape[0] + other.shape[0], *x.shape[1:]), axis=1)
    other = draw(st.sampled_from([other for other in others if other.shape == x.shape] or [x]))
    return b.add(op, [x.name, other.name], x.shape)


def _with_constant(b: Builder, x: Drawn, draw: st.DrawFn) -> Drawn:
    shape = (x.shape[0], *[1] * (len(x.shape) - 1)) if draw(st.booleans()) else ()
    return b.add(draw(st.sampled_from(["Add", "Mul"])), [x.name, b.normal(*shape)], x.shape)


def _pool(b: Builder, x: Drawn, draw: st.DrawFn) -> Drawn:
    channels, height, width = x.shape
    if min(height, width) < 2:
        return x
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return b.add(op, [x.name], (channels, height // 2, width // 2), kernel_shape=[2, 2], strides=[2, 2])


def _move(b: Builder, x: Drawn, draw: st.DrawFn) -> Drawn:
    channels, height, width = x.shape
    op = draw(st.sampled_from(["Slice", "Pad", "Transpose", "Resize", "Reshape", "Split"]))
    if op == "Slice" and channels > 1:
        ends = [b.constant(np.array([value])) for value in (0, channels - 1, 1)]
        return b.add(op, [x.name, *ends], (channels - 1, height, width))
    if op == "Pad":
        return b.add(
            op, [x.name, b.constant(np.array([0, 1, 0, 0, 0, 0, 1, 1]))], (channels + 1, height + 1, width + 1)
        )
    if op == "Transpose":
        return b.add(op, [x.name], (channels, width, height), perm=[0, 1, 3, 2])
    if op == "Resize" and height * width <= 64:
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        mode = draw(st.sampled_from(["nearest", "linear"]))
        return b.add(op, [x.name, "", scales], (channels, 2 * height, 2 * width), mode=mode)
    if op == "Reshape":
        return b.add(op, [x.name, b.constant(np.array([0, 0, -1, 1]))], (channels, height * width, 1))
    if op == "Split" and channels % 2 == 0:
        first, second = f"t{len(b.nodes)}", f"t{len(b.nodes)}_b"
        sizes = b.constant(np.array([channels // 2, channels // 2]))
        b.nodes.append(helper.make_node(op, [x.name, sizes], [first, second], name=f"Split_{len(b.nodes)}", axis=1))
        return b.add("Add", [first, second], (channels // 2, height, width))
    return x


def _transposed(b: Builder, x: Drawn, draw: st.DrawFn) -> Drawn:
    channels, height, width = x.shape
    if height * width > 64:
        return x
    weight = b.normal(channels, 4, 2, 2, size=channels**-0.5)
    return b.add("ConvTranspose", [x.name, weight], (4, 2 * height, 2 * width), kernel_shape=[2, 2], strides=[2, 2])


def _head(b: Builder, x: Drawn, draw: st.DrawFn) -> Drawn:
    """Global pooling and one or two linear layers, or nothing."""
    kind = draw(st.sampled_from(["gemm", "gemm", "matmul", "softmax", "none"]))
    if kind == "none":
        return x
    channels = x.shape[0]
    pooled = b.add(draw(st.sampled_from(["GlobalAveragePool", "GlobalMaxPool"])), [x.name], (channels, 1, 1))
    flat = b.add("Flatten", [pooled.name], (channels,))
    if kind == "matmul":
        y = b.add("MatMul", [flat.name, b.normal(channels, CLASSES)], (CLASSES,))
        return b.add("Add", [y.name, b.normal(CLASSES)], (CLASSES,))
    if draw(st.booleans()):
        flat = b.add("Gemm", [flat.name, b.normal(channels, channels), b.normal(channels)], (channels,))
        flat = b.add("Relu", [flat.name], (channels,))
    trans = draw(st.booleans())
    weight = b.normal(*((CLASSES, channels) if trans else (channels, CLASSES)))
    y = b.add("Gemm", [flat.name, weight, b.normal(CLASSES)], (CLASSES,), transB=int(trans))
    return b.add("Softmax", [y.name], (CLASSES,)) if kind == "softmax" else y


STEPS = {
    "conv": _conv,
    "activation": _activation,
    "pool": _pool,
    "move": _move,
    "constant": _with_constant,
    "up": _transposed,
}
WEIGHTED = ["conv"] * 5 + ["activation"] * 4 + ["join"] * 3 + ["pool", "move", "move", "constant", "up"]


@st.composite
def graphs(draw: st.DrawFn, most: int = 14) -> onnx.ModelProto:
    """Draw a valid float model with input `x` [N, channels, height, width], one or two outputs, at least one layer."""
    b = Builder(np.random.default_rng(draw(st.integers(0, 2**31))))
    shape = (draw(st.sampled_from([1, 3, 4])), draw(st.integers(4, 12)), draw(st.integers(4, 12)))
    tensors = [_conv(b, Drawn("x", shape), draw)]
    for _ in range(draw(st.integers(0, most))):
        kind = draw(st.sampled_from(WEIGHTED))
        recent = draw(st.sampled_from(tensors[-3:]))
        if kind == "join":
            tensors.append(_join(b, recent, tensors, draw))
        else:
            tensors.append(STEPS[kind](b, recent, draw))
    last = _head(b, tensors[-1], draw)
    outputs = {last.name: last}
    if draw(st.booleans()):
        extra = draw(st.sampled_from(tensors))
        outputs[extra.name] = extra
    infos = [helper.make_tensor_value_info(o.name, TensorProto.FLOAT, ["N", *o.shape]) for o in outputs.values()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
    graph = helper.make_graph(b.nodes, "random", [image], infos, b.weights)
    imports = [helper.make_opsetid("", OPSET)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8))


def samples(model: onnx.ModelProto, count: int, seed: int = 0) -> np.ndarray:
    """Return `count` random samples for the input of a drawn graph."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32)
