"""The sizes of what steps make of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcompile.emission.fragment import element_type
from qcompile.ir import Constant, Graph, Tensor, node_proto
from qcompile.ir.protos import LARGE
from qcompile.ir.shapes import size_of
from qcompile.program.lower import Step

Sizes = dict[str, tuple[int, ...]]


def sizes_of(
    graph: Graph, steps: Sequence[Step], given: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> Sizes:
    """Return the shapes of the tensors of `graph` that `steps` stand for, as far as ONNX knows them.

    `given` are the shapes of the tensors that they read, `names` maps the names of codes to tensors. Sizes are numbers
    even where the graph has symbols or nothing: for images of any size, and where a batch is folded into another axis.
    """
    nodes, tensors = _nodes(steps, names), graph.tensors()
    read = {name: tensors[name] for node in nodes for name in node.input if name in tensors}
    constants = [tensor for tensor in read.values() if isinstance(tensor, Constant)]
    small = [numpy_helper.from_array(t.values, t.name) for t in constants if size_of(t) <= LARGE]
    shapes = {**given, **{t.name: tuple(t.shape) for t in constants if size_of(t) > LARGE}}
    inputs = [helper.make_tensor_value_info(name, element_type(tensors[name]), shapes[name]) for name in shapes]
    imports = [helper.make_opsetid("", graph.opset)]
    inferred = ModelProto()
    with suppress(Exception):  # operators that ONNX does not know: their results have no known size
        model = helper.make_model(helper.make_graph(nodes, "sizes", inputs, [], small), opset_imports=imports)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {item.name: item.type.tensor_type for item in inferred.graph.value_info}
    dims = {name: kind.shape.dim for name, kind in found.items() if kind.HasField("shape")}
    known = {name: shape for name, shape in dims.items() if all(dim.HasField("dim_value") for dim in shape)}
    return {name: tuple(dim.dim_value for dim in shape) for name, shape in known.items()} | dict(given)


def is_real(tensor: Tensor) -> bool:
    """Say whether a tensor holds float32, which is what a loss can be computed of."""
    return element_type(tensor) == TensorProto.FLOAT


def _nodes(steps: Sequence[Step], names: Mapping[str, str]) -> list[NodeProto]:
    """Return the nodes of `steps`, and Identity where clips and quantizers give their results another name."""
    nodes: list[NodeProto] = []
    made: set[str] = set()
    for step in steps:
        if step.node is not None:
            outputs = [tensor.name for tensor in step.node.outputs]
            nodes.append(node_proto(step.node, [tensor.name for tensor in step.node.inputs], outputs))
            made.update(outputs)
            source = outputs[0]
        else:
            source = names.get(step.inputs[0].name, step.inputs[0].name)
        target = names.get(step.outputs[0].name, step.outputs[0].name)
        if target not in made | {source}:
            nodes.append(helper.make_node("Identity", [source], [target]))
            made.add(target)
    return nodes
