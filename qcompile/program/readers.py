"""Who reads a tensor."""

from __future__ import annotations

from qcompile.ir import Graph, Node, Tensor, captured_names, consumers, is_inner
from qcompile.program.operands import data_inputs


class Readers:
    """The readers of every tensor of a graph, subgraphs counted."""

    def __init__(self, graph: Graph) -> None:
        self.capturing: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in captured_names(node):
                self.capturing.setdefault(name, []).append(node)

    def of(self, tensor: Tensor) -> list[Node]:
        """Return the nodes that read `tensor`; for a subgraph that does, the control-flow node it belongs to."""
        own = [node for node in consumers(tensor) if not is_inner(node)]
        return own + [node for node in self.capturing.get(tensor.name, []) if not any(node is item for item in own)]


def reads(node: Node, tensor: Tensor) -> bool:
    """Say whether `tensor` is data to `node`, and no weight, shape or bound."""
    return any(tensor is item for item in data_inputs(node))
