"""Regions to time a training step on: shapes of ResNet-18/20/50 and EfficientNet-Lite0, random weights.

Each is the middle of a tiny float model that goes through the compiler's own passes, so that the plan, with its
quantizers and their places, is what a user's model would get.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from assets import ROOT as ROOT  # puts the checkout on the module path
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qcompile.api import open_model
from qcompile.config import Config
from qcompile.execution.spool import Spool
from qcompile.passes.calibrate import Calibrate
from qcompile.passmanager import PassManager
from qcompile.pipeline import PREPARE, change_channels, place
from qcompile.qmodel import QModel
from qcompile.training.region import Region, RegionBuilder
from qcompile.training.sides import Sides

BATCH = 32
BEFORE, INSIDE, BEHIND = "before", "region", "behind"  # beginnings of node names
Array = NDArray[Any]


@dataclass
class Layers:
    """A float model under construction: each method appends one node and returns its output."""

    random: np.random.Generator
    place: str = BEFORE
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.place}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}/out"], name, **attributes))
        return f"{name}/out"

    def weight(self, array: Array) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, group: int = 1) -> str:
        shape = (outputs, inputs // group, kernel, kernel)
        weight = self.random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        bias = self.random.normal(0, 0.1, outputs)
        pads = [kernel // 2] * 4
        return self.node("Conv", x, self.weight(weight), self.weight(bias), group=group, pads=pads)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        weight = self.random.normal(0, (2 / inputs) ** 0.5, (outputs, inputs))
        return self.node("Gemm", x, self.weight(weight), self.weight(self.random.normal(0, 0.1, outputs)), transB=1)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.weight(np.zeros(())), self.weight(np.full((), 6.0)))

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)


def basic(g: Layers, x: str, channels: int) -> str:
    """Write a basic residual block."""
    inner = g.relu(g.conv(x, channels, channels, 3))
    return g.relu(g.add(g.conv(inner, channels, channels, 3), x))


def inverted(g: Layers, x: str, channels: int, kernel: int) -> str:
    """Write an inverted residual block of expansion 6."""
    wide = g.relu6(g.conv(x, channels, 6 * channels))
    wide = g.relu6(g.conv(wide, 6 * channels, 6 * channels, kernel, group=6 * channels))
    return g.add(g.conv(wide, 6 * channels, channels), x)


def first(g: Layers, x: str, inputs: int, outputs: int) -> str:
    """Write a block without expansion and shortcut: depthwise, then projection."""
    return g.conv(g.relu6(g.conv(x, inputs, inputs, 3, group=inputs)), inputs, outputs)


def dense(g: Layers, x: str, channels: int) -> str:
    """Write two convolutions in a row."""
    return g.relu(g.conv(g.relu(g.conv(x, channels, channels, 3)), channels, channels, 3))


@dataclass(frozen=True)
class Spec:
    """A region: what it is, the shape of one input, how it is written, and which clip stands in front of it."""

    what: str
    shape: tuple[int, ...]
    write: Callable[[Layers, str], str]
    front: str = "relu"  # "", where the block before ends linear
    residual: bool = True  # whether the block behind has a shortcut: then the output is read twice
    outputs: int = 0  # channels, if others than of the input


SPECS = {
    "a": Spec("basic block, 16 ch, 32x32", (16, 32, 32), lambda g, x: basic(g, x, 16)),
    "b": Spec("basic block, 64 ch, 8x8", (64, 8, 8), lambda g, x: basic(g, x, 64)),
    "c": Spec("inverted residual 80-480-80, 3x3, 14x14", (80, 14, 14), lambda g, x: inverted(g, x, 80, 3), ""),
    "d": Spec("first MBConv 32-16, 3x3, 112x112", (32, 112, 112), lambda g, x: first(g, x, 32, 16), "relu6", False, 16),
    "c28": Spec("inverted residual 40-240-40, 5x5, 28x28", (40, 28, 28), lambda g, x: inverted(g, x, 40, 5), ""),
    "c7": Spec("inverted residual 192-1152-192, 5x5, 7x7", (192, 7, 7), lambda g, x: inverted(g, x, 192, 5), ""),
    "fc": Spec("classifier 1280-1000", (1280,), lambda g, x: g.linear(x, 1280, 1000), "relu", False, 1000),
    "r18": Spec("basic block, 64 ch, 56x56", (64, 56, 56), lambda g, x: basic(g, x, 64)),
    "r50": Spec("two 3x3, 256 ch, 14x14", (256, 14, 14), lambda g, x: dense(g, x, 256), "relu", False),
}


def float_model(spec: Spec, random: np.random.Generator) -> onnx.ModelProto:
    """Return the region with a layer before it and one behind."""
    g, channels = Layers(random), spec.shape[0]
    layer = g.conv if len(spec.shape) > 1 else g.linear
    current = layer("x", channels, channels)
    current = {"": lambda y: y, "relu": g.relu, "relu6": g.relu6}[spec.front](current)
    g.place = INSIDE
    current = spec.write(g, current)
    g.place = BEHIND
    outputs = spec.outputs or channels
    last = layer(current, outputs, outputs)
    if spec.residual:
        last = g.add(last, current)
    shape: list[int | str] = ["N", *spec.shape]
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(g.nodes, "region", [given], [result], g.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@dataclass(frozen=True)
class Subject:
    """A region ready to be trained: the compiler's model, the region's graph, samples of what it reads and makes."""

    qmodel: QModel
    region: Region
    sides: Sides

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.sides.count

    def samples(self, name: str) -> Array:
        """Return all samples of one of the region's feeds."""
        return self.sides.rows(self.region.feeds[name], range(self.count))


def subject(name: str, samples: int, spool: Spool) -> Subject:
    """Compile the model around region `name` up to calibration, W4A4, and cut the region out of it."""
    spec, random = SPECS[name], np.random.default_rng(0)
    data = random.standard_normal((samples, *spec.shape), np.float32)
    model = open_model(float_model(spec, random), Config(w=4, a=4, threads=1), {"x": data})
    PassManager((*PREPARE, *place(model.config), *change_channels(model.config), Calibrate())).run(model)
    assert model.data is not None
    sides = Sides(model.graph, model.plan, model.data, 1, spool)
    before, inside = ([n.name for n in model.graph.nodes if n.name.startswith(place)] for place in (BEFORE, INSIDE))
    sides.run_float(before)
    sides.run_quantized(sides.steps_of(before))
    sides.run_float(inside)
    numbers = sides.steps_of(inside)
    steps = [sides.program().steps[number] for number in numbers]
    inner = sides.inner_shapes(numbers, BATCH)
    builder = RegionBuilder(model.graph, model.plan, sides.sizes(BATCH), inner, sides.tensors, BATCH)
    return Subject(model, builder.build(steps, sides.inputs_of(steps), sides.outputs_of(numbers)), sides)
