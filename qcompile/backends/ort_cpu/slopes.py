"""The factors of operators that are written as products: slopes of HardSigmoid, HardSwish and PRelu, as codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.backends.ort_cpu.elementwise import Operation
from qcompile.emission.doubts import scales_from
from qcompile.ir import Node, constant_value
from qcompile.program.operands import HARD_SWISH_SLOPE
from qcompile.quant.arithmetic import quantize
from qcompile.quant.params import Quantizer
from qcompile.targets.ort_cpu.forms import BYTES, HARD_SIGMOID

SHIFTED_SIGMOID = replace(HARD_SIGMOID, zero_point=128)  # as it is written: the zero point adds 1/2


def slope_quantizer(node: Node, given: Quantizer) -> Quantizer:
    """Return the quantizer whose code 1 is the slope of a HardSigmoid or HardSwish, for an input of quantizer `given`.

    The slope is moved by units of float32 until the product rounds alike on all processors.
    """
    slope = HARD_SWISH_SLOPE if node.op == "HardSwish" else node.attrs.get("alpha", 0.2)
    codes = given.grid.codes
    product = Operation("Mul", codes, np.ones_like(codes))
    factors = (Quantizer(BYTES, scale, 0) for scale in scales_from(slope))
    alike = (factor for factor in factors if product.is_settled((given, factor, SHIFTED_SIGMOID)))
    return next(alike, Quantizer(BYTES, slope, 0))


def slope_codes(node: Node) -> tuple[NDArray[Any], Quantizer]:
    """Return the codes of the slopes of a PRelu, in their shape, and what they mean."""
    values = np.asarray(constant_value(node.inputs[1]), np.float32)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = float(np.float32((high - low) / BYTES.steps))
    quantizer = Quantizer(BYTES, scale, round(-low / scale))
    return quantize(values, quantizer), quantizer
