"""The arithmetic of activation quantizers in numpy: the reference for every simulation and every emitted file.

Bit for bit ONNX QuantizeLinear, Clip on the codes and DequantizeLinear: float32 division, rounding half to even, then
the zero point is added, then the code is clipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.quant.params import Quantizer


def quantize(x: NDArray[np.float32], quantizer: Quantizer) -> NDArray[Any]:
    """Return the codes of `x` (finite float32, any shape), on the grid of `quantizer`."""
    with np.errstate(over="ignore"):  # a quotient beyond float32 saturates like any large one
        steps = np.rint(x / np.float32(quantizer.scale))
    return quantizer.grid.clip(steps + np.float32(quantizer.zero_point))


def dequantize(codes: NDArray[Any], quantizer: Quantizer) -> NDArray[np.float32]:
    """Return the real values that codes stand for."""
    steps = codes.astype(np.float32) - np.float32(quantizer.zero_point)
    return steps * np.float32(quantizer.scale)


def fake_quantize(x: NDArray[np.float32], quantizer: Quantizer) -> NDArray[np.float32]:
    """Return the values on the quantizer's grid that stand for `x`."""
    return dequantize(quantize(x, quantizer), quantizer)


def ends(quantizer: Quantizer) -> tuple[np.float32, np.float32]:
    """Return the values of the lowest and the highest code as float32 arithmetic gives them."""
    low, high = dequantize(np.array([quantizer.grid.low, quantizer.grid.high]), quantizer)
    return low, high
