"""Loops that run a known, small number of times: their bodies stand in the graph as often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompile.ir.branches import hand_over
from qcompile.ir.graph import (
    Constant,
    Graph,
    Node,
    Tensor,
    Variable,
    constant_value,
    fresh_name,
    nested_nodes,
    producer,
)
from qcompile.ir.protos import LAYERS
from qcompile.ir.rewrites import disconnect, integers, new_constant, scalar

MOST_TRIPS, MOST_NODES = 16, 512  # beyond that the graph would grow too much

Values = dict[int, Tensor]  # by the id of a tensor of the body: what it is in one trip


def unroll(graph: Graph, node: Node) -> bool:
    """Put the body of a Loop in its place once for each trip, where its number is constant and nothing ends it."""
    body: Graph = node.attrs["body"]
    trips = scalar(node.inputs[0]) if node.inputs and node.inputs[0].name else None
    if trips is None or not 1 <= trips <= MOST_TRIPS or trips * len(body.nodes) > MOST_NODES or not _goes_on(node):
        return False
    nested = any(isinstance(value, Graph) for inner in body.nodes for value in inner.attrs.values())
    if nested or not any(inner.op in LAYERS for inner in body.nodes):  # nothing to win
        return False
    place = next(index for index, item in enumerate(graph.nodes) if item is node)
    carried, count = list(node.inputs[2:]), len(node.inputs) - 2
    added: list[Node] = []
    collected: list[list[Tensor]] = [[] for _ in body.outputs[1 + count :]]
    for trip in range(int(trips)):
        ends = _one_trip(graph, body, trip, carried, added)
        carried = ends[:count]
        for parts, part in zip(collected, ends[count:]):
            parts.append(part)
    stacks = [_stacked(graph, parts, added) for parts in collected]
    results = list(node.outputs)
    for inner in [*nested_nodes(body.nodes), node]:
        disconnect(inner)
    graph.nodes[place:place] = added
    hand_over(graph, [*carried, *stacks], results, added)
    return True


def _goes_on(node: Node) -> bool:
    """Say whether the condition of a Loop is true at the start and after every trip."""
    body = node.attrs["body"]
    start = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1].name else None
    if start is not None and not scalar(start):
        return False
    end = body.outputs[0]
    while (maker := producer(end)) is not None and maker.op == "Identity":
        end = maker.inputs[0]
    value = constant_value(end)
    return end is body.inputs[1] or (value is not None and bool(value.all()))


def _one_trip(graph: Graph, body: Graph, trip: int, carried: Sequence[Tensor], added: list[Node]) -> list[Tensor]:
    """Append the nodes of one trip to `added`; return what it hands on, then what it gives out."""
    number, true = new_constant(graph, "trip", np.array(trip)), new_constant(graph, "true", np.array(True))
    known: Values = {id(tensor): value for tensor, value in zip(body.inputs, (number, true, *carried))}
    for inner in body.nodes:
        if (value := constant_value(inner.outputs[0])) is not None:
            known[id(inner.outputs[0])] = new_constant(graph, inner.outputs[0].name, value)
            continue
        inputs = [known.get(id(tensor), tensor) for tensor in inner.inputs]
        outputs: list[Tensor] = [
            Variable(fresh_name(graph, tensor.name) if tensor.name else "", dtype=tensor.dtype)
            for tensor in inner.outputs
        ]
        known |= {id(tensor): made for tensor, made in zip(inner.outputs, outputs)}
        name = fresh_name(graph, inner.name or inner.op)
        copied = Node(inner.op, name, attrs=dict(inner.attrs), inputs=inputs, outputs=outputs, domain=inner.domain)
        copied.exotic_attributes, copied.inner = vars(inner).get("exotic_attributes", []), False
        added.append(copied)
    return [known.get(id(tensor)) or _from_outside(graph, tensor) for tensor in body.outputs[1:]]


def _from_outside(graph: Graph, tensor: Tensor) -> Tensor:
    """Return what a body gives out without making it."""
    return tensor if isinstance(tensor, Constant) else graph.tensors()[tensor.name]


def _stacked(graph: Graph, parts: Sequence[Tensor], added: list[Node]) -> Tensor:
    """Append nodes that stack what each trip gave out along a new first axis; return the stack."""
    axis, rows = integers(graph, "axis", 0), []
    for part in parts:
        row = Variable(fresh_name(graph, f"{part.name}_row"), dtype=part.dtype)
        added.append(Node("Unsqueeze", fresh_name(graph, row.name), inputs=[part, axis], outputs=[row]))
        rows.append(row)
    stack = Variable(fresh_name(graph, f"{parts[0].name}_rows"), dtype=parts[0].dtype)
    added.append(Node("Concat", fresh_name(graph, stack.name), attrs={"axis": 0}, inputs=rows, outputs=[stack]))
    return stack
