"""Train rounding, scales and biases of each unit so that its output comes back to the float model's."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qcompile.autodiff import NoGradientRule
from qcompile.emission.bias import with_room_for_bias
from qcompile.errors import InputError
from qcompile.progress import track
from qcompile.qmodel import QModel, generator
from qcompile.quant.plan import Unit
from qcompile.training.recipe import BATCH, FROZEN, QUANTIZED, STEPS, Kind, draw_mask, settings_at
from qcompile.training.region import Region, RegionBuilder, UntrainableError
from qcompile.training.rounding import hardened
from qcompile.training.sides import Sides
from qcompile.training.step_graph import StepGraph

Array = NDArray[Any]
SAMPLES = 1024
HELD_BACK = 10  # one sample in so many judges whether training made a unit better
STARTING_BATCHES = 4  # whose mean error is the unit of the loss
ELEMENTS = 1 << 21  # of the largest activation of one batch: bounds the memory and the time of a step


@dataclass(frozen=True)
class Reconstruct:
    """Train unit after unit with the method of the configuration; each sees what the trained units before it make.

    The plan receives hard-rounded integers and trained scales. A unit that comes out worse on samples it was not
    trained on stays as it was; one that cannot be trained (an operator without a differentiation rule, sizes that are
    not static) likewise, with a note. All samples of the values between units are held in memory.

    References: Li et al., "BRECQ", 2021; Wei et al., "QDrop", 2022.
    """

    name: ClassVar[str] = "reconstruct"
    requires: ClassVar[tuple[str, ...]] = ("calibrate", "partition-units")

    def run(self, model: QModel) -> int:
        """Train every unit with weights; return how many came out better."""
        if model.data is None:
            raise InputError("no calibration data", remedy="give samples with --data, or ask for --random-data")
        data = model.data.take(0, min(SAMPLES, model.data.count))
        sides = Sides(model.graph, model.plan, data, model.config.threads)
        random = generator(model.config, self.name)
        units = track(model.plan.units, self.name, len(model.plan.units))
        return sum(_reconstruct(model, sides, unit, random) for unit in units)


def _reconstruct(model: QModel, sides: Sides, unit: Unit, random: np.random.Generator) -> bool:
    """Train one unit and run it on both sides; say whether training made it better."""
    numbers = sides.steps_of(unit)
    sides.run_float(unit)
    better = False
    if any(name in model.plan.weights for name in unit.nodes) and sides.outputs_of(numbers):
        before = copy.copy(model.plan.weights), copy.copy(model.plan.biases), copy.copy(model.plan.quantizers)
        judged = slice(sides.count - max(1, sides.count // HELD_BACK), sides.count)
        start = sides.error(numbers, judged)
        try:
            _train(model, sides, numbers, random, max(1, judged.start))
            end = sides.error(numbers, judged)
            better = math.isfinite(end) and end < start
            what = "trained" if better else "worse after training: left as it was"
            model.journal.note(Reconstruct.name, what, unit=unit.name, before=start, after=end)
        except (NoGradientRule, UntrainableError) as error:
            model.journal.note(Reconstruct.name, "not trained", unit=unit.name, reason=str(error))
        if not better:
            model.plan.weights, model.plan.biases, model.plan.quantizers = before
    sides.run_quantized(numbers)
    return better


def _train(model: QModel, sides: Sides, numbers: Sequence[int], random: np.random.Generator, count: int) -> None:
    """Train the steps `numbers` on the first `count` samples and write the result into the plan."""
    config, steps = model.config, [sides.program().steps[k] for k in numbers]
    largest = max(array[0].size for array in sides.values.values())
    inner = [math.prod(t.shape[1:]) for s in steps if s.node for t in s.node.outputs if _is_static(t.shape)]
    batch = min(config.recon_batch or BATCH, count, max(2, ELEMENTS // max(largest, *inner, 1)))
    shapes = {key: (batch, *array.shape[1:]) for key, array in sides.values.items()}
    builder = RegionBuilder(model.graph, model.plan, shapes, sides.tensors())
    graph = StepGraph(builder.build(steps, sides.inputs_of(steps), sides.outputs_of(numbers)), config.threads)
    quantized = QUANTIZED[config.method]

    def feeds() -> dict[str, Array]:
        picked = np.sort(random.choice(count, batch, replace=False))
        drawn = {name: sides.values[key][picked] for name, key in graph.region.feeds.items()}
        return drawn | {name: draw_mask(random, shape, quantized) for name, shape in graph.region.masks.items()}

    unit_error = float(np.mean([graph.run(feeds(), FROZEN, 1.0) for _ in range(STARTING_BATCHES)]))
    graph.reset()
    total = config.steps or STEPS
    for step in range(total):
        graph.run(feeds(), settings_at(step / total), max(unit_error, 1e-12))
    _store(model, graph.region, graph.state)


def _is_static(shape: Sequence[int | str | None] | None) -> bool:
    return shape is not None and len(shape) > 1 and all(isinstance(size, int) for size in shape[1:])


def _store(model: QModel, region: Region, state: dict[str, Array]) -> None:
    """Write hard-rounded integers, scales and biases into the plan."""
    plan, nodes = model.plan, {node.name: node for node in model.graph.nodes}
    for name, item in region.parameters.items():  # integers first: they are counted on the scales of before
        if item.kind is Kind.ROUNDING:
            exact = np.asarray(nodes[item.owner].inputs[1].values, np.float32)
            plan.weights[item.owner] = hardened(exact, plan.weights[item.owner], state[name])
    for name, item in region.parameters.items():
        factor = np.exp(state[name])
        if item.kind is Kind.WEIGHT_SCALE:
            weight = plan.weights[item.owner]
            plan.weights[item.owner] = replace(weight, scale=(weight.scale * factor.reshape(-1)).astype(np.float32))
        elif item.kind is Kind.ACTIVATION_SCALE:
            old = plan.quantizers[item.owner]
            plan.quantizers[item.owner] = replace(old, scale=float(np.float32(old.scale * factor)))
        elif item.kind is Kind.BIAS:
            plan.biases[item.owner] = state[name]
    for owner in {item.owner for item in region.parameters.values() if item.kind is Kind.BIAS}:
        data = plan.quantizers[plan.key(nodes[owner].inputs[0].name, plan.nodes[owner].input_bits)]
        plan.weights[owner] = with_room_for_bias(plan.weights[owner], plan.biases[owner], data.scale)
