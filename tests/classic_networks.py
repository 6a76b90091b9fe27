"""Graphs of well-known networks without their weights, and what was published about their units (MRECG, BRECQ)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import onnx

from qcompile import Config, QModel
from qcompile.ir import Constant, Graph, Node, Tensor, Variable
from qcompile.passes.partition_units import PartitionUnits
from qcompile.passes.score_capacity import ScoreCapacity
from qcompile.pipeline import fuse, place
from qcompile.targets.schema import Target

Regions = tuple[tuple[str, ...], ...]


@dataclass
class Net:
    """Builds a graph node by node; every weight is a read-only zero of the right shape that takes no memory."""

    graph: Graph = field(default_factory=lambda: Graph(opset=18))
    channels: dict[str, int] = field(default_factory=dict)

    def input(self, name: str = "x", channels: int = 3) -> Variable:
        tensor = Variable(name, np.float32, None)
        self.graph.inputs.append(tensor)
        self.channels[name] = channels
        return tensor

    def op(self, op: str, *reads: Tensor, name: str = "", outputs: int = 1, **attrs: object) -> Variable:
        name = name or f"{op}_{len(self.graph.nodes)}"
        made = [Variable(f"{name}:{index}" if index else f"{name}:", np.float32, None) for index in range(outputs)]
        self.graph.nodes.append(Node(op, name, attrs, list(reads), made))
        data = [tensor for tensor in reads if tensor.name in self.channels]
        width = sum(self.channels[tensor.name] for tensor in data) if op == "Concat" else self.channels[data[0].name]
        self.channels.update({tensor.name: width // outputs for tensor in made})
        return made[0]

    def weight(self, *shape: int) -> Constant:
        return Constant(f"w{len(self.graph.nodes)}", np.broadcast_to(np.float32(0), shape))

    def conv(
        self,
        x: Variable,
        out: int = 8,
        kernel: int = 1,
        *,
        stride: int = 1,
        group: int = 1,
        name: str = "",
        act: str = "",
    ) -> Variable:
        weight = self.weight(out, self.channels[x.name] // group, kernel, kernel)
        y = self.op("Conv", x, weight, name=name, strides=[stride, stride], pads=[kernel // 2] * 4, group=group)
        self.channels[y.name] = out
        bounds = (
            [Constant(f"{y.name}{bound}", np.array(bound, np.float32)) for bound in (0, 6)] if act == "Clip" else []
        )
        return self.op(act, y, *bounds) if act else y

    def linear(self, x: Variable, out: int = 8, *, op: str = "Gemm", name: str = "") -> Variable:
        y = self.op(op, x, self.weight(self.channels[x.name], out), name=name)
        self.channels[y.name] = out
        return y

    def finish(self, *outputs: Variable) -> Graph:
        self.graph.outputs = list(outputs)
        return self.graph


def residual(
    net: Net, x: Variable, widths: Sequence[tuple[int, int, int]], stride: int, groups: int = 1, name: str = ""
) -> Variable:
    """A residual block: (channels, kernel, stride or 1) of each convolution, a projection where the shape changes."""
    y = x
    for index, (width, kernel, own_stride) in enumerate(widths):
        act = "Relu" if index < len(widths) - 1 else ""
        own_name = f"{name}/conv{index + 1}/Conv" if name else ""
        group = groups if kernel == 3 else 1
        y = net.conv(y, width, kernel, stride=own_stride, group=group, name=own_name, act=act)
    if stride > 1 or net.channels[x.name] != net.channels[y.name]:
        x = net.conv(x, net.channels[y.name], 1, stride=stride, name=f"{name}/downsample/Conv" if name else "")
    return net.op("Relu", net.op("Add", y, x))


def classifier(net: Net, x: Variable, classes: int = 1000) -> Graph:
    return net.finish(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), classes, name="fc"))


def resnet18() -> Graph:
    net = Net()
    x = net.conv(net.input(), 64, 7, stride=2, name="/conv1/Conv", act="Relu")
    x = net.op("MaxPool", x, strides=[2, 2], kernel_shape=[3, 3], pads=[1] * 4)
    for stage, width in enumerate([64, 128, 256, 512], 1):
        for index in range(2):
            stride = 2 if stage > 1 and index == 0 else 1
            name = f"/layer{stage}/layer{stage}.{index}"
            x = residual(net, x, [(width, 3, stride), (width, 3, 1)], stride, name=name)
    return classifier(net, x)


def resnet50() -> Graph:
    net = Net()
    x = net.conv(net.input(), 64, 7, stride=2, name="/conv1/Conv", act="Relu")
    x = net.op("MaxPool", x, strides=[2, 2], kernel_shape=[3, 3], pads=[1] * 4)
    for stage, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            name = f"/layer{stage}/layer{stage}.{index}"
            x = residual(net, x, [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)], stride, name=name)
    return classifier(net, x)


def regnetx_600m() -> Graph:
    net = Net()
    x = net.conv(net.input(), 32, 3, stride=2, name="/stem/Conv", act="Relu")
    for stage, (width, depth) in enumerate([(48, 1), (96, 3), (240, 5), (528, 7)], 1):
        for index in range(depth):
            stride = 2 if index == 0 else 1
            widths = [(width, 1, 1), (width, 3, stride), (width, 1, 1)]
            x = residual(net, x, widths, stride, groups=width // 24, name=f"/s{stage}/s{stage}.b{index + 1}")
    return classifier(net, x)


def inverted(
    net: Net,
    x: Variable,
    out: int,
    stride: int,
    expand: int,
    name: str,
    gate: Callable[[Net, Variable], Variable] | None = None,
) -> Variable:
    width, y = net.channels[x.name] * expand, x
    if expand > 1:
        y = net.conv(y, width, 1, name=f"/{name}/expand/Conv", act="Clip")
    y = net.conv(y, width, 3, stride=stride, group=width, name=f"/{name}/depthwise/Conv", act="Clip")
    y = gate(net, y) if gate else y
    y = net.conv(y, out, 1, name=f"/{name}/project/Conv")
    return net.op("Add", y, x) if stride == 1 and net.channels[x.name] == out else y


def mobilenet_v2(gate: Callable[[Net, Variable], Variable] | None = None) -> Graph:
    net = Net()
    x = net.conv(net.input(), 32, 3, stride=2, name="/features/features.0/Conv", act="Clip")
    number = 1
    for expand, out, depth, first in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for index in range(depth):
            x = inverted(net, x, out, first if index == 0 else 1, expand, f"features/features.{number}", gate)
            number += 1
    return classifier(net, net.conv(x, 1280, 1, name="/features/features.18/Conv", act="Clip"))


@dataclass(frozen=True)
class Classic:
    """A network with what MRECG's authors publish: how many units, and which of them they fuse; the others stay alone.

    `alone`: how many units BRECQ has. `groups`: how many regions the scheme leaves.
    """

    graph: Callable[[], Graph]
    units: int
    alone: int
    groups: int
    scheme: Regions

    def boundaries(self) -> set[tuple[str, str]]:
        """Return the boundaries that the scheme fuses."""
        return {pair for region in self.scheme for pair in pairwise(region)}


def _features(*numbers: int) -> tuple[str, ...]:
    return tuple(f"features.{number}" for number in numbers)


# Schemes: bytedance/MRECG, the configurations of its README's table.
CLASSICS = {
    "ResNet-18": Classic(resnet18, 10, 10, 8, (("layer1.1", "layer2.0"), ("layer2.1", "layer3.0"))),
    "ResNet-50": Classic(
        resnet50,
        18,
        18,
        14,
        (("layer1.2", "layer2.0"), ("layer2.3", "layer3.0", "layer3.1"), ("layer3.5", "layer4.0")),
    ),
    "MobileNetV2": Classic(
        mobilenet_v2,
        18,
        20,
        11,
        (_features(3, 4), _features(6, 7), _features(9, 10, 11), _features(12, 13, 14), _features(16, 17)),
    ),
    "RegNetX-600M": Classic(
        regnetx_600m, 18, 18, 14, (("s2.b3", "s3.b1", "s3.b2"), ("s3.b5", "s4.b1"), ("s4.b6", "s4.b7"))
    ),
}


def fused(graph: Graph, **settings: object) -> QModel:
    """Run the passes that score and fuse: units stacked as in MRECG, weights of 4 bits, those of the ends of 8."""
    config = Config(**{"w": 4, "a": 4, "method": "mrecg"} | settings)  # type: ignore[arg-type]
    model = QModel(graph, onnx.ModelProto(), Target.load("ort-cpu"), config)
    for item in (PartitionUnits(ends="stack"), *place(config), ScoreCapacity(config.stride_factor), fuse(config)):
        item.run(model)
    return model
