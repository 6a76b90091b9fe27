"""The activation DAG: what flows through a graph, without weights, constants and shape arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from qcompile.ir import Graph, Node, Variable, captured_names, topological
from qcompile.ir.protos import LAYERS

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
SHAPE_SOURCES = frozenset({"Shape", "Size"})  # their outputs depend on shapes, not on values


@dataclass(frozen=True)
class ActivationDag:
    """Nodes in topological order, known by their index in it, and the tensors between them, known by name.

    `reads` and `makes` list the activation tensors of each node, each once, with what its subgraphs capture and, for
    `reads`, the inner tensors whose shapes it needs: they too must be there before it runs. `maker` maps a tensor to
    its node (graph inputs have none); `readers` a tensor to its nodes; `outputs` are the graph's.
    """

    nodes: tuple[Node, ...]
    reads: tuple[tuple[str, ...], ...]
    makes: tuple[tuple[str, ...], ...]
    maker: dict[str, int]
    readers: dict[str, tuple[int, ...]]
    outputs: frozenset[str]

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def before(self) -> list[set[int]]:
        """For each node those whose outputs it reads."""
        return [{self.maker[name] for name in names if name in self.maker} for names in self.reads]

    @cached_property
    def behind(self) -> list[set[int]]:
        """For each node those that read its outputs."""
        return [{reader for name in names for reader in self.readers.get(name, ())} for names in self.makes]

    @cached_property
    def compute(self) -> frozenset[int]:
        """Conv, ConvTranspose, Gemm and MatMul."""
        return frozenset(index for index, node in enumerate(self.nodes) if node.op in LAYERS)

    @cached_property
    def opaque(self) -> frozenset[int]:
        """Control flow, and loops over time."""
        return frozenset(index for index, node in enumerate(self.nodes) if node.op in RECURRENT or has_subgraph(node))

    @cached_property
    def first_compute(self) -> frozenset[int]:
        """The compute nodes that no other compute node precedes."""
        return self.compute - self._beyond_compute(range(len(self)), self.before)

    @cached_property
    def last_compute(self) -> frozenset[int]:
        """The compute nodes that no other compute node follows."""
        return self.compute - self._beyond_compute(range(len(self))[::-1], self.behind)

    def _beyond_compute(self, order: Iterable[int], neighbours: list[set[int]]) -> set[int]:
        beyond: set[int] = set()
        for index in order:
            if any(other in beyond or other in self.compute for other in neighbours[index]):
                beyond.add(index)
        return beyond

    def gives_out(self, index: int) -> bool:
        """Say whether an output of node `index` is an output of the graph."""
        return not self.outputs.isdisjoint(self.makes[index])

    def boundary(self, members: Collection[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the tensors that the set `members` reads from outside, and those of its own that are read outside.

        A graph output counts as read outside. Both are in topological order, inputs by their first use.
        """
        inside, order = set(members), sorted(members)
        made = {name for index in order for name in self.makes[index]}
        inputs = [name for index in order for name in self.reads[index] if name not in made]
        outputs = [
            name
            for index in order
            for name in self.makes[index]
            if name in self.outputs or not inside.issuperset(self.readers.get(name, ()))
        ]
        return tuple(dict.fromkeys(inputs)), tuple(outputs)


def activation_dag(graph: Graph) -> ActivationDag:
    """Return the nodes of `graph` that work on values derived from its inputs.

    Shape and Size, and what is computed from their outputs and constants alone, are shape arithmetic and stay out; so
    do nodes on constants alone, unless they are compute nodes.
    """
    inputs = {tensor.name for tensor in graph.inputs}
    stands_for: dict[str, tuple[str, ...]] = {name: (name,) for name in inputs}  # itself, or what gives its shape
    nodes, reads, flowing = [], [], set(inputs)
    for node in topological(graph):
        names, made = _read_names(node), _made_names(node)
        read = tuple(dict.fromkeys(source for name in names for source in stands_for.get(name, ())))
        if node.op not in SHAPE_SOURCES and (node.op in LAYERS or not flowing.isdisjoint(names)):
            nodes.append(node)
            reads.append(read)
            flowing.update(made)
            stands_for.update({name: (name,) for name in made})
        else:
            stands_for.update(dict.fromkeys(made, tuple(name for name in read if name not in inputs)))
    makes = tuple(_made_names(node) for node in nodes)
    readers: dict[str, list[int]] = {}
    for index, names in enumerate(reads):
        for name in names:
            readers.setdefault(name, []).append(index)
    return ActivationDag(
        nodes=tuple(nodes),
        reads=tuple(reads),
        makes=makes,
        maker={name: index for index, names in enumerate(makes) for name in names},
        readers={name: tuple(indices) for name, indices in readers.items()},
        outputs=frozenset(tensor.name for tensor in graph.outputs),
    )


def has_subgraph(node: Node) -> bool:
    """Say whether `node` is control flow: If, Loop, Scan and their kin."""
    return any(isinstance(value, Graph) for value in node.attrs.values())


def _read_names(node: Node) -> tuple[str, ...]:
    own = [tensor.name for tensor in node.inputs if isinstance(tensor, Variable) and tensor.name]
    return tuple(dict.fromkeys([*own, *sorted(captured_names(node))]))


def _made_names(node: Node) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in node.outputs if tensor.name)
