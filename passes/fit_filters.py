"""Choose grid and codes of filters by what the layer computes from the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompile.calibration.collect import observe
from qcompile.calibration.windows import Windows
from qcompile.data.dataset import Dataset
from qcompile.ir import Node, constant_value, to_model
from qcompile.ir.canonical import pads_of
from qcompile.program.operands import weight_axis
from qcompile.qmodel import QModel
from qcompile.quant.bias import take_up
from qcompile.quant.compensation import LONGEST, compensate
from qcompile.quant.filters import MOST_BITS, better_filters, fit_filters, is_short
from qcompile.quant.plan import Plan

ENOUGH = 0.5  # windows for each weight of a filter: from fewer a covariance says too little
JUDGES = 16  # other samples, that judge
COVARIANCES = 128 << 20  # bytes: layers are taken in groups
SAMPLES = 64  # some thousand windows: all directions of a short filter, those that matter of a long one


@dataclass(frozen=True)
class FitFilters:
    """Choose codes and scales at low bits by what a layer computes from samples, not by how near the weights are.

    Of short filters (`qcompile.quant.filters`) also the grid: rounding to nearest costs a depthwise convolution two to
    five times the error that its grid of 2 to 4 bits allows, and training cannot leave the grid that it is given. Of
    `long` ones (`qcompile.quant.compensation`) the codes alone, which training chooses itself. A filter stays as it was
    where the new one errs more on samples that it was not fitted to.
    """

    long: bool = False

    name: ClassVar[str] = "fit-filters"
    requires: ClassVar[tuple[str, ...]] = ("calibrate",)

    def run(self, model: QModel) -> int:
        """Improve `plan.weights`, and `plan.biases` as means ask for it; return the number of layers looked at."""
        layers = [node for node in model.graph.nodes if self._fits(node, model.plan)]
        if not layers or model.data is None:
            return 0
        some, others = shares(model.data, model.config.seed)
        filters = kept = 0
        for group in by_memory(layers):
            windows, judges = ([Windows(node) for node in group] for _ in range(2))
            show(model, windows, some)
            show(model, judges, others)
            for item, judge in zip(windows, judges):
                if judge.count and item.count >= ENOUGH * item.length:
                    filters, kept = filters + item.outputs, kept + improve(model.plan, item, judge)
        model.journal.note(self.name, "filters fitted", layers=len(layers), filters=filters, better=kept)
        return len(layers)

    def _fits(self, node: Node, plan: Plan) -> bool:
        if node.name not in plan.weights or plan.weights[node.name].bits > MOST_BITS:
            return False
        weight = constant_value(node.inputs[1])
        assert weight is not None
        if node.op == "Conv" and (weight.ndim != 4 or pads_of(node) is None):
            return False
        if is_short(weight):
            return not plan.weights[node.name].spec.per_tensor  # each filter would want a scale of its own
        filter_length = weight.size // weight.shape[weight_axis(node)]
        return self.long and node.attrs.get("group", 1) == 1 and filter_length <= LONGEST


def by_memory(layers: Sequence[Node]) -> Iterator[list[Node]]:
    """Yield layers in groups whose covariances, of both shares of the samples, stay within `COVARIANCES` bytes."""
    group, size = list[Node](), 0
    for node in layers:
        shape = [int(length) for length in node.inputs[1].shape]
        length = math.prod(shape) // shape[weight_axis(node)]
        needed = 16 * int(node.attrs.get("group", 1)) * length**2
        if group and size + needed > COVARIANCES:
            yield group
            group, size = [], 0
        group, size = [*group, node], size + needed
    yield group


def improve(plan: Plan, seen: Windows, judge: Windows) -> int:
    """Replace the filters of a layer that others do better, by what it sees; return how many they are."""
    name, node = seen.node.name, seen.node
    weight, old = constant_value(node.inputs[1]), plan.weights[name]
    assert weight is not None
    if is_short(weight):
        new, better = better_filters(weight, judge.covariance(), old, fit_filters(weight, seen.covariance(), old))
    else:
        new, better = compensate(weight, seen.covariance()[0], judge.covariance()[0], old)
    plan.weights[name] = new
    if node.op != "MatMul":  # the fit leaves the mean to the bias
        missing = np.moveaxis(weight - new.dequantize(), new.axis, 0).reshape(seen.outputs, -1)
        given = plan.scale_in_front(name, node.inputs[0].name)
        shift = np.einsum("ck,ck->c", missing, seen.mean(), dtype=np.float64)
        take_up(plan, name, given, np.ones(seen.outputs), shift)
    return better


def shares(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Return samples to fit filters to, and others that judge; where there are few, each fourth judges."""
    some = data.sample(SAMPLES, seed)
    others = data.select(np.flatnonzero(~np.isin(data.numbers, some.numbers)))
    if others.count:
        return some, others.sample(JUDGES, seed)
    step = data.fixed_batch or 1
    held_back = np.arange(data.count) // step % 4 == 3
    if not held_back.any():
        return some, some
    return data.select(np.flatnonzero(~held_back)), data.select(np.flatnonzero(held_back))


def show(model: QModel, windows: Sequence[Windows], data: Dataset) -> None:
    """Show what the float model gives on samples to the windows of each layer."""
    config, pairs = model.config, [(item.node.inputs[0].name, item) for item in windows]
    graph = to_model(model.graph)
    observe(graph, pairs, data, batch=config.batch, threads=config.threads, label="fit filters")
