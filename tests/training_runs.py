"""Small networks that are trained piece after piece, for the tests of training and of its state."""

from __future__ import annotations

from typing import Any

import numpy as np
from networks import CORRECT, NETWORKS, network, run, samples

from qcompile import Config, QModel, open_model
from qcompile.passes.partition_units import PartitionUnits
from qcompile.quant.plan import Plan
from qcompile.training.pieces import Piece, join_units
from qcompile.training.recipe import Training
from qcompile.training.reconstruction import Outcome, reconstruct
from qcompile.training.work_dir import open_work_dir

DECIDE = (CORRECT[0], PartitionUnits(), *CORRECT[1:])
SETTINGS: dict[str, Any] = {"w": 3, "a": 4, "method": "qdrop", "steps": 6}


def calibrated(name: str = "residual", **settings: Any) -> QModel:
    source = network(NETWORKS[name])
    model = open_model(source, Config(**{"threads": 1} | SETTINGS | settings), samples(source, 60))
    run(model, DECIDE)
    return model


def units(model: QModel) -> list[Piece]:
    return join_units(model.plan, model.plan.trained_together())


def trained(model: QModel, **facts: Any) -> list[Outcome]:
    pieces, training = facts.pop("pieces", None) or units(model), Training.of(model.config)
    return list(reconstruct(model, pieces, training, work_dir=open_work_dir(model), **facts))


def assert_same(one: Plan, two: Plan) -> None:
    assert one.quantizers == two.quantizers and list(one.weights) == list(two.weights)
    for name, weight in one.weights.items():
        for field in ("codes", "scale", "step", "offset"):
            np.testing.assert_array_equal(getattr(weight, field), getattr(two.weights[name], field))
    for name, bias in one.biases.items():
        np.testing.assert_array_equal(bias, two.biases[name])
