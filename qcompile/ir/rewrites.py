"""The rewriting engine: rules that look at one node, applied until none applies any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir.graph import (
    Constant,
    Graph,
    Node,
    Tensor,
    Variable,
    fresh_name,
    is_output,
    is_standard,
    many_fresh_names,
    producer,
    replace_uses,
)
from qcompile.ir.shapes import kind_of

ROUNDS = 100  # rules only ever simplify; a number that is reached means that two rules undo each other


@dataclass(frozen=True)
class Rule:
    """`apply(graph, node)` rewrites around a node of type `ops` and says whether it did; the function stays."""

    name: str
    ops: frozenset[str]
    apply: Callable[[Graph, Node], bool]


def rule(name: str, ops: str, apply: Callable[[Graph, Node], bool]) -> Rule:
    """Make a row of a table of rules; `ops` are separated by spaces."""
    return Rule(name, frozenset(ops.split()), apply)


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Counter[str]:
    """Apply `rules` until none applies; return how often each did. Nodes left without outputs are swept out."""
    counts: Counter[str] = Counter()
    with many_fresh_names(graph):
        for _ in range(ROUNDS):
            before = counts.total()
            for node in list(graph.nodes):
                for item in rules:
                    if node.outputs and node.op in item.ops and is_standard(node) and item.apply(graph, node):
                        counts[item.name] += 1
            sweep(graph)
            if counts.total() == before:
                break
    return counts


def sweep(graph: Graph) -> int:
    """Remove nodes whose outputs nobody reads; return how many. Subgraphs stay as they are."""
    before = len(graph.nodes)
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    return before - len(graph.nodes)


def disconnect(node: Node) -> None:
    """Take a node out of play; the next sweep drops it."""
    node.inputs.clear()
    node.outputs.clear()


def bypass(graph: Graph, node: Node, source: Tensor | None = None) -> bool:
    """Let readers of the node's first output read its first input, or `source`; False where an output forbids it."""
    source, result = source if source is not None else node.inputs[0], node.outputs[0]
    if not is_output(graph, result):
        replace_uses(graph, result, source)
        disconnect(node)
        return True
    maker = producer(source)
    if maker is None or is_output(graph, source):
        return False  # an input or a constant cannot take the output's name
    disconnect(node)
    replace_uses(graph, source, result)
    maker.outputs = [result if tensor is source else tensor for tensor in maker.outputs]
    return True


def replace_tail(node: Node, last: Node) -> None:
    """Let `node` make what `last`, the node behind it, makes now; `last` goes."""
    result = last.outputs[0]
    disconnect(last)
    node.outputs[0] = result


def insert_behind(graph: Graph, node: Node, op: str, constants: Sequence[Constant] = (), **attrs: Any) -> Node:
    """Put a node behind `node`: it makes what `node` made, whose own result gets a fresh name."""
    result = node.outputs[0]
    middle = Variable(fresh_name(graph, f"{result.name}_{op.lower()}_input"), dtype=result.dtype)
    node.outputs[0] = middle
    added = Node(
        op, fresh_name(graph, f"{node.name}_{op.lower()}"), attrs=attrs, inputs=[middle, *constants], outputs=[result]
    )
    graph.nodes.insert(next(i for i, item in enumerate(graph.nodes) if item is node) + 1, added)
    return added


def insert_before(
    graph: Graph, node: Node, source: Tensor, op: str, others: Sequence[Tensor] = (), **attrs: Any
) -> Variable:
    """Put a node in front of `node` that works on `source`, and return what it makes; `node` does not read it yet."""
    made = Variable(fresh_name(graph, f"{source.name}_{op.lower()}"), dtype=source.dtype)
    name = fresh_name(graph, f"{node.name}_{op.lower()}")
    added = Node(op, name, attrs=attrs, inputs=[source, *others], outputs=[made])
    graph.nodes.insert(next(i for i, item in enumerate(graph.nodes) if item is node), added)
    return made


def new_constant(graph: Graph, stem: str, values: NDArray[Any]) -> Constant:
    """Return a constant with a name of its own; a scalar stays one (numpy.ascontiguousarray makes a vector of it)."""
    return Constant(fresh_name(graph, stem), np.asarray(values, order="C"))


def integers(graph: Graph, stem: str, *values: int) -> Constant:
    """Return a constant list of int64: axes, or the dimensions of a shape."""
    return new_constant(graph, stem, np.array(values, np.int64))


def constant_operand(node: Node) -> tuple[Tensor, Constant] | None:
    """Return (data, constant) of a two-operand node with exactly one constant, whichever side it stands on."""
    if len(node.inputs) != 2:
        return None
    a, b = node.inputs
    if isinstance(b, Constant) and not isinstance(a, Constant):
        return a, b
    return (b, a) if isinstance(a, Constant) and not isinstance(b, Constant) else None


def scalar(tensor: Tensor) -> float | None:
    """Return the number that a constant of one element holds, else None."""
    if kind_of(tensor) and isinstance(tensor, Constant) and int(np.prod(tensor.shape)) == 1:
        return float(np.asarray(tensor.values).reshape(()))
    return None


def optional_input(node: Node, position: int) -> Tensor | None:
    """Return the input at `position`, or None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) and node.inputs[position].name else None
