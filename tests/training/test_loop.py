"""Training of a region is a function of its task and its samples: another process comes to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import CORRECT, NETWORKS, network, run, samples
from processes import in_fresh_process

from qcompile import Config, QModel, open_model
from qcompile.passes.partition_units import PartitionUnits
from qcompile.quant.plan_file import plan_files
from qcompile.training import reconstruction
from qcompile.training.loop import Rows, Task, train
from qcompile.training.pieces import join_units
from qcompile.training.recipe import Training
from qcompile.training.reconstruction import reconstruct

DECIDE = (CORRECT[0], PartitionUnits(), *CORRECT[1:])
TRAIN_ONE = """
from qcompile.training.loop import train
task, arrays = given
result = train(task, lambda key, places: arrays[key][places])
"""
TRAIN_ALL = """
from qcompile import QModel
from qcompile.training.pieces import join_units
from qcompile.training.reconstruction import reconstruct
from qcompile.training.recipe import Training
graph, source, target, config, data, held_back, plan = given
model = QModel(graph, source, target, config, data=data, held_back=held_back, plan=plan)
outcomes = list(reconstruct(model, join_units(plan, plan.trained_together()), Training.of(config)))
result = outcomes, plan
"""


def calibrated(name: str = "residual", **settings: Any) -> QModel:
    source = network(NETWORKS[name])
    config = Config(**{"w": 3, "a": 4, "method": "qdrop", "steps": 6, "threads": 1} | settings)
    model = open_model(source, config, samples(source, 60))
    run(model, DECIDE)
    return model


def trained(model: QModel) -> list[reconstruction.Outcome]:
    return list(reconstruct(model, join_units(model.plan, model.plan.trained_together()), Training.of(model.config)))


@pytest.fixture(scope="module")
def task() -> tuple[Task, dict[tuple[str, str], np.ndarray]]:
    """The first task of a training run, with all samples of what its region reads."""
    found: list[tuple[Task, dict[tuple[str, str], np.ndarray]]] = []

    def spy(task: Task, rows: Rows, told: Any) -> dict[str, np.ndarray]:
        places = np.arange(60)
        found.append((task, {key: np.array(rows(key, places)) for key in task.region.feeds.values()}))
        return train(task, rows, told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "train", spy)
        trained(calibrated())
    return found[0]


def test_a_region_trained_in_a_fresh_process_has_the_same_bytes(
    task: tuple[Task, dict[tuple[str, str], np.ndarray]],
) -> None:
    one, arrays = task
    here = train(one, lambda key, places: arrays[key][places])
    there = in_fresh_process(TRAIN_ONE, one, arrays)
    assert here.keys() == there.keys() and len(here) > 3
    for name, value in here.items():
        assert value.tobytes() == there[name].tobytes(), name
        assert np.any(value != one.region.parameters[name].start), name


def test_a_compilation_goes_on_in_a_fresh_process_with_the_same_bytes() -> None:
    """Graph, samples and plan go there by pickle; nothing that was found by being the same object may be lost."""
    model = calibrated(steps=30)
    parts = (model.graph, model.source, model.target, model.config, model.data, model.held_back)
    outcomes, plan = in_fresh_process(TRAIN_ALL, *parts, model.plan)
    assert trained(model) == outcomes and any(outcome.trained for outcome in outcomes)
    there, here = (plan_files(item, Path("p.npz"), target="", fingerprint="") for item in (plan, model.plan))
    assert there == here
