"""Regions for tests: a small network as one, with its samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from networks import CORRECT, Arrays, compiled, samples

from qcompile.execution.fragment import boundary, fragment
from qcompile.ir import Constant
from qcompile.passes.partition_units import PartitionUnits
from qcompile.program.lower import lower
from qcompile.runtime.session import Session
from qcompile.training.recipe import draw_mask
from qcompile.training.region import Region, RegionBuilder

BATCH = 8
Values = dict[tuple[str, str], Any]


def whole_region(text: str, count: int = 32, quantized: float = 0.5, **settings: Any) -> tuple[Region, Values]:
    """Return all of a network as one region, and `count` samples of its inputs and of the float model's outputs."""
    model = compiled(text, (*CORRECT, PartitionUnits()), **settings)
    program = lower(model.graph, model.plan)
    given = samples(model.source, count, seed=5)
    exact = Session(model.source, threads=1).run(given)
    values = {("q", name): array for name, array in given.items()} | {("f", name): a for name, a in exact.items()}
    shapes = {key: (BATCH, *array.shape[1:]) for key, array in values.items()}
    constants = {name for name, tensor in model.graph.tensors().items() if isinstance(tensor, Constant)}
    inputs = [value for value in boundary(program.steps)[0] if value.name and value.name not in constants]
    outputs = [value for step in program.steps for value in step.outputs if value.name in exact]
    names = [value.name for step in program.steps for value in step.outputs]
    session = Session(fragment(model.graph, model.plan, program.steps, inputs, names), threads=1, fuse_qdq=False)
    made = session.run({value.name: values["q", value.name][:BATCH] for value in inputs}, names)
    inner, shares = {name: array.shape for name, array in made.items()}, (quantized, quantized)
    builder = RegionBuilder(model.graph, model.plan, shapes, inner, program.tensors, BATCH, shares=shares)
    return builder.build(program.steps, inputs, outputs), values


def feeds(region: Region, values: Values, seed: int, quantized: float = 0.5) -> Arrays:
    """Return one batch of samples, drawn with `seed`, and its masks."""
    random = np.random.default_rng(seed)
    picked = np.sort(random.choice(len(next(iter(values.values()))), BATCH, replace=False))
    drawn = {name: values[key][picked] for name, key in region.feeds.items()}
    return drawn | {name: draw_mask(random, shape, quantized) for name, shape in region.masks.items()}
