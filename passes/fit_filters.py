"""Choose grid and codes of short filters by what the layer computes from the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompile.calibration.collect import observe
from qcompile.calibration.windows import Windows
from qcompile.data.dataset import Dataset
from qcompile.ir import constant_value, to_model
from qcompile.ir.canonical import pads_of
from qcompile.qmodel import QModel
from qcompile.quant.bias import with_room_for_bias
from qcompile.quant.filters import MOST_BITS, better_filters, fit_filters, is_short

JUDGES = 16  # other samples, that judge
SAMPLES = 64  # a few thousand windows settle the covariance of at most 64 inputs


@dataclass(frozen=True)
class FitFilters:
    """Choose scale, offset and codes of the short filters of convolutions (`qcompile.quant.filters`) at low bits.

    Rounding to nearest costs a depthwise convolution two to five times the error that its grid of 2 to 4 bits allows,
    and training cannot leave the grid that it is given. A filter stays as it was where the new one errs more on samples
    that it was not fitted to.
    """

    name: ClassVar[str] = "fit-filters"
    requires: ClassVar[tuple[str, ...]] = ("calibrate",)

    def run(self, model: QModel) -> int:
        """Improve `plan.weights`; return the number of layers whose filters are short."""
        plan = model.plan
        layers = [
            node
            for node in model.graph.nodes
            if node.op == "Conv" and node.name in plan.weights and plan.weights[node.name].bits <= MOST_BITS
        ]
        windows = [Windows(node) for node in layers if is_short(node.inputs[1].values) and pads_of(node) is not None]
        if not windows or model.data is None:
            return 0
        some, others = shares(model.data, model.config.seed)
        judges = [Windows(item.node) for item in windows]
        show(model, windows, some)
        show(model, judges, others)
        filters = kept = 0
        for item, judge in zip(windows, judges):
            if not item.count or not judge.count:
                continue
            name = item.node.name
            weight = constant_value(item.node.inputs[1])
            assert weight is not None
            fitted = fit_filters(weight, item.covariance(), plan.weights[name])
            fitted, better = better_filters(weight, judge.covariance(), plan.weights[name], fitted)
            filters, kept = filters + len(weight), kept + better
            if name in plan.biases:
                data = plan.quantizers[plan.key(item.node.inputs[0].name, plan.nodes[name].input_bits)]
                fitted = with_room_for_bias(fitted, plan.biases[name], data.scale)
            plan.weights[name] = fitted
        model.journal.note(self.name, "filters fitted", layers=len(windows), filters=filters, better=kept)
        return len(windows)


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
