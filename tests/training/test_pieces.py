"""Layers and regions: every node once, in an order in which they can be run."""

from __future__ import annotations

import pytest
from networks import CALIBRATE, NETWORKS, PLACE, compiled

from qcompile.passes.partition_units import PartitionUnits
from qcompile.program.dag import activation_dag
from qcompile.qmodel import QModel
from qcompile.training.pieces import Piece, cut_layers, join_units


def placed(name: str) -> QModel:
    return compiled(NETWORKS[name], (*PLACE, PartitionUnits()))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_can_be_run_one_after_the_other(name: str) -> None:
    graph = placed(name).graph
    dag = activation_dag(graph)
    index = {node.name: number for number, node in enumerate(dag.nodes)}
    done: set[int] = set()
    for piece in cut_layers(graph):
        members = {index[node] for node in piece.nodes}
        assert len(members & dag.compute) == 1 and piece.name in piece.nodes
        for node in sorted(members):
            assert dag.before[node] <= done
            done.add(node)
    assert done == set(range(len(dag)))


def test_a_join_belongs_to_the_last_layer_before_it() -> None:
    layers = cut_layers(placed("residual").graph)
    assert layers == [
        Piece("stem", ("stem", "relu")),
        Piece("first", ("first", "inner")),
        Piece("second", ("second", "add", "outer")),
        Piece("head", ("head",)),
    ]


def test_without_regions_every_unit_is_one() -> None:
    plan = placed("residual").plan
    assert [piece.nodes for piece in join_units(plan, plan.trained_together())] == [unit.nodes for unit in plan.units]


def test_units_are_joined_in_order() -> None:
    plan = placed("residual").plan
    first, second, *rest = plan.units
    plan.regions = [(first.name, second.name), *((unit.name,) for unit in rest)]
    joined = join_units(plan, plan.trained_together())
    assert joined[0] == Piece(f"{first.name} + {second.name}", first.nodes + second.nodes)
    assert [piece.nodes for piece in joined[1:]] == [unit.nodes for unit in rest]


def test_a_piece_counts_its_units_with_weights() -> None:
    plan = compiled(NETWORKS["residual"], (*CALIBRATE, PartitionUnits())).plan
    names = [unit.name for unit in plan.units]
    assert [piece.units for piece in join_units(plan, [names[:2], names[2:]])] == [2, 1]
    del plan.weights["stem"]
    assert [piece.units for piece in join_units(plan, [names])] == [2]
    plan.weights.clear()
    assert [piece.units for piece in join_units(plan, [names])] == [1]
