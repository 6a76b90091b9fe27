"""What a unit can hold (ModCap), and which units are built alike.

References
----------
Ma et al., "Solving Oscillation Problem in Post-Training Quantization Through a Theoretical Perspective", CVPR 2023.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import networkx as nx

from qcompile.ir import Constant, Node
from qcompile.ir.protos import LAYERS
from qcompile.program.dag import ActivationDag
from qcompile.quant.plan import NodePlan

FLOAT_BITS = 32


def capacity(nodes: Iterable[Node], placed: Mapping[str, NodePlan], stride_factor: float) -> float:
    """Return the sum over the compute nodes of weights * bits * stride factor, in bits.

    The factor counts for convolutions with a stride above 1. Biases are left out; a weight that stays float has 32
    bits.
    """
    return sum(
        weight_count(node) * _bits(placed.get(node.name)) * (stride_factor if _strided(node) else 1.0) for node in nodes
    )


def weight_count(node: Node) -> int:
    """Return the number of constant weights of a compute node, 0 for another."""
    if node.op not in LAYERS:
        return 0
    operands = node.inputs[:2] if node.op == "MatMul" else node.inputs[1:2]
    return sum(math.prod(tensor.shape) for tensor in operands if isinstance(tensor, Constant))


def _bits(placed: NodePlan | None) -> int:
    return placed.weight_bits if placed and placed.weight_bits else FLOAT_BITS


def _strided(node: Node) -> bool:
    return node.op == "Conv" and max(_sizes(node, "strides")) > 1


def module(dag: ActivationDag, members: Iterable[int]) -> nx.DiGraph[int]:
    """Return the compute nodes among the nodes `members`, labelled with their hyper-parameters, and their flow."""
    found: nx.DiGraph[int] = nx.DiGraph()
    sources: dict[int, set[int]] = {}  # the last compute nodes in front of each node, inside the module
    for index in sorted(members):
        behind = set().union(*(sources.get(before, set()) for before in dag.before[index]))
        sources[index] = behind
        if index in dag.compute:
            found.add_node(index, build=_build(dag.nodes[index]))
            found.add_edges_from((before, index) for before in behind)
            sources[index] = {index}
    return found


def homogeneous(first: nx.DiGraph[int], second: nx.DiGraph[int]) -> bool:
    """Say whether two modules are topologically homogeneous: only with such are capacities strictly comparable.

    Their compute nodes correspond, and agree in operator and hyper-parameters; kernel sizes and channels may differ.
    """
    one, two = (Counter(nx.get_node_attributes(graph, "build").values()) for graph in (first, second))
    return one == two and bool(nx.is_isomorphic(first, second, node_match=lambda a, b: a["build"] == b["build"]))


def _build(node: Node) -> tuple[Any, ...]:
    """Return operator and hyper-parameters; a depthwise convolution has as many groups as channels, whatever these."""
    depthwise = node.op == "Conv" and len(node.inputs[1].shape or ()) > 1 and node.inputs[1].shape[1] == 1
    groups = node.attrs.get("group", 1)
    return node.op, _sizes(node, "strides"), _sizes(node, "dilations"), 0 if depthwise and groups > 1 else groups


def _sizes(node: Node, name: str) -> Sequence[int]:
    """Return one number per axis of a convolution, 1 where the attribute is left out."""
    axes = max(len(node.inputs[1].shape or ()) - 2, 1)
    return tuple(node.attrs.get(name) or [1] * axes)
