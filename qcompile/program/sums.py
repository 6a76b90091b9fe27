"""Sums that runtimes compute in one kernel with the layer in front of them: that operand is not rounded."""

from __future__ import annotations

from qcompile.ir import Graph, Node, Tensor, Variable, only_consumer, producer
from qcompile.program.operands import data_inputs
from qcompile.quant.plan import Form, Plan


def unrounded_operand(graph: Graph, plan: Plan, node: Node) -> Tensor | None:
    """Return the operand of an Add that a layer on integers makes for it alone, or None.

    Of two such operands it is the one with more nodes before it: the other one is the shortcut.
    """
    operands = data_inputs(node)
    if node.op != "Add" or len(operands) != 2 or operands[0] is operands[1]:
        return None
    made = [tensor for tensor in operands if _is_layer(plan, producer(tensor)) and only_consumer(graph, tensor) is node]
    return max(made, key=_nodes_before, default=None)


def _is_layer(plan: Plan, node: Node | None) -> bool:
    return node is not None and plan.form(node.name) is Form.COMPUTE


def _nodes_before(tensor: Variable) -> int:
    """Return how many nodes a tensor is made from."""
    seen, waiting = dict[str, Node](), [producer(tensor)]
    while waiting:
        node = waiting.pop()
        if node is not None and node.name not in seen:
            seen[node.name] = node
            waiting += map(producer, node.inputs)
    return len(seen)
