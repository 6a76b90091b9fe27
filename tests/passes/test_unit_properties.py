"""Units of random graphs are a convex ordered partition."""

from __future__ import annotations

from collections.abc import Sequence

from classic_networks import Net
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_checks import COMPUTE, checked, segments

from qcompile.ir import Graph, Variable
from qcompile.passes.partition_units import PartitionUnits


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs with several inputs and outputs, dangling nodes, shared weights, shapes that are read, in any order."""
    net = Net()
    tensors = [net.input(f"in{index}", 8) for index in range(draw(st.integers(1, 3)))]
    shared = net.weight(8, 8, 1, 1)
    for index in range(draw(st.integers(1, 40))):
        op = draw(
            st.sampled_from(
                [
                    "Conv",
                    "Conv",
                    "Depthwise",
                    "Shared",
                    "Add",
                    "Relu",
                    "Concat",
                    "Mul",
                    "Split",
                    "MatMul",
                    "GRU",
                    "Reshape",
                ]
            )
        )
        recent = st.integers(max(0, len(tensors) - draw(st.sampled_from([1, 3, 40]))), len(tensors) - 1)
        first, second = tensors[draw(recent)], tensors[draw(st.integers(0, len(tensors) - 1))]
        if op == "Conv":
            tensors.append(net.op("Conv", first, net.weight(8, 8, 1, 1), strides=[draw(st.integers(1, 2))] * 2))
        elif op == "Depthwise":
            tensors.append(net.op("Conv", first, net.weight(8, 1, 3, 3), group=8))
        elif op == "Shared":
            tensors.append(net.op("Conv", first, shared))
        elif op == "Reshape":
            tensors.append(net.op("Reshape", first, net.op("Gather", net.op("Shape", second))))
        elif op == "Split":
            net.op("Split", first, name=f"split{index}", outputs=2)
            tensors.extend(net.graph.nodes[-1].outputs)
        else:
            tensors.append(net.op(op, *([first] if op in ("Relu", "GRU") else [first, second])))
    made = [tensor for tensor in tensors if tensor.inputs]
    outputs = draw(st.lists(st.sampled_from(made), max_size=3, unique_by=id))
    graph = net.finish(*{id(tensor): tensor for tensor in [made[-1], *outputs]}.values())
    graph.nodes = draw(st.permutations(graph.nodes))
    return graph


Part = str | list[list["Part"]]  # a node, or parallel branches of parts
LEAVES = st.sampled_from(["Conv", "Depthwise", "Relu", "MaxPool"])
PARTS = st.recursive(LEAVES, lambda part: st.lists(st.lists(part, max_size=4), min_size=2, max_size=3), max_leaves=20)


@st.composite
def nested_graphs(draw: st.DrawFn) -> Graph:
    """Graphs whose branches all come together again: the blocks that the definition by cuts speaks of."""
    net = Net()
    return net.finish(sequence(net, net.input(channels=8), draw(st.lists(PARTS, min_size=1, max_size=6))))


def sequence(net: Net, x: Variable, parts: Sequence[Part]) -> Variable:
    for part in parts:
        if isinstance(part, list):
            x = net.op("Add", *(sequence(net, x, branch) for branch in part))
        elif part in ("Conv", "Depthwise"):
            x = net.conv(x, group=8 if part == "Depthwise" else 1)
        else:
            x = net.op(part, x, strides=[2, 2])
    return x


@settings(max_examples=200)
@given(graphs() | nested_graphs(), st.sampled_from(["alone", "stack"]), st.sampled_from([2, 5, 12]))
def test_units_are_a_convex_ordered_partition(graph: Graph, ends: str, max_compute: int) -> None:
    checked(graph, PartitionUnits(ends=ends, max_compute=max_compute))


@settings(max_examples=200)
@given(nested_graphs())
def test_what_lies_between_two_cuts_is_in_one_unit(graph: Graph) -> None:
    position = {name: index for index, unit in enumerate(checked(graph)) for name in unit.nodes}
    for segment in segments(graph):
        if sum(node.op in COMPUTE for node in segment) <= 12:
            assert len({position[node.name] for node in segment}) == 1
