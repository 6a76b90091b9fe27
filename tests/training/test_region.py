"""A region computes what the simulation computes, and training brings it closer to the float model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import CORRECT, NETWORKS, compiled, samples

from qcompile import QModel
from qcompile.api import input_infos
from qcompile.data import open_dataset
from qcompile.emission.fragment import fragment
from qcompile.passes.partition_units import PartitionUnits
from qcompile.program.lower import Step
from qcompile.quant.plan import Unit
from qcompile.runtime.session import Session
from qcompile.training.recipe import FROZEN, Kind, draw_mask, settings_at
from qcompile.training.region import RegionBuilder
from qcompile.training.rounding import hardened
from qcompile.training.sides import FLOAT, QUANTIZED, Sides
from qcompile.training.step_graph import StepGraph

BATCH = 8
WIDE = """net (float[N,3,8,8] x, float[16,3,3,3] A, float[16,16,3,3] B, float[5,16,1,1] C) => (float[N,5,P,Q] y) {
  [first] a = Conv<pads = [1,1,1,1]>(x, A)  [relu1] b = Relu(a)  [inner] c = Conv<pads = [1,1,1,1]>(b, B)
  [relu2] d = Relu(c)  [last] y = Conv(d, C)
}"""


def first_trainable(name: str, skip: int = 0, **settings: Any) -> tuple[QModel, Sides, Unit, list[int]]:
    """Compile a small network up to training and run what stands before a unit with weights, the first or a later."""
    model = compiled(WIDE if name == "wide" else NETWORKS[name], (*CORRECT, PartitionUnits()), **settings)
    inputs = input_infos(model.graph)
    data = open_dataset(samples(model.source, 24), inputs, None)
    sides = Sides(model.graph, model.plan, data, threads=1)
    for unit in model.plan.units:
        numbers = sides.steps_of(unit)
        sides.run_float(unit)
        if any(node in model.plan.weights for node in unit.nodes):
            if not skip:
                return model, sides, unit, numbers
            skip -= 1
        sides.run_quantized(numbers)
    raise AssertionError("no unit has weights")


def graph_of(model: QModel, sides: Sides, numbers: list[int]) -> StepGraph:
    steps = [sides.program().steps[k] for k in numbers]
    shapes = {key: (BATCH, *array.shape[1:]) for key, array in sides.values.items()}
    builder = RegionBuilder(model.graph, model.plan, shapes, sides.tensors())
    return StepGraph(builder.build(steps, sides.inputs_of(steps), sides.outputs_of(numbers)), threads=1)


def run_piece(model: QModel, steps: tuple[Step, ...], sides: Sides, names: list[str]) -> dict[str, Any]:
    inputs = sides.inputs_of(steps)
    session = Session(fragment(model.graph, model.plan, steps, inputs, names), threads=1, fuse_qdq=False)
    return session.run({value.name: sides.values[QUANTIZED, value.name][:BATCH] for value in inputs}, names)


def feeds(graph: StepGraph, sides: Sides, quantized: float, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    given = {name: sides.values[key][:BATCH] for name, key in graph.region.feeds.items()}
    return given | {name: draw_mask(random, shape, quantized) for name, shape in graph.region.masks.items()}


@pytest.mark.parametrize("name", ["chain", "residual", "relu6", "squeeze_excite", "hard_swish", "classifier"])
def test_decided_and_fully_quantized_it_is_what_the_plan_then_computes(name: str) -> None:
    """Every weight decided at random, nothing dropped: the region's loss is that of the steps with hard codes."""
    model, sides, _, numbers = first_trainable(name, w=4, a=4)
    graph, random, plan = graph_of(model, sides, numbers), np.random.default_rng(0), model.plan
    for parameter, item in graph.region.parameters.items():
        if item.kind is Kind.ROUNDING:
            graph.state[parameter] = np.where(random.random(item.start.shape) < 0.5, 30, -30).astype(np.float32)
            node = next(node for node in model.graph.nodes if node.name == item.owner)
            plan.weights[item.owner] = hardened(node.inputs[1].values, plan.weights[item.owner], graph.state[parameter])
    seen = graph.run(feeds(graph, sides, 1.0), FROZEN, 1.0)
    outputs, tensors = sides.outputs_of(numbers), sides.tensors()
    exact_values = {name: array for (side, name), array in sides.values.items() if side == FLOAT}
    names = [value.name for value in outputs]
    steps = [sides.program().steps[k] for k in numbers]
    made = run_piece(model, tuple(steps), sides, names)
    expected = 0.0
    for value in outputs:
        exact = exact_values[tensors.get(value.name, value.name)][:BATCH]
        found = made[value.name].astype(np.float32)
        if value.quantizer is not None:
            found = (found - value.quantizer.zero_point) * np.float32(value.quantizer.scale)
        expected += np.square(found - exact).sum() * exact.shape[1] / exact.size
    assert seen == pytest.approx(expected, rel=2e-2)  # a code may fall on the other side of a tie


@pytest.mark.parametrize("quantized", [0.5, 1.0])
def test_trained_rounding_is_better_than_nearest(quantized: float) -> None:
    model, sides, _, numbers = first_trainable("wide", skip=1, w=2, a=8, first_last_bits=8)
    graph = graph_of(model, sides, numbers)
    start = decided_error(graph, sides)
    graph.reset()
    for k in range(150):
        graph.run(feeds(graph, sides, quantized, k), settings_at(k / 150), start)
    assert decided_error(graph, sides) < 0.8 * start


def decided_error(graph: StepGraph, sides: Sides) -> float:
    """Return the error with every weight rounded to where its variable points."""
    for name, item in graph.region.parameters.items():
        if item.kind is Kind.ROUNDING:
            graph.state[name] = np.where(graph.state[name] >= 0, 30, -30).astype(np.float32)
    return graph.run(feeds(graph, sides, 1.0), FROZEN, 1.0)


def test_a_step_does_not_depend_on_what_ran_before() -> None:
    model, sides, _, numbers = first_trainable("residual", w=4, a=4)
    graph = graph_of(model, sides, numbers)

    def curve() -> list[float]:
        graph.reset()
        return [graph.run(feeds(graph, sides, 0.5, k), settings_at(k / 10), 1.0) for k in range(10)]

    assert curve() == curve()


def test_a_scale_never_leaves_the_bounds_of_its_clip() -> None:
    model, sides, _, numbers = first_trainable("relu6", w=4, a=4)
    graph = graph_of(model, sides, numbers)
    bounded = {name: item for name, item in graph.region.parameters.items() if np.isfinite(item.highest)}
    assert bounded
    for k in range(20):
        graph.run(feeds(graph, sides, 1.0, k), settings_at(0.0), 1e-3)
        assert all(graph.state[name] <= item.highest + 1e-7 for name, item in bounded.items())
