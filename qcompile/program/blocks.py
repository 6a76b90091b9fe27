"""Blocks: the largest pieces of an activation DAG in which paths run in parallel and come together again."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import networkx as nx

from qcompile.program.dag import ActivationDag

SOURCE = -1  # the virtual node in front of every node that reads no other


def find_blocks(dag: ActivationDag, max_compute: int) -> list[list[int]]:
    """Return the largest blocks of at most `max_compute` compute nodes; they are disjoint, each in topological order.

    A block is a join, a node that several nodes flow into, with the nodes behind its entry that flow into the join
    only. The entry is its immediate dominator: the last node that all paths from the inputs to the join share. Where
    one tensor lies on every path before a block and one on every path behind it, the block is all that is between them;
    in long stretches without such tensors (U-Net, FPN, several heads) blocks are still found, and may read several
    tensors. A block gives out the outputs of its join alone, besides graph outputs from its inside.

    References
    ----------
    Johnson, Pearson, Pingali, "The Program Structure Tree", PLDI 1994: single-entry single-exit regions by dominance.
    """
    above = _immediate_dominators(*_local_connections(dag, max_compute))
    blocks: list[list[int]] = []
    taken: set[int] = set()
    for join in reversed(range(len(dag))):
        if join not in taken and len(dag.before[join]) > 1:
            block = _block(dag, join, _entry(dag, join, above), taken, max_compute)
            if len(block) > 1:
                blocks.append(sorted(block))
                taken |= block
    return blocks[::-1]


def _block(dag: ActivationDag, join: int, entry: int, taken: set[int], max_compute: int) -> set[int]:
    """Return the block that ends at `join`; nothing if it is too large or has an opaque node inside.

    Goes backward from the join; a node belongs if all its readers do. The heap gives out nodes in reverse topological
    order, so the readers of a node have been looked at before it.
    """
    block: set[int] = set()
    compute, heap, seen = 0, [-join], {join}
    while heap:
        index = -heapq.heappop(heap)
        if index == entry or index in taken or (index != join and not dag.behind[index] <= block):
            continue
        compute += index in dag.compute
        if compute > max_compute or index in dag.opaque:
            return set()
        block.add(index)
        for source in dag.before[index] - seen:
            seen.add(source)
            heapq.heappush(heap, -source)
    return block


def _entry(dag: ActivationDag, join: int, above: dict[int, int]) -> int:
    """Return the node in front of the block; one with several outputs that are read belongs to the block itself."""
    entry = above[join]
    while entry != SOURCE and sum(name in dag.readers for name in dag.makes[entry]) > 1:
        entry = above[entry]
    return entry


def _local_connections(dag: ActivationDag, reach: int) -> tuple[nx.DiGraph[int], list[int]]:
    """Return the DAG without the connections that jump over more than `reach` compute nodes, and its roots.

    A block of `reach` compute nodes has no such connection inside, but they hide the blocks they jump over: a dominator
    must lie on the long way round too. What is read far away is read nearby first, and keeps that reader. A value that
    no compute node has touched (an attention mask, a global skip of the input) then keeps its first reader only.
    """
    depth = [0, *accumulate(index in dag.compute for index in range(len(dag)))]
    untouched = _untouched(dag)
    kept: nx.DiGraph[int] = nx.DiGraph()
    kept.add_nodes_from(range(len(dag)))
    for index, readers in enumerate(dag.behind):
        order = sorted(readers)
        near = [reader for reader in order if depth[reader] - depth[order[0]] <= reach]
        if index in untouched and len(near) < len(order):
            near = order[:1]
        kept.add_edges_from((index, reader) for reader in near)
    near_inputs = [
        all(depth[index] - depth[dag.readers[name][0]] <= reach for name in names)
        for index, names in enumerate(dag.reads)
    ]
    return kept, [index for index in range(len(dag)) if not dag.before[index] and near_inputs[index]]


def _untouched(dag: ActivationDag) -> set[int]:
    """Return the nodes that no compute node and no opaque node precedes."""
    untouched: set[int] = set()
    for index, sources in enumerate(dag.before):
        if sources <= untouched and index not in dag.compute and index not in dag.opaque:
            untouched.add(index)
    return untouched


def _immediate_dominators(kept: nx.DiGraph[int], roots: Iterable[int]) -> dict[int, int]:
    """Return for each node the last node that all paths from SOURCE to it share; SOURCE feeds the `roots`.

    Nodes that no root reaches have lost what fed them. They are looked at by themselves, with SOURCE in front of those
    among them that now read nothing, and are no paths into the others: where the keys of an attention come from far
    away, the block is still the one behind the query's entry.
    """
    main = _dominators(kept, roots)
    orphans = [node for node in kept if node not in main and kept.in_degree(node) == 0]
    return {**_dominators(kept, orphans), **main}


def _dominators(kept: nx.DiGraph[int], roots: Iterable[int]) -> dict[int, int]:
    rooted: nx.DiGraph[Any] = nx.DiGraph(kept)
    rooted.add_node(SOURCE)
    rooted.add_edges_from((SOURCE, root) for root in roots)
    found = nx.immediate_dominators(rooted, SOURCE)
    return {node: above for node, above in found.items() if node != SOURCE}  # networkx < 3.6 lists SOURCE itself
