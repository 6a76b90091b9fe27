"""Random quantized graphs, well made or badly: layers in a row, each with its own way to be quantized."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 4  # and samples, so that matrices are square and may be turned
SCALES = (0.02, 0.05)
TYPES = {"uint8": (0, 3, 128), "int8": (0, -128, 5), "uint16": (0, 100)}


@dataclass(frozen=True)
class Layer:
    """One layer: what its weight, its bias and its output are, and what else reads its output."""

    op: str
    weight: str
    per_channel: bool
    bias: str
    clip: str
    quantized: bool
    moved: bool
    other_reader: str
    zero_point_given: bool


@dataclass
class Graph:
    """A graph in the making; every tensor has a name of its own."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    codes: str = "uint8"
    zero_point: int = 0

    def constant(self, values: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def pair(self, tensor: str, scale: float) -> str:
        """Return what a quantizer and its DequantizeLinear make of a tensor."""
        kind = np.dtype(self.codes)
        parameters = self.constant(np.float32(scale)), self.constant(np.array(self.zero_point, kind))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", tensor, *parameters), *parameters)


def weight_of(graph: Graph, layer: Layer, shape: tuple[int, ...], axis: int) -> str:
    """Return a weight behind its DequantizeLinear; "float" is none."""
    random = np.random.default_rng(len(graph.nodes))
    if layer.weight == "float":
        return graph.constant(random.standard_normal(shape).astype(np.float32))
    size = shape[axis] if layer.per_channel else ()
    values, zero_point = random.integers(1, 100, shape), 3 if layer.weight == "int8 around 3" else 0
    kind = layer.weight.split()[0]
    inputs = [graph.constant(values.astype(kind)), graph.constant(random.uniform(0.01, 0.02, size).astype(np.float32))]
    if layer.zero_point_given or zero_point:
        inputs.append(graph.constant(np.full(size, zero_point, kind)))
    return graph.node("DequantizeLinear", *inputs, **({"axis": axis} if layer.per_channel else {}))


def bias_of(graph: Graph, layer: Layer, weight: str, scale: float) -> list[str]:
    """Return a bias as inputs of a layer: none, a float one, or int32 with its scale right or wrong."""
    if layer.bias == "none":
        return []
    if layer.bias == "float" or layer.weight == "float":
        return [graph.constant(np.ones(CHANNELS, np.float32))]
    pair = next(node for node in graph.nodes if node.output[0] == weight)
    values = next(numpy_helper.to_array(item) for item in graph.constants if item.name == pair.input[1])
    factor = np.float32(2 if layer.bias == "wrong scale" else 1)
    scales = (np.float32(scale) * values * factor).astype(np.float32)
    inputs = graph.constant(np.full(CHANNELS, 10, np.int32)), graph.constant(scales)
    return [graph.node("DequantizeLinear", *inputs, **({"axis": 0} if scales.ndim else {}))]


def add_layer(graph: Graph, layer: Layer, tensor: str, scale: float, behind: float) -> str:
    """Add a layer that reads `tensor`, whose codes have `scale`; return what the next one reads."""
    image = layer.op in ("Conv", "Depthwise")
    if layer.op == "Conv":
        shape, axis = (CHANNELS, CHANNELS, 1, 1), 0
    elif layer.op == "Depthwise":
        shape, axis = (CHANNELS, 1, 1, 1), 0
    else:
        shape, axis = (CHANNELS, CHANNELS), 1
    weight = weight_of(graph, layer, shape, axis)
    bias = [] if layer.op == "MatMul" else bias_of(graph, layer, weight, scale)
    attributes = {"group": CHANNELS} if layer.op == "Depthwise" else {}
    made = graph.node("Conv" if image else layer.op, tensor, weight, *bias, **attributes)
    if layer.other_reader == "output":
        graph.outputs.append(made)
    elif layer.other_reader == "float":
        graph.outputs.append(graph.node("Neg", made))
    if layer.clip == "Relu":
        made = graph.node("Relu", made)
    elif layer.clip == "Clip":
        made = graph.node("Clip", made, graph.constant(np.float32(0)), graph.constant(np.float32(6)))
    if layer.moved and image:
        made = graph.node("Transpose", made, perm=[0, 1, 3, 2])
    elif layer.moved:
        made = graph.node("Reshape", made, graph.constant(np.array([CHANNELS, CHANNELS])))
    if layer.quantized:
        made = graph.pair(made, behind)
        if layer.other_reader == "branch":
            graph.outputs.append(graph.node("Neg", made))
    return made


def model_of(layers: list[Layer], codes: str, zero_point: int, scales: list[float]) -> onnx.ModelProto:
    """Return layers in a row as a model; those on images come first."""
    graph = Graph(codes=codes, zero_point=zero_point)
    layers = sorted(layers, key=lambda layer: layer.op in ("Gemm", "MatMul"))
    image = layers[0].op in ("Conv", "Depthwise")
    tensor = graph.pair("x", scales[0])
    for layer, scale, behind in zip(layers, scales, scales[1:]):
        if image and layer.op in ("Gemm", "MatMul"):
            image = False
            shape = graph.constant(np.array([-1, CHANNELS]))
            tensor = graph.node("Reshape", tensor, shape)
        tensor = add_layer(graph, layer, tensor, scale, behind)
    shape = [CHANNELS, CHANNELS, *((1, 1) if layers[0].op in ("Conv", "Depthwise") else ())]
    outputs = dict.fromkeys([*graph.outputs, tensor])
    made = helper.make_graph(
        graph.nodes,
        "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        graph.constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


LAYERS = st.builds(
    Layer,
    op=st.sampled_from(["Conv", "Depthwise", "Gemm", "MatMul"]),
    weight=st.sampled_from(["int8", "int8", "int8", "uint8", "int8 around 3", "float"]),
    per_channel=st.booleans(),
    bias=st.sampled_from(["none", "exact", "exact", "float", "wrong scale"]),
    clip=st.sampled_from(["", "", "Relu", "Clip"]),
    quantized=st.sampled_from([True, True, True, False]),
    moved=st.booleans(),
    other_reader=st.sampled_from(["", "", "", "output", "float", "branch"]),
    zero_point_given=st.booleans(),
)


@st.composite
def quantized_models(draw: st.DrawFn) -> onnx.ModelProto:
    """A model of one to three layers, all activations of one type."""
    layers = draw(st.lists(LAYERS, min_size=1, max_size=3))
    codes = draw(st.sampled_from(["uint8", "uint8", "int8", "uint16"]))
    scales = draw(st.lists(st.sampled_from(SCALES), min_size=len(layers) + 1, max_size=len(layers) + 1))
    return model_of(layers, codes, draw(st.sampled_from(TYPES[codes])), scales)
