"""Networks of depthwise layers, which gain little from integer kernels, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]


@dataclass
class Builder:
    """Writes one graph, node by node; every method returns the name of the tensor that it made."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, values: NDArray[np.generic], stem: str) -> str:
        """Store an initializer."""
        name = f"{stem}_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Write an operator."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def conv(self, x: str, given: int, made: int, kernel: int = 1, stride: int = 1, group: int = 1) -> str:
        """Write a convolution whose weights keep the size of a signal behind Relu."""
        shape = (made, given // group, kernel, kernel)
        spread = (2 / np.prod(shape[1:])) ** 0.5
        weight = self.constant((self.random.standard_normal(shape) * spread).astype(np.float32), "weight")
        bias = self.constant((self.random.standard_normal(made) * 0.1).astype(np.float32), "bias")
        pads, strides, sizes = [kernel // 2] * 4, [stride] * 2, [kernel] * 2
        return self.op("Conv", x, weight, bias, kernel_shape=sizes, pads=pads, strides=strides, group=group)

    def prelu(self, x: str, channels: int) -> str:
        """Write a PRelu with a slope for each channel."""
        return self.op(
            "PRelu", x, self.constant(self.random.uniform(0.05, 0.4, (channels, 1, 1)).astype(np.float32), "slopes")
        )

    def model(self, shape: list[int], outputs: list[str]) -> onnx.ModelProto:
        """Return the model of one image input."""
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *shape])
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", [image], made, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def face_detector() -> onnx.ModelProto:
    """A detector of 640x640 images like YuNet: pointwise and depthwise layers of 16 to 64 channels, three scales."""
    net = Builder()

    def pair(x: str, given: int, made: int, relu: bool = True) -> str:
        x = net.conv(net.conv(x, given, made), made, made, 3, group=made)
        return net.op("Relu", x) if relu else x

    def pool(x: str) -> str:
        return net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    x = net.op("Relu", net.conv("image", 3, 16, 3, 2))
    x = pool(pair(net.op("Relu", net.conv(x, 16, 16)), 16, 16))
    x = pair(pair(x, 16, 32), 32, 32)
    scales = []
    for given in (32, 64, 64):
        x = pair(pair(pool(x), given, 64), 64, 64)
        scales.append(x)
    twice = net.constant(np.array([1, 1, 2, 2], np.float32), "twice")
    features = [pair(scales[2], 64, 64)]
    for lower in scales[1::-1]:
        larger = net.op("Resize", features[0], "", twice, mode="nearest")
        features.insert(0, pair(net.op("Add", lower, larger), 64, 64))
    outputs = []
    for feature in features:
        feature = pair(feature, 64, 64)
        for channels in (1, 1, 4, 10):
            rows = net.op("Transpose", pair(feature, 64, channels, relu=False), perm=[0, 2, 3, 1])
            shape = net.constant(np.array([0, -1, channels], np.int64), "shape")
            rows = net.op("Reshape", rows, shape)
            outputs.append(net.op("Sigmoid", rows) if channels == 1 else rows)
    return net.model([3, 640, 640], outputs)


def face_embedding() -> onnx.ModelProto:
    """An embedding of 112x112 images like MobileFaceNet: bottlenecks with depthwise layers and PRelu."""
    net = Builder()

    def conv(x: str, given: int, made: int, kernel: int = 1, stride: int = 1, group: int = 1) -> str:
        return net.prelu(net.conv(x, given, made, kernel, stride, group), made)

    def bottleneck(x: str, given: int, made: int, wide: int, stride: int) -> str:
        y = conv(conv(x, given, wide), wide, wide, 3, stride, wide)
        y = net.conv(y, wide, made)
        return net.op("Add", x, y) if stride == 1 and given == made else y

    x = conv(conv("image", 3, 64, 3, 2), 64, 64, 3, 1, 64)
    given = 64
    for made, wide, count, stride in (
        (64, 128, 4, 2),
        (128, 256, 1, 2),
        (128, 256, 5, 1),
        (128, 512, 1, 2),
        (128, 256, 2, 1),
    ):
        for place in range(count):
            x = bottleneck(x, given, made, wide, stride if place == 0 else 1)
            given = made
    x = conv(x, 128, 512)
    shape = (512, 1, 7, 7)
    weight = net.constant((net.random.standard_normal(shape) / 7).astype(np.float32), "weight")
    x = net.op("Flatten", net.op("Conv", x, weight, kernel_shape=[7, 7], group=512))
    head = net.constant((net.random.standard_normal((128, 512)) / 512**0.5).astype(np.float32), "head")
    return net.model([3, 112, 112], [net.op("Gemm", x, head, transB=1)])


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 (Sandler et al., 2018, table 2): inverted residuals with Relu6, 224x224 images, 1000 classes."""
    net = Builder()
    ends = [net.constant(np.float32(end), "end") for end in (0, 6)]

    def conv(x: str, given: int, made: int, kernel: int = 1, stride: int = 1, group: int = 1) -> str:
        return net.op("Clip", net.conv(x, given, made, kernel, stride, group), *ends)

    def inverted(x: str, given: int, made: int, expand: int, stride: int) -> str:
        wide = given * expand
        y = conv(x, given, wide) if expand > 1 else x
        y = net.conv(conv(y, wide, wide, 3, stride, wide), wide, made)
        return net.op("Add", x, y) if stride == 1 and given == made else y

    x, given = conv("image", 3, 32, 3, 2), 32
    for expand, made, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for place in range(count):
            x = inverted(x, given, made, expand, stride if place == 0 else 1)
            given = made
    x = net.op("Flatten", net.op("GlobalAveragePool", conv(x, given, 1280)))
    head = net.constant((net.random.standard_normal((1000, 1280)) / 1280**0.5).astype(np.float32), "head")
    return net.model([3, 224, 224], [net.op("Gemm", x, head, transB=1)])


MODELS = {"detector": (face_detector, (3, 640, 640)), "embedding": (face_embedding, (3, 112, 112))}
