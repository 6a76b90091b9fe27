"""Names in subgraphs: each stands for one tensor of the whole model."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, TensorProto

from qcompile.ir.graph import unique_name
from qcompile.ir.protos import all_graphs, subgraphs


def unique_inner_names(model: ModelProto) -> None:
    """Rename the tensors of subgraphs that have a name of another graph; who reads them follows.

    Branches may share names, and runtimes also let a body take names of the graph around it: by name alone, such a node
    would depend on itself.
    """
    taken = _made(model.graph)
    for node in model.graph.node:
        for inner in subgraphs(node):
            _make_unique(inner, {}, taken)


def rename_inside(graph: GraphProto, names: Mapping[str, str], weights: dict[str, TensorProto]) -> None:
    """Rename tensors of `graph`, its subgraphs and its `weights`, where names are unique; its ports keep theirs."""
    for old in names.keys() & weights.keys():
        weights[names[old]] = weights.pop(old)
    for info in graph.input:
        info.name = names[info.name] if names.get(info.name) in weights else info.name
    _rename(graph, names)
    for inner in list(all_graphs(graph))[1:]:
        _rename(inner, names)
        for info in inner.output:
            info.name = names.get(info.name, info.name)


def _make_unique(graph: GraphProto, outer: Mapping[str, str], taken: set[str]) -> None:
    names = {**outer, **{name: unique_name(name, taken) for name in sorted(_made(graph))}}
    _rename(graph, names)
    for info in (*graph.input, *graph.output):
        info.name = names.get(info.name, info.name)
    for node in graph.node:
        for inner in subgraphs(node):
            _make_unique(inner, names, taken)


def _made(graph: GraphProto) -> set[str]:
    names = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    return names | {name for node in graph.node for name in node.output if name}


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for info in graph.value_info:
        info.name = names.get(info.name, info.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
