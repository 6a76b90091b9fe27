"""Questions and small edits on a graph. `Graph`, `Node`, `Variable`, `Constant` are onnx-graphsurgeon's own classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import onnx
import onnx_graphsurgeon as gs  # noqa: TID251  (the one door)
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter  # noqa: TID251

from qcompile.ir.protos import ONNX_DOMAINS, all_graphs, all_nodes

Graph: TypeAlias = gs.Graph
Node: TypeAlias = gs.Node
Variable: TypeAlias = gs.Variable
Constant: TypeAlias = gs.Constant
Tensor: TypeAlias = gs.Tensor


def producer(tensor: Tensor) -> Node | None:
    """Return the node that makes `tensor`, or None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: Tensor) -> list[Node]:
    """Return the nodes that read `tensor`, each once, in the order of first use."""
    return list({id(node): node for node in tensor.outputs}.values())


def is_output(graph: Graph, tensor: Tensor) -> bool:
    """Say whether `tensor` is an output of the graph."""
    return any(tensor is output for output in graph.outputs)


def only_consumer(graph: Graph, tensor: Tensor) -> Node | None:
    """Return the one node that reads `tensor`, or None if several do, a subgraph does, or the graph gives it out."""
    single = len(tensor.outputs) == 1 and not is_output(graph, tensor) and not is_inner(tensor.outputs[0])
    return tensor.outputs[0] if single else None


def is_inner(node: Node) -> bool:
    """Say whether `node` stands in a subgraph (of If, Loop, Scan): it reads outer tensors, but no pass may touch it."""
    return bool(vars(node).get("inner", False))


def is_standard(node: Node) -> bool:
    """Say whether the operator is one of ONNX itself, not of a custom domain."""
    return node.domain in (None, *ONNX_DOMAINS)


def constant_value(tensor: Tensor) -> NDArray[Any] | None:
    """Return the array behind an initializer or a Constant node, else None."""
    if isinstance(tensor, Constant):
        return np.asarray(tensor.values)
    node = producer(tensor)
    if node is not None and node.op == "Constant" and "value" in node.attrs:
        return np.asarray(node.attrs["value"].values)
    return None


def element_type(tensor: Tensor) -> int:
    """Return the type in which a tensor's elements are fed, as ONNX writes it: float32 for what numpy lacks."""
    known = tensor.dtype is not None and not isinstance(tensor.dtype, int)
    return int(onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)) if known else int(onnx.TensorProto.FLOAT)


def is_real(tensor: Tensor) -> bool:
    """Say whether a tensor holds float32, which is what a loss can be computed of."""
    return not isinstance(tensor.dtype, int) and element_type(tensor) == onnx.TensorProto.FLOAT


def activation_inputs(node: Node) -> list[Variable]:
    """Return the inputs of `node` that are neither constants nor absent."""
    return [tensor for tensor in node.inputs if isinstance(tensor, Variable) and not tensor.is_empty()]


def topological(graph: Graph) -> list[Node]:
    """Return the nodes so that each stands behind its inputs; nodes that were in order stay in their order."""
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    dag: nx.DiGraph[int] = nx.DiGraph()
    dag.add_nodes_from(order)
    made_by = {tensor.name: id(node) for node in graph.nodes for tensor in node.outputs if tensor.name}
    for node in graph.nodes:
        read = {tensor.name for tensor in node.inputs} | captured_names(node)
        dag.add_edges_from((made_by[name], id(node)) for name in read if name in made_by)
    nodes = {id(node): node for node in graph.nodes}
    return [nodes[key] for key in nx.lexicographical_topological_sort(dag, key=order.__getitem__)]


def part_before(graph: Graph, names: Iterable[str]) -> Graph:
    """Return the part of `graph` that makes the tensors `names`, without outputs; nodes and tensors are shared."""
    wanted, nodes = set(names), list[Node]()
    for node in reversed(topological(graph)):
        if not wanted.isdisjoint(tensor.name for tensor in node.outputs):
            nodes.append(node)
            wanted |= {tensor.name for tensor in node.inputs} | captured_names(node)
    part = Graph()
    vars(part).update(vars(graph) | {"nodes": nodes[::-1], "outputs": []})
    return part


def replace_uses(graph: Graph, old: Tensor, new: Tensor) -> None:
    """Let every reader of `old` read `new`; if `old` is a graph output, `new` takes its name and its place."""
    for node in list(old.outputs):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    if is_output(graph, old):
        old.name, new.name = fresh_name(graph, old.name), old.name
        outputs: list[Any] = [new if tensor is old else tensor for tensor in graph.outputs]
        graph.outputs = outputs


def fresh_name(graph: Graph, stem: str) -> str:
    """Return `stem`, or `stem_2`, `stem_3` ...: a name that no tensor and no node of the graph has."""
    return unique_name(stem, vars(graph).get("taken_names") or taken_names(graph))


def unique_name(stem: str, taken: set[str]) -> str:
    """Return `stem`, or `stem_2`, `stem_3` ...: a name that is not in `taken`, which is taken now."""
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


@contextmanager
def many_fresh_names(graph: Graph) -> Iterator[None]:
    """Collect the names of `graph` once for all calls of `fresh_name` inside; all new names must come from it."""
    vars(graph)["taken_names"] = taken_names(graph)
    try:
        yield
    finally:
        del vars(graph)["taken_names"]


def taken_names(graph: Graph) -> set[str]:
    """Return the names of all tensors and nodes, those of subgraphs included."""
    names = set(graph.tensors(check_duplicates=False)) | {node.name for node in graph.nodes}
    return names.union(*(taken_names(inner) for inner in graph.subgraphs()))


def captured_names(node: Node) -> set[str]:
    """Return the names of outer tensors that the subgraphs of a control-flow node may read."""
    names: set[str] = set()
    for value in node.attrs.values():
        if isinstance(value, Graph):
            names |= {tensor.name for inner in value.nodes for tensor in inner.inputs if tensor.name}
            names |= {tensor.name for tensor in value.outputs}
            names |= {name for inner in value.nodes for name in captured_names(inner)}
    return names


def node_proto(node: Node, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    """Return the node as ONNX, with other names for its inputs and outputs."""
    proto = OnnxExporter.export_node(node)
    restore_attributes([node], [proto])
    del proto.input[:], proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    return proto


def nested_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield `nodes` and those of the subgraphs inside them, in the order of `protos.all_nodes`."""
    for node in nodes:
        yield node
        for value in node.attrs.values():
            if isinstance(value, Graph):
                yield from nested_nodes(value.nodes)


def restore_attributes(nodes: Iterable[Node], made: Iterable[onnx.NodeProto]) -> None:
    """Put the attributes that the graph library cannot carry back into what it made of `nodes`."""
    for node, proto in zip(nested_nodes(nodes), all_nodes(made), strict=True):
        proto.attribute.extend(vars(node).get("exotic_attributes", []))


def restore_types(made: onnx.GraphProto, graph: Graph) -> None:
    """Put the types that are not tensors back into the inputs and outputs of what was made of `graph`."""
    types: dict[str, onnx.TypeProto] = vars(graph).get("exotic_types", {})
    for part in all_graphs(made):
        for info in (*part.input, *part.output):
            if info.name in types:
                info.type.CopyFrom(types[info.name])


def value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    """Return name, type and shape of a graph input or output as ONNX."""
    return OnnxExporter.export_value_info_proto(tensor, do_type_check=False)
