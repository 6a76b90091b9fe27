"""A program interpreted as ONNX Runtime's integer kernels round: its codes are those of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.backends.ort_cpu import kernels
from qcompile.backends.ort_cpu.elementwise import add, multiply
from qcompile.backends.ort_cpu.slopes import SHIFTED_SIGMOID, slope_codes, slope_quantizer
from qcompile.backends.reference import Reference, along
from qcompile.ir import Node
from qcompile.program.lower import Step, Value
from qcompile.quant.arithmetic import quantize
from qcompile.quant.bias import integer_bias
from qcompile.quant.params import Quantizer
from qcompile.targets.ort_cpu.forms import BYTES, HARD_SIGMOID

Array = NDArray[Any]


class IntegerReference(Reference):
    """Interprets one program with the multipliers and the roundings of ONNX Runtime's kernels."""

    def _compute(self, step: Step, values: dict[str, Array]) -> list[Array]:
        node, target = step.node, step.outputs[0].quantizer
        assert node is not None
        accumulator = self.sums(step, values)
        scale = along(node, self.scales(step, np.float32), accumulator.ndim)
        bias, weight = self.plan.biases.get(node.name), self.plan.weights.get(node.name)
        if bias is not None and weight is not None:
            accumulator = accumulator + along(
                node, integer_bias(bias, step.input_scale, weight.scale)[0], accumulator.ndim
            )
        if target is None:
            return [accumulator.astype(np.float32) * scale]
        return [target.grid.clip(kernels.requantize(accumulator, scale, target))]

    def _arithmetic(self, step: Step, values: dict[str, Array]) -> list[Array]:
        node, target = step.node, step.outputs[0].quantizer
        assert node is not None and target is not None
        codes = [(self._codes(value, values), value.quantizer) for value in step.inputs]
        if node.op in ("Add", "Mul"):
            (a, qa), (b, qb) = codes
            assert qa is not None and qb is not None
            return [target.grid.clip((add if node.op == "Add" else multiply)(a, qa, b, qb, target))]
        if node.op in ("HardSigmoid", "HardSwish"):
            x, quantizer = codes[0]
            assert quantizer is not None
            slope = slope_quantizer(node, quantizer)
            gate = BYTES.clip(multiply(x, quantizer, np.ones((), BYTES.dtype), slope, SHIFTED_SIGMOID))
            if node.op == "HardSigmoid":
                return [gate]
            return [target.grid.clip(multiply(x, quantizer, gate, HARD_SIGMOID, target))]
        if node.op == "PRelu":
            return [target.grid.clip(self._prelu(node, *codes[0], target))]
        if node.op == "GlobalAveragePool":
            assert codes[0][1] is not None
            return [target.grid.clip(kernels.global_average_pool(*codes[0], target))]  # type: ignore[arg-type]
        if node.op == "AveragePool":  # sums in float, then adds the zero point before rounding
            mean = self._alone(node, "f", [self._float(step.inputs[0], values)])[0]
            return [target.grid.clip(np.rint(mean / np.float32(target.scale) + target.zero_point))]
        floats = [self._float(value, values) for value in step.inputs]
        return [quantize(self._alone(node, "f", floats)[0], target)]

    def _prelu(self, node: Node, x: Array, quantizer: Quantizer | None, target: Quantizer) -> Array:
        assert quantizer is not None
        above, below = np.maximum(x, quantizer.zero_point), np.minimum(x, quantizer.zero_point)
        scaled = BYTES.clip(multiply(below, quantizer, *slope_codes(node), target))
        return add(above, quantizer, scaled, target, target)

    def _codes(self, value: Value, values: dict[str, Array]) -> Array:
        return values[value.name]
