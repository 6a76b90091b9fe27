"""Names: unique and not empty, because everything that is decided about a tensor or a node is keyed by its name."""

from __future__ import annotations

from qcompile.ir.graph import Graph, unique_name


def name_nodes(graph: Graph) -> int:
    """Give every node without a name, or with another node's name, a name made from its output; return how many.

    Tensors are unique by the rules of ONNX already. Names that are fine stay as the exporter wrote them, so that a user
    finds his layers again.
    """
    taken = {node.name for node in graph.nodes}
    seen: set[str] = set()
    renamed = 0
    for node in graph.nodes:
        if not node.name or node.name in seen:
            stem = node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op)
            node.name = unique_name(stem, taken)
            renamed += 1
        seen.add(node.name)
        taken.add(node.name)
    return renamed
