"""What is trained at once: units that belong together, or single layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from qcompile.ir import Graph
from qcompile.ir.graph import is_real
from qcompile.program.dag import activation_dag
from qcompile.quant.plan import Plan, region_name


@dataclass(frozen=True)
class Piece:
    """Nodes that are trained together, by name. Pieces stand in an order in which they can be run.

    `units` is the number of units with weights in it, at least 1: it has the training steps of that many.
    """

    name: str
    nodes: tuple[str, ...]
    units: int = 1


def join_units(plan: Plan, regions: Sequence[Sequence[str]]) -> list[Piece]:
    """Return one piece per region."""
    nodes = {unit.name: unit.nodes for unit in plan.units}
    pieces = []
    for region in regions:
        weighted = sum(any(node in plan.weights for node in nodes[name]) for name in region)
        members = tuple(node for name in region for node in nodes[name])
        pieces.append(Piece(region_name(region), members, max(1, weighted)))
    return pieces


def cut_layers(graph: Graph) -> list[Piece]:
    """Return one piece per compute node: the node and the light nodes behind it, up to the next compute node.

    A join belongs to the last layer before it; what stands before every layer, to the first.
    """
    dag = activation_dag(graph)
    numbers = {index: number for number, index in enumerate(sorted(dag.compute))}
    for index in range(len(dag)):
        numbers.setdefault(index, max((numbers[other] for other in dag.before[index]), default=0))
    names: dict[int, list[str]] = {}
    for index in range(len(dag)):
        names.setdefault(numbers[index], []).append(dag.nodes[index].name)
    layers = {numbers[index]: dag.nodes[index].name for index in dag.compute}
    return [Piece(layers.get(number, names[number][0]), tuple(names[number])) for number in sorted(names)]


def without_integers(graph: Graph, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces; where nodes at the end of one make integers, it ends in front of them, and they are another.

    So the error of a classifier that gives out classes is that of the logits in front of its ArgMax.
    """
    real = {node.name: any(map(is_real, node.outputs)) for node in graph.nodes}
    for piece in pieces:
        end = max((number for number, node in enumerate(piece.nodes, 1) if real[node]), default=0)
        if 0 < end < len(piece.nodes):
            yield replace(piece, nodes=piece.nodes[:end])
            yield Piece(f"{piece.name}: {piece.nodes[end]}", piece.nodes[end:])
        else:
            yield piece
