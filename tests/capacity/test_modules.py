from __future__ import annotations

import pytest
from classic_networks import Net
from networks import ATTENTION, JOINED, RESIDUAL, network

from qcompile.capacity.modules import capacity, homogeneous, module
from qcompile.ir import Graph, Node
from qcompile.ir.prepare import prepare
from qcompile.program.dag import activation_dag
from qcompile.quant.plan import Form, NodePlan


def nodes(text: str) -> list[Node]:
    return list(prepare(network(text), 18).nodes)


def test_a_weight_counts_its_bits_and_a_float_one_32() -> None:
    placed = {"stem": NodePlan(Form.COMPUTE, weight_bits=8), "first": NodePlan(Form.COMPUTE, weight_bits=2)}
    weights = {"stem": 4 * 3 * 9, "first": 4 * 4 * 9, "second": 4 * 4 * 9, "head": 4 * 4}
    expected = 8 * weights["stem"] + 2 * weights["first"] + 32 * (weights["second"] + weights["head"])
    assert capacity(nodes(RESIDUAL), placed, 1.6) == expected


def test_products_of_activations_hold_nothing() -> None:
    placed = {node.name: NodePlan(Form.COMPUTE, weight_bits=4) for node in nodes(ATTENTION)}
    assert capacity(nodes(ATTENTION), placed, 1.6) == 4 * (3 * 8 * 8 + 8 * 4)
    assert capacity([], placed, 1.6) == 0


@pytest.mark.parametrize(("stride", "factor"), [(1, 1.0), (2, 1.5), (4, 1.5)])
def test_the_stride_factor_is_for_convolutions_with_a_stride(stride: int, factor: float) -> None:
    net = Net()
    net.conv(net.input(channels=4), 8, 3, stride=stride, name="a")
    net.op("ConvTranspose", net.input("z", 4), net.weight(4, 8, 2, 2), name="b", strides=[2, 2])
    first, second = net.graph.nodes
    placed = {name: NodePlan(Form.COMPUTE, weight_bits=4) for name in "ab"}
    assert capacity([first], placed, 1.5) == 4 * 8 * 4 * 9 * factor
    assert capacity([second], placed, 1.5) == 4 * 4 * 8 * 4


def chain(*layers: tuple[int, int, int, int], dilation: int = 1) -> Graph:
    """Convolutions (channels, kernel, stride, groups), one after the other."""
    net = Net()
    x = net.input(channels=8)
    for index, (out, kernel, stride, group) in enumerate(layers):
        x = net.conv(x, out, kernel, stride=stride, group=group, name=f"c{index}", act="Relu")
    net.graph.nodes[0].attrs["dilations"] = [dilation, dilation]
    return net.finish(x)


def alike(first: Graph, second: Graph) -> bool:
    one, two = (activation_dag(graph) for graph in (first, second))
    return homogeneous(module(one, range(len(one))), module(two, range(len(two))))


BASE = ((16, 1, 1, 1), (16, 3, 1, 16), (8, 1, 1, 1))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (chain(*BASE), True),
        (chain((32, 1, 1, 1), (32, 3, 1, 32), (8, 1, 1, 1)), True),  # channels
        (chain((16, 3, 1, 1), (16, 5, 1, 16), (8, 1, 1, 1)), True),  # kernel sizes
        (chain((16, 1, 1, 1), (16, 3, 2, 16), (8, 1, 1, 1)), False),  # a stride
        (chain((16, 1, 1, 1), (16, 3, 1, 4), (8, 1, 1, 1)), False),  # groups that are no channels
        (chain((16, 3, 1, 8), (16, 1, 1, 1), (8, 1, 1, 1)), False),  # another order
        (chain(*BASE[:2]), False),  # fewer layers
        (chain(*BASE, dilation=2), False),
    ],
    ids=["same", "channels", "kernels", "stride", "groups", "order", "fewer", "dilation"],
)
def test_homogeneous_modules_differ_in_kernels_and_channels_only(other: Graph, expected: bool) -> None:
    assert alike(chain(*BASE), other) is expected
    assert alike(other, chain(*BASE)) is expected


def test_the_same_layers_in_other_places_are_not_homogeneous() -> None:
    def built(parallel: bool) -> Graph:
        net = Net()
        x = net.input(channels=8)
        y = net.conv(x, name="a", act="Relu")
        z = net.conv(x if parallel else y, name="b", act="Relu")
        return net.finish(net.op("Add", y, z))

    assert not alike(built(parallel=True), built(parallel=False))
    assert alike(built(parallel=True), built(parallel=True))


def test_flow_passes_through_light_nodes_of_the_module_only() -> None:
    dag = activation_dag(prepare(network(JOINED), 18))
    place = {node.name: index for index, node in enumerate(dag.nodes)}
    whole = module(dag, range(len(dag)))
    assert sorted(whole.edges) == sorted(
        (place[a], place[b]) for a, b in [("stem", "left"), ("stem", "right"), ("left", "head"), ("right", "head")]
    )
    assert not module(dag, [place["stem"], place["left"]]).edges  # the Relu between them is not inside
