"""The boundaries between units that may be trained together: the output of one is the input of the next."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import networkx as nx

from qcompile.quant.plan import Unit

Pair = tuple[str, str]


def unit_graph(units: Sequence[Unit]) -> nx.DiGraph[str]:
    """Return which unit reads from which."""
    maker = {tensor: unit.name for unit in units for tensor in unit.outputs}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(unit.name for unit in units)
    graph.add_edges_from((maker[name], unit.name) for unit in units for name in unit.inputs if name in maker)
    return graph


def adjacent(units: Sequence[Unit], given_out: Collection[str]) -> list[Pair]:
    """Return the adjacent pairs of units, in the order of the second; `given_out` are the outputs of the graph.

    A pair is adjacent if all that leaves the first goes to the second, and whatever else the second reads was there
    before the first (a skip connection around it). So a unit has at most one neighbour on either side, units in
    parallel branches are no neighbours, and any chain of neighbours is convex: only its last unit is read outside.
    """
    graph = unit_graph(units)
    gives_out = {unit.name for unit in units if not set(given_out).isdisjoint(unit.outputs)}
    pairs = []
    for unit in units:
        sources = set(graph.predecessors(unit.name))
        for first in sources - gives_out:
            alone = set(graph.successors(first)) == {unit.name}
            if alone and (len(sources) == 1 or sources - {first} <= nx.ancestors(graph, first)):
                pairs.append((first, unit.name))
    return pairs


def chains(names: Sequence[str], joined: Collection[Pair]) -> list[tuple[str, ...]]:
    """Return the regions that joining these pairs makes of all units, in an order in which they can be run.

    A region stands where its last unit stood: nothing reads from a region before that.
    """
    behind, joint = dict(joined), {second for _, second in joined}
    place = {name: index for index, name in enumerate(names)}
    regions = []
    for name in names:
        if name not in joint:
            region = [name]
            while region[-1] in behind:
                region.append(behind[region[-1]])
            regions.append(tuple(region))
    return sorted(regions, key=lambda region: place[region[-1]])
