"""Choose grid and codes of short filters by what the layer computes from the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.calibration.collect import observe
from qcompile.calibration.windows import Windows
from qcompile.emission.bias import with_room_for_bias
from qcompile.ir import constant_value, to_model
from qcompile.ir.canonical import pads_of
from qcompile.qmodel import QModel
from qcompile.quant.filters import MOST_BITS, fit_filters, is_short

SAMPLES = 64  # a few thousand windows settle the covariance of at most 64 inputs


@dataclass(frozen=True)
class FitFilters:
    """Choose scale, offset and codes of the short filters of convolutions (`qcompile.quant.filters`) at low bits.

    Rounding to nearest costs a depthwise convolution two to five times the error that its grid of 2 to 4 bits allows,
    and training cannot leave the grid that it is given.
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
        config = model.config
        observe(
            to_model(model.graph),
            [(item.node.inputs[0].name, item) for item in windows],
            model.data.sample(SAMPLES, config.seed),
            batch=config.batch,
            threads=config.threads,
            label="fit filters",
        )
        for item in windows:
            if not item.count:
                continue
            name = item.node.name
            weight = constant_value(item.node.inputs[1])
            assert weight is not None
            fitted = fit_filters(weight, item.covariance(), plan.weights[name])
            if name in plan.biases:
                data = plan.quantizers[plan.key(item.node.inputs[0].name, plan.nodes[name].input_bits)]
                fitted = with_room_for_bias(fitted, plan.biases[name], data.scale)
            plan.weights[name] = fitted
        model.journal.note(self.name, "filters fitted", layers=len(windows))
        return len(windows)
