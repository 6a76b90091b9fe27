"""Control flow that is decided before the model runs: an If with a constant condition is the branch it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qcompile.ir.graph import (
    Constant,
    Graph,
    Node,
    Tensor,
    constant_value,
    fresh_name,
    is_output,
    nested_nodes,
    producer,
    replace_uses,
)
from qcompile.ir.rewrites import disconnect, scalar
from qcompile.ir.shapes import kind_of


def inline_branch(graph: Graph, node: Node) -> bool:
    """Put the nodes of the branch that an If takes in its place; the other branch goes."""
    condition = scalar(node.inputs[0])
    if condition is None:
        return False
    taken, left = (node.attrs[name] for name in ("then_branch", "else_branch")[:: 1 if condition else -1])
    for inner in list(nested_nodes(left.nodes)):
        disconnect(inner)
    results = list(node.outputs)
    moved = move_in(graph, node, taken)
    disconnect(node)
    hand_over(graph, taken.outputs, results, moved)
    return True


def deciding_inputs(graph: Graph, node: Node) -> list[str]:
    """Return the inputs of `graph`, integers all, whose values alone decide which branch an If takes; else nothing."""
    found: set[int] = set()
    waiting = [node.inputs[0]] if node.op == "If" else []
    while waiting:
        tensor = waiting.pop()
        maker = producer(tensor)
        if maker is not None and maker.op not in ("Shape", "Size", "If", "Loop", "Scan"):
            waiting += [item for item in maker.inputs if item.name and not isinstance(item, Constant)]
        elif kind_of(tensor) in ("i", "u", "b") and any(tensor is item for item in graph.inputs):
            found.add(id(tensor))
        else:
            return []
    return [tensor.name for tensor in graph.inputs if id(tensor) in found]


def move_in(graph: Graph, node: Node, branch: Graph) -> list[Node]:
    """Put the nodes of `branch` in front of `node`, with names that nothing else has; return them."""
    moved: list[Node] = list(branch.nodes)
    around = [item for item in graph.nodes if item is not node]
    tensors = {id(tensor): tensor.name for tensor in (*graph.inputs, *graph.outputs, *tensors_of(nested_nodes(around)))}
    taken = set(tensors.values())
    for tensor in tensors_of(moved):
        if id(tensor) not in tensors and (isinstance(tensor, Constant) or tensor.inputs):
            tensors[id(tensor)] = tensor.name = (
                tensor.name if tensor.name not in taken else fresh_name(graph, tensor.name)
            )
            taken.add(tensor.name)
    names = {item.name for item in around}
    for item in moved:
        stem = item.name or next((tensor.name for tensor in item.outputs if tensor.name), item.op)
        item.name = stem if stem not in names else fresh_name(graph, stem)
        item.inner = False
        names.add(item.name)
        if item.op == "Constant" and (values := constant_value(item.outputs[0])) is not None:
            tensor = item.outputs[0]
            disconnect(item)
            tensor.to_constant(values)
    place = next(index for index, item in enumerate(graph.nodes) if item is node)
    graph.nodes[place:place] = moved
    branch.nodes = []
    return moved


def tensors_of(nodes: Iterable[Node]) -> list[Tensor]:
    """Return the tensors that nodes read and make."""
    return [tensor for node in nodes for tensor in (*node.inputs, *node.outputs) if tensor.name]


def hand_over(graph: Graph, made: Iterable[Tensor], results: Iterable[Tensor], moved: Iterable[Node]) -> None:
    """Let the outputs of a branch be the results of its If; what the branch itself made takes the result's name."""
    own = {id(node) for node in moved}
    renamed: dict[int, Tensor] = {}
    for tensor, result in zip(made, results):
        if not result.name:
            continue
        source = renamed.get(id(tensor), tensor)
        maker = producer(source)
        if maker is not None and id(maker) in own and source is tensor:
            result.dtype, result.shape = tensor.dtype or result.dtype, tensor.shape or result.shape
            replace_uses(graph, tensor, result)
            outputs: list[Any] = [result if output is tensor else output for output in maker.outputs]
            maker.outputs = outputs
            renamed[id(tensor)] = result
            continue
        if maker is None and not isinstance(source, Constant):  # one of the outer graph, which a branch knows by name
            source = graph.tensors()[source.name]
        if is_output(graph, result):
            graph.nodes.append(Node("Identity", fresh_name(graph, result.name), inputs=[source], outputs=[result]))
        else:
            replace_uses(graph, result, source)
