"""What units must be: an ordered partition into convex sets; and short views of them for tests."""

from __future__ import annotations

import networkx as nx

from qcompile.ir import Graph, Node, Variable
from qcompile.passes.partition_units import PartitionUnits
from qcompile.quant.plan import Unit

COMPUTE = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def flow(graph: Graph) -> nx.DiGraph[str]:
    """The DAG of nodes, from the graph library's own links: the oracle does not use qcompile's DAG."""
    dag: nx.DiGraph[str] = nx.DiGraph()
    for node in graph.nodes:
        dag.add_node(node.name)
        dag.add_edges_from((node.name, reader.name) for tensor in node.outputs for reader in tensor.outputs)
    return dag


def needs(node: Node, flowing: set[str]) -> set[str]:
    """The tensors that must be there before a node runs: what it reads, and the inner tensors whose shapes it needs."""
    found: set[str] = set()
    waiting = [(tensor, False) for tensor in node.inputs if isinstance(tensor, Variable) and tensor.name]
    while waiting:
        tensor, as_shape = waiting.pop()
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is not None and maker.name not in flowing:
            waiting += [(source, True) for source in maker.inputs if isinstance(source, Variable)]
        elif maker is not None or not as_shape:
            found.add(tensor.name)
    return found


def segments(graph: Graph) -> list[list[Node]]:
    """The nodes between consecutive cuts, by a sweep: a cut is the only live tensor, with no node left to start."""
    nodes = {node.name: node for node in graph.nodes}
    found: list[list[Node]] = [[]]
    unread: dict[str, int] = {}
    roots = sum(not any(tensor.inputs for tensor in node.inputs) for node in graph.nodes)
    for node in (nodes[name] for name in nx.topological_sort(flow(graph))):
        found[-1].append(node)
        sources = {tensor.name for tensor in node.inputs if tensor.inputs}
        roots -= not sources
        unread.update({name: unread[name] - 1 for name in sources})
        unread.update({tensor.name: len({reader.name for reader in tensor.outputs}) for tensor in node.outputs})
        ended = any(not any(tensor.outputs for tensor in done.outputs) for done in found[-1])
        if sum(count > 0 for count in unread.values()) == 1 and not roots and not ended:
            found.append([])
    ends = sum(not any(tensor.outputs for tensor in node.outputs) for node in found[-1])
    return found if ends == 1 else found[:-1]


def checked(graph: Graph, partition: PartitionUnits | None = None) -> list[Unit]:
    """Partition `graph` and check everything that is promised for any graph."""
    partition = partition or PartitionUnits()
    units = partition.units(graph)
    assert partition.units(graph) == units
    flowing = reached(graph)
    nodes = {node.name: node for node in graph.nodes if node.name in flowing}
    needed = {name: needs(node, flowing) for name, node in nodes.items()}
    maker = {tensor.name: name for name, node in nodes.items() for tensor in node.outputs}
    dag: nx.DiGraph[str] = nx.DiGraph()
    dag.add_nodes_from(nodes)
    dag.add_edges_from((maker[tensor], name) for name in nodes for tensor in needed[name] if tensor in maker)
    position = {name: index for index, unit in enumerate(units) for name in unit.nodes}
    assert sorted(name for unit in units for name in unit.nodes) == sorted(flowing)
    assert {name for name, node in nodes.items() if node.op in COMPUTE} <= position.keys()
    assert len({unit.name for unit in units}) == len(units) and all(unit.name for unit in units)
    assert all(position[source] <= position[reader] for source, reader in dag.edges)
    outputs = {tensor.name for tensor in graph.outputs}
    for unit in units:
        inside = [nodes[name] for name in unit.nodes]
        assert sum(node.op in COMPUTE for node in inside) <= max(partition.max_compute, partition.max_stack)
        order = {name: index for index, name in enumerate(unit.nodes)}
        assert all(order[a] < order[b] for a in unit.nodes for b in dag.successors(a) if b in order)
        behind = set().union(*(dag.successors(name) for name in unit.nodes)) - order.keys()
        if len(nodes) < 100:
            far = behind.union(*(nx.descendants(dag, name) for name in behind))
            assert far.isdisjoint(order)
        own = {tensor.name for node in inside for tensor in node.outputs}
        assert sorted(unit.inputs) == sorted(set().union(*(needed[name] for name in unit.nodes)) - own)
        read = set().union(*(needed[name] for name in flowing - order.keys()))
        leaving = own & (read | outputs)
        assert sorted(unit.outputs) == sorted(leaving)
        assert len(leaving) == 1 or unit.note
        assert len(inside) == 1 or not any(node.op == "GRU" for node in inside)
    return units


def reached(graph: Graph) -> set[str]:
    """The nodes that the inputs of the graph flow into, without shape arithmetic; all compute nodes."""
    found: set[str] = set()
    waiting = [node for tensor in graph.inputs for node in tensor.outputs]
    while waiting:
        node = waiting.pop()
        if node.name not in found and node.op != "Shape":
            found.add(node.name)
            waiting.extend(reader for tensor in node.outputs for reader in tensor.outputs)
    return found


def ops(graph: Graph, unit: Unit) -> list[str]:
    types = {node.name: node.op for node in graph.nodes}
    return [types[name] for name in unit.nodes]


def compute_names(graph: Graph, unit: Unit) -> list[str]:
    types = {node.name: node.op for node in graph.nodes}
    return [name for name in unit.nodes if types[name] in COMPUTE]


def groups(graph: Graph, partition: PartitionUnits | None = None) -> list[list[str]]:
    """The compute nodes of each unit that has any."""
    return [names for unit in checked(graph, partition) if (names := compute_names(graph, unit))]
