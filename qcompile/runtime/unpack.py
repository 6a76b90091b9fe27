"""Take packed weights apart one by one, with ONNX Runtime's own kernels, before it loads the whole file.

When it loads a file it folds what takes them apart as well, but keeps what is made on the way, in int32 too, until the
last one is done: at 4 bits 13 bytes for every weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from qcompile.ir.protos import all_nodes
from qcompile.ir.store import Store, place_of
from qcompile.runtime.session import Session

UNPACKING = {"BitShift", "BitwiseAnd", "BitwiseOr", "Reshape", "Slice", "Cast", "Mul", "Add"}  # see `emission.pack`


def unpacked(model: onnx.ModelProto, store: Store) -> onnx.ModelProto:
    """Return `model` with stored weights that are packed in the form in which they are read, in `store` as well."""
    constants = {tensor.name for tensor in model.graph.initializer}
    stored = {tensor.name for tensor in model.graph.initializer if place_of(tensor) is not None}
    makers: dict[str, NodeProto] = {}  # of what follows from constants
    for node in model.graph.node:
        if node.op_type in UNPACKING and all(name in constants or name in makers for name in node.input):
            makers[node.output[0]] = node
    others = (node for node in model.graph.node if node.output[0] not in makers)
    weights = read_by(others).intersection(makers)
    chains = {name: behind(name, makers) for name in sorted(weights)}
    large = {name: chain for name, chain in chains.items() if not stored.isdisjoint(read_by(chain))}
    return replaced(model, {name: store.put(made_by(model, chain, name), name) for name, chain in large.items()})


def read_by(nodes: Iterable[NodeProto]) -> set[str]:
    """Return what nodes read, those of their subgraphs included."""
    return {name for node in all_nodes(nodes) for name in node.input}


def behind(name: str, makers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Return the nodes that make a tensor from constants, in the order of the model."""
    found, queue = set[str](), [name]
    while queue:
        at = queue.pop()
        if at in makers and at not in found:
            found.add(at)
            queue += makers[at].input
    return [node for output, node in makers.items() if output in found]


def made_by(model: onnx.ModelProto, nodes: Sequence[NodeProto], name: str) -> NDArray[Any]:
    """Return the tensor that some nodes of `model` make of its constants."""
    read = read_by(nodes)
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = helper.make_graph(nodes, "weight", [], [onnx.ValueInfoProto(name=name)], tensors)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return Session(part, level="off", threads=1).run({})[name]


def replaced(model: onnx.ModelProto, made: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """Return `model` with constants in the place of what its nodes make, and without what nobody reads then."""
    if not made:
        return model
    light = onnx.ModelProto()
    light.CopyFrom(model)
    read, nodes = {output.name for output in model.graph.output}, list[NodeProto]()
    for node in reversed(model.graph.node):
        if read.intersection(node.output) and made.keys().isdisjoint(node.output):
            nodes.append(node)
            read |= read_by([node])
    del light.graph.node[:], light.graph.initializer[:]
    light.graph.node.extend(reversed(nodes))
    light.graph.initializer.extend(t for t in (*model.graph.initializer, *made.values()) if t.name in read)
    return light
