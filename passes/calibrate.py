"""Give every quantizer its numbers: activation ranges from samples, weights by rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qcompile.calibration.collect import observe
from qcompile.calibration.observers import Histogram, MinMax
from qcompile.calibration.ranges import choose
from qcompile.calibration.sharing import share_concats
from qcompile.config import CalibrationMethod, Config
from qcompile.emission.bias import with_room_for_bias
from qcompile.errors import InputError
from qcompile.ir import Constant, constant_value, to_model, topological
from qcompile.program.forms import float_bias, least_output_scale, weight_axis
from qcompile.qmodel import QModel
from qcompile.quant.params import ActivationSpec
from qcompile.quant.plan import Form
from qcompile.quant.scales import quantize_weight


@dataclass(frozen=True)
class Calibrate:
    """Choose scale and zero point of every placed quantizer.

    Activations: one streaming observer per tensor, all in one run of the float model over the samples; the method is
    that of the configuration, by default max at 8 bits and the error search below (`qcompile.calibration.ranges`).
    """

    name: ClassVar[str] = "calibrate"
    requires: ClassVar[tuple[str, ...]] = ("place-quantizers",)

    def run(self, model: QModel) -> int:
        """Fill `plan.quantizers`, `plan.weights` and `plan.biases`; return the number of quantizers and weights."""
        plan = model.plan
        searched = {root for root in set(plan.groups.values()) if self._searches(model, root)}
        observers = {root: Histogram(root) if root in searched else MinMax(root) for root in plan.groups.values()}
        self._observe(model, observers)
        for name in share_concats(topological(model.graph), plan, observers):
            model.journal.note(self.name, "one quantizer for all inputs", node=name)
        for key, spec in plan.specs.items():
            root = key if key in observers else key.rpartition("@")[0]
            method = calibration_method(model.config, spec)
            plan.quantizers[key] = choose(observers[root], spec, method, model.config.percentile)
        self._widen_for_kernels(model)
        for node in model.graph.nodes:
            placed = plan.nodes[node.name]
            if placed.form is not Form.COMPUTE or not placed.weight_bits:
                continue
            weight = constant_value(node.inputs[1])
            assert weight is not None
            quantized = quantize_weight(weight, bits=placed.weight_bits, axis=weight_axis(node))
            bias = float_bias(node)
            if bias is not None:
                plan.biases[node.name] = bias
                data = plan.quantizers[plan.key(node.inputs[0].name, placed.input_bits)]
                quantized = with_room_for_bias(quantized, bias, data.scale)
            plan.weights[node.name] = quantized
        return len(plan.quantizers) + len(plan.weights)

    @staticmethod
    def _widen_for_kernels(model: QModel) -> None:
        """Raise an output scale that the kernel of its operator would refuse."""
        plan = model.plan
        for node in topological(model.graph):
            output = plan.groups.get(node.outputs[0].name) if node.outputs else None
            if plan.form(node.name) is Form.ARITHMETIC and output is not None:
                given, made = plan.quantizers[plan.key(node.inputs[0].name)], plan.quantizers[output]
                least = float(np.float32(least_output_scale(node, given.scale)))
                plan.quantizers[output] = replace(made, scale=max(made.scale, least))

    @staticmethod
    def _searches(model: QModel, root: str) -> bool:
        """Say whether any quantizer of this group needs more than the range."""
        keys = (root, *model.plan.narrow_keys(root))
        return any(calibration_method(model.config, model.plan.specs[key]) != "max" for key in keys)

    def _observe(self, model: QModel, observers: dict[str, Histogram | MinMax]) -> None:
        """Show every observer its tensor: constants at once, activations over all samples."""
        tensors = model.graph.tensors()
        constants = {name for name in observers if isinstance(tensors[name], Constant)}
        for name in constants:
            observers[name].update(np.asarray(tensors[name].values, np.float32))
        if model.data is None:
            raise InputError("no calibration data", remedy="give samples with --data, or ask for --random-data")
        live = {name: observer for name, observer in observers.items() if name not in constants}
        config = model.config
        observe(
            to_model(model.graph),
            live.items(),
            model.data,
            batch=config.batch,
            threads=config.threads,
            label="calibrate",
        )


def calibration_method(config: Config, spec: ActivationSpec) -> CalibrationMethod:
    """Return the method for one tensor: as configured, else max at 8 bits and mse below."""
    return config.calibration_method or ("max" if spec.bits == 8 else "mse")
