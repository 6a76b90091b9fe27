"""Split the graph into units: the pieces that are reconstructed one after the other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import ClassVar, Literal

from qcompile.ir import Constant, Graph, Node, unique_name
from qcompile.ir.protos import LAYERS
from qcompile.program.blocks import find_blocks
from qcompile.program.dag import ActivationDag, activation_dag
from qcompile.qmodel import QModel
from qcompile.quant.plan import Unit

Ends = Literal["alone", "stack"]

RESIZERS = frozenset({"Resize", "Upsample", "DepthToSpace", "SpaceToDepth"})
STRIDED = LAYERS | {"MaxPool", "AveragePool", "LpPool"}
AFFINE = frozenset({"BatchNormalization", "Mul", "Add", "Identity"})  # light nodes that leave a projection linear
LAST_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class PartitionUnits:
    """Fill `plan.units`: every node that works on activations is in exactly one unit, units in topological order.

    1. *Blocks.* Where paths run in parallel and come together again (residual, inception, squeeze-excite, attention),
       all nodes between the last tensor that they share before and the first behind are a unit. It may read further
       tensors from far away.
    2. *Size.* A block has at most `max_compute` compute nodes; a larger one falls apart into the blocks inside it.
    3. *Chains.* Expand, depthwise, linear projection are one unit without a shortcut too.
    4. *Runs.* Other compute nodes are stacked, up to `max_stack` of them, never across a change of resolution. The
       first and last compute nodes stand alone (`ends="alone"`, as in BRECQ and QDrop) or stack as well (as in MRECG).
    5. *Light nodes* (elementwise, pooling, normalisation, movement) join the unit in front, so that it ends just before
       the next compute node or branch; where that would give it a second output, they join the unit behind.
    6. *Opaque nodes* (control flow, recurrent layers) are in no block, chain or run: each is a unit.

    Every merge joins what has a single reader to that reader. So units are convex, edges leave a unit from its last
    node only, which orders the units, and a unit has one output; `Unit.note` names the exceptions.

    References
    ----------
    Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021.
    Ma et al., "Solving Oscillation Problem in Post-Training Quantization Through a Theoretical Perspective", CVPR 2023.
    """

    name: ClassVar[str] = "partition-units"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    ends: Ends = "alone"
    max_stack: int = 3
    max_compute: int = 12

    def run(self, model: QModel) -> int:
        """Write the units into the plan; return how many there are."""
        model.plan.units = self.units(model.graph)
        for unit in model.plan.units:
            if unit.note:
                model.journal.note(self.name, "unit", unit=unit.name, note=unit.note)
        return len(model.plan.units)

    def units(self, graph: Graph) -> list[Unit]:
        """Return the units of `graph` in topological order."""
        dag = activation_dag(graph)
        alone = dag.first_compute | dag.last_compute if self.ends == "alone" else frozenset()
        pieces = _Chains(dag, _pieces(dag, self.max_compute), alone).joined()
        units = _join_behind(dag, _join_in_front(dag, pieces, alone, self.max_stack))
        return _described(dag, units)


@dataclass
class _Piece:
    """Nodes that stay together; only the last one is read outside. `open`: compute nodes may be stacked behind it."""

    nodes: list[int]
    compute: int
    open: bool

    def __post_init__(self) -> None:
        self.last = max(self.nodes)

    def take(self, other: _Piece) -> None:
        """Join the nodes of `other` to this piece."""
        self.nodes.extend(other.nodes)
        self.compute += other.compute
        self.last = max(self.last, other.last)


def _piece(dag: ActivationDag, nodes: Sequence[int], *, is_open: bool) -> _Piece:
    return _Piece(sorted(nodes), len(dag.compute.intersection(nodes)), is_open)


def _by_node(pieces: Iterable[_Piece]) -> dict[int, _Piece]:
    return {index: piece for piece in pieces for index in piece.nodes}


def _distinct(pieces: Iterable[_Piece]) -> list[_Piece]:
    return list({piece.last: piece for piece in pieces}.values())


def _feeds_only(dag: ActivationDag, piece: _Piece, readers: Collection[int]) -> bool:
    """Say whether all that leaves `piece` goes to `readers`."""
    behind = dag.behind[piece.last]
    return bool(behind) and behind.issubset(readers) and not dag.gives_out(piece.last)


def _pieces(dag: ActivationDag, max_compute: int) -> list[_Piece]:
    """Rules 1, 2, 6: return the blocks, and each other node by itself, ordered by their last nodes."""
    blocks = [_piece(dag, block, is_open=False) for block in find_blocks(dag, max_compute)]
    inside = _by_node(blocks)
    singles = [
        _piece(dag, [index], is_open=index not in dag.opaque) for index in range(len(dag)) if index not in inside
    ]
    return sorted([*blocks, *singles], key=lambda piece: piece.last)


@dataclass
class _Chains:
    """Rule 3: each depthwise convolution with the pointwise one behind it and, if that is linear, the one in front."""

    dag: ActivationDag
    pieces: list[_Piece]
    alone: frozenset[int]

    def __post_init__(self) -> None:
        self.piece_of = _by_node(self.pieces)

    def joined(self) -> list[_Piece]:
        """Return the pieces, those of each chain as one."""
        for piece in self.pieces:
            if self.piece_of[piece.last] is piece and self._is_layer(piece, _is_depthwise):
                chain = self._chain(piece)
                if len(chain) > 1:
                    whole = _piece(self.dag, [index for part in chain for index in part.nodes], is_open=True)
                    self.piece_of.update(_by_node([whole]))
        return sorted(_distinct(self.piece_of.values()), key=lambda piece: piece.last)

    def _chain(self, depthwise: _Piece) -> list[_Piece]:
        body = [depthwise]
        for piece in self._following(depthwise):
            body.append(piece)
            if piece.compute and not self._is_gate(piece):
                break
        project = body[-1]
        if project is depthwise or not self._is_layer(project, _is_pointwise):
            return []
        return [*self._expansion(depthwise), *body] if self._is_linear(project) else body

    def _following(self, piece: _Piece) -> Iterator[_Piece]:
        """Yield the pieces behind `piece` while each is the only reader of the one before, up to an opaque node."""
        while self.dag.behind[piece.last]:
            reader = self.piece_of[min(self.dag.behind[piece.last])]
            if reader.last in self.dag.opaque or not _feeds_only(self.dag, piece, reader.nodes):
                return
            yield reader
            piece = reader

    def _expansion(self, depthwise: _Piece) -> list[_Piece]:
        """Return the pointwise convolution in front of the depthwise one and the light nodes between, or nothing."""
        front = [depthwise]
        while len(front[0].nodes) == 1 and len(sources := self.dag.before[front[0].last]) == 1:
            source = self.piece_of[min(sources)]
            if source.last in self.dag.opaque or not _feeds_only(self.dag, source, front[0].nodes):
                return []
            front.insert(0, source)
            if source.compute:
                return front[:-1] if self._is_layer(source, _is_pointwise) else []
        return []

    def _is_layer(self, piece: _Piece, is_kind: Callable[[Node], bool]) -> bool:
        return len(piece.nodes) == 1 and piece.last not in self.alone and is_kind(self.dag.nodes[piece.last])

    def _is_gate(self, piece: _Piece) -> bool:
        return len(piece.nodes) > 1 and self.dag.nodes[piece.last].op == "Mul"

    def _is_linear(self, project: _Piece) -> bool:
        """Say whether no activation function follows before the next compute node or branch."""
        light = takewhile(lambda piece: not piece.compute, self._following(project))
        return all(len(piece.nodes) == 1 and self.dag.nodes[piece.last].op in AFFINE for piece in light)


def _join_in_front(dag: ActivationDag, pieces: list[_Piece], alone: frozenset[int], max_stack: int) -> list[_Piece]:
    """Rules 4 and 5, forward: each piece joins the unit in front of it or starts one."""
    unit_of: dict[int, _Piece] = {}
    for piece in pieces:
        sources = {source for index in piece.nodes for source in dag.before[index]}.difference(piece.nodes)
        feeders = _distinct(unit_of[source] for source in sources)
        unit = _unit_in_front(dag, piece, feeders)
        if unit is None or (piece.compute and not _stacks(dag, unit, piece, alone, max_stack)):
            unit = piece
        else:
            unit.take(piece)
        if not piece.compute and (len(feeders) > 1 or _changes_resolution(dag, piece)):
            unit.open = False  # a run ends where another path joins it, and at the end of its stage
        unit_of.update(dict.fromkeys(piece.nodes, unit))
    return _distinct(unit_of.values())


def _unit_in_front(dag: ActivationDag, piece: _Piece, feeders: list[_Piece]) -> _Piece | None:
    """Return the one unit with compute nodes that flows into `piece` only; compute nodes follow one unit alone."""
    if piece.last in dag.opaque or (piece.compute and len(feeders) > 1):
        return None
    fronts = [unit for unit in feeders if unit.compute and _feeds_only(dag, unit, piece.nodes)]
    return fronts[0] if len(fronts) == 1 else None


def _stacks(dag: ActivationDag, unit: _Piece, piece: _Piece, alone: frozenset[int], max_stack: int) -> bool:
    """Rule 4: say whether the compute nodes of `piece` may be stacked on `unit`."""
    fits = unit.open and piece.open and unit.compute + piece.compute <= max_stack
    return fits and alone.isdisjoint([*unit.nodes, *piece.nodes]) and not _changes_resolution(dag, piece)


def _changes_resolution(dag: ActivationDag, piece: _Piece) -> bool:
    nodes = (dag.nodes[index] for index in piece.nodes)
    return any(
        node.op in RESIZERS or (node.op in STRIDED and max(node.attrs.get("strides", [1])) > 1) for node in nodes
    )


def _join_behind(dag: ActivationDag, units: list[_Piece]) -> list[_Piece]:
    """Rule 5, backward: each unit without compute nodes joins the unit behind it if there is only one."""
    unit_of = _by_node(units)
    for unit in sorted(units, key=lambda unit: unit.last, reverse=True):
        readers = _distinct(unit_of[index] for index in dag.behind[unit.last])
        opaque = not dag.opaque.isdisjoint([unit.last, *(reader.last for reader in readers)])
        if not unit.compute and len(readers) == 1 and not opaque and not dag.gives_out(unit.last):
            readers[0].take(unit)
            unit_of.update(dict.fromkeys(unit.nodes, readers[0]))
    return _distinct(unit_of.values())


def _kernel(node: Node) -> Sequence[int]:
    return (node.inputs[1].shape or ()) if node.op == "Conv" else ()


def _is_depthwise(node: Node) -> bool:
    kernel = _kernel(node)
    return len(kernel) > 2 and kernel[1] == 1 and node.attrs.get("group", 1) > 1


def _is_pointwise(node: Node) -> bool:
    kernel = _kernel(node)
    return len(kernel) > 2 and all(size == 1 for size in kernel[2:]) and node.attrs.get("group", 1) == 1


def _described(dag: ActivationDag, pieces: list[_Piece]) -> list[Unit]:
    """Turn the pieces into units in topological order, with names, boundaries and notes."""
    names = _Names(sorted(dag.nodes[index].name.strip("/") for index in dag.compute))
    owners: dict[int, str] = {}
    units = []
    for position, piece in enumerate(sorted(pieces, key=lambda piece: piece.last)):
        nodes = [dag.nodes[index] for index in sorted(piece.nodes)]
        inputs, outputs = dag.boundary(piece.nodes)
        name = names.fresh(nodes, position)
        note = "; ".join([*_remarks(dag, piece, outputs), *_shared_weights(nodes, name, owners)])
        units.append(Unit(name, tuple(node.name for node in nodes), inputs, outputs, note))
    return units


def _remarks(dag: ActivationDag, piece: _Piece, outputs: Sequence[str]) -> Iterator[str]:
    """Yield what is unusual about a unit."""
    last = dag.nodes[piece.last]
    if piece.last in dag.opaque:
        yield f"{last.op} is opaque"
    elif not piece.compute:
        yield "no compute node"
    if not outputs:
        yield "nothing reads its output"
    inner = [name for name in outputs if dag.maker[name] != piece.last]
    if inner:
        yield f"the graph gives out {', '.join(inner)} from its inside"
    if len(outputs) - len(inner) > 1:
        yield f"{last.op} has several outputs"


def _shared_weights(nodes: Sequence[Node], name: str, owners: dict[int, str]) -> Iterator[str]:
    """Yield which weights an earlier unit has too; `owners` maps each weight to the first unit that reads it."""
    for node in nodes:
        for weight in node.inputs[1:2] if node.op in LAYERS else ():
            if isinstance(weight, Constant) and owners.setdefault(id(weight), name) != name:
                yield f"shares the weight {weight.name} with {owners[id(weight)]}"


@dataclass
class _Names:
    """Unique, stable names of units."""

    known: list[str]  # of all compute nodes, sorted
    taken: set[str] = field(default_factory=set)

    def fresh(self, nodes: Sequence[Node], position: int) -> str:
        """Return a name for the unit at `position`: `layer1.0`, or `unit_03` if its nodes share no scope."""
        named = [node for node in nodes if node.op in LAYERS] or nodes[-1:]
        stem = self._scope([node.name.strip("/") for node in named], named[0].op) or f"unit_{position:02d}"
        return unique_name(stem, self.taken)

    def _scope(self, names: Sequence[str], op: str) -> str:
        """Return what `names` share, if no other compute node shares it; layer1/layer1.0 becomes layer1.0."""
        separator = "/" if "/" in names[0] else "."
        paths = [name.split(separator) for name in names]
        shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))]
        if len(names) > 1:
            prefix = separator.join([*shared, ""])
            holds = bisect_left(self.known, prefix + LAST_CHARACTER) - bisect_left(self.known, prefix)
            shared = shared if holds == len(names) else []
        elif len(shared) > 1 and separator == "/" and shared[-1].startswith(op):
            shared.pop()
        scope = [
            part for part, inner in zip(shared, [*shared[1:], ""], strict=False) if not inner.startswith(f"{part}.")
        ]
        return separator.join(scope).strip("._")
