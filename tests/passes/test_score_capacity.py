from __future__ import annotations

import pytest
from networks import CHAIN, CONCAT, PLACEMENT, compiled

from qcompile import Config, QCompileError
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passes.partition_units import PartitionUnits
from qcompile.passes.score_capacity import ScoreCapacity
from qcompile.passmanager import PassManager
from qcompile.quant.plan import Boundary

SCORE = (NormalizeGraph(), PartitionUnits(max_stack=1), *PLACEMENT, ScoreCapacity())


def test_capacities_are_weights_times_bits() -> None:
    plan = compiled(CHAIN, SCORE, w=4).plan
    conv1, conv2, conv3 = 16 * 3 * 9 * 8, 16 * 16 * 9 * 4 * 1.6, 4 * 16 * 8  # conv2 has a stride of 2
    assert plan.capacities == {"conv1": conv1, "conv2": conv2, "conv3": conv3}
    assert plan.boundaries == [
        Boundary("conv1", "conv2", conv2 - conv1, homogeneous=False, inner=False),
        Boundary("conv2", "conv3", conv3 - conv2, homogeneous=False, inner=False),
    ]


def test_the_stride_factor_is_a_setting() -> None:
    model = compiled(CHAIN, SCORE, w=4, method="mrecg", stride_factor=2)
    assert model.plan.capacities["conv2"] == 16 * 16 * 9 * 4 * 2


def test_parallel_branches_have_no_boundary() -> None:
    plan = compiled(CONCAT, (NormalizeGraph(), PartitionUnits(max_compute=1), *SCORE[2:]), w=4).plan
    units = {unit.name for unit in plan.units}
    assert {"left", "right"} <= units
    assert not {("left", "right"), ("stem", "left")} & {(item.first, item.second) for item in plan.boundaries}


def test_twice_is_once() -> None:
    model = compiled(CHAIN, SCORE, w=4)
    before = dict(model.plan.capacities), list(model.plan.boundaries)
    assert ScoreCapacity().run(model) == 2
    assert (model.plan.capacities, model.plan.boundaries) == before


def test_units_and_bits_must_be_known() -> None:
    with pytest.raises(QCompileError, match="'place-quantizers'"):
        PassManager((NormalizeGraph(), PartitionUnits(), ScoreCapacity()))
    assert Config().stride_factor == 1.6
