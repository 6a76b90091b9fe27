"""Invariants of the graph that hold after every pass."""

from __future__ import annotations

from collections import Counter

from qcompile.errors import QCompileError
from qcompile.ir.graph import Constant, Graph


def verify(graph: Graph, *, after: str) -> None:
    """Raise QCompileError, naming the pass, unless every tensor has one source and every node its own name."""
    made = Counter(tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name)
    made.update(tensor.name for tensor in graph.inputs)
    problems = [f"tensor {name!r} is made {count} times" for name, count in made.items() if count > 1]
    read = [
        tensor for node in graph.nodes for tensor in node.inputs if tensor.name and not isinstance(tensor, Constant)
    ]
    problems += [f"tensor {tensor.name!r} is read, but nothing makes it" for tensor in read if tensor.name not in made]
    given = [tensor for tensor in graph.outputs if not isinstance(tensor, Constant)]
    problems += [f"nothing makes the output {tensor.name!r}" for tensor in given if tensor.name not in made]
    names = Counter(node.name for node in graph.nodes)
    problems += [f"{count} nodes are named {name!r}" for name, count in names.items() if count > 1 or not name]
    if problems:
        raise QCompileError(
            f"the graph is broken after pass {after!r}: {problems[0]}", where=f"{len(problems)} problems"
        )
