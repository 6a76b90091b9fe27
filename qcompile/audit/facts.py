"""What the plan says about a file: bits, and what stays float."""

from __future__ import annotations

from collections import Counter

from qcompile.ir import Graph
from qcompile.outcomes import FloatNode
from qcompile.quant.plan import Form, Plan


def bit_counts(plan: Plan) -> dict[str, dict[str, int]]:
    """Return how many weights and activation quantizers have how many bits."""
    weights = Counter(weight.bits for weight in plan.weights.values())
    activations = Counter(quantizer.bits for quantizer in plan.quantizers.values())
    groups = {"weights": weights, "activations": activations}
    return {name: {str(bits): counts[bits] for bits in sorted(counts)} for name, counts in groups.items()}


def float_nodes(graph: Graph, plan: Plan) -> list[FloatNode]:
    """Return the nodes that the plan keeps float, with reasons."""
    placed = ((node, plan.nodes.get(node.name)) for node in graph.nodes)
    return [
        FloatNode(node.name, node.op, item.reason if item else "no pass has placed it")
        for node, item in placed
        if item is None or item.form is Form.FLOAT
    ]
