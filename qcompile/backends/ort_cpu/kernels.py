"""ONNX Runtime's integer kernels in numpy, bit for bit: float32 multipliers on exact accumulators, round half to even.

Each function takes codes (uint8) with their quantizers and returns float64 or float32 values before clamping, rounded
and with the zero point added; the caller clamps them to the grid. Sums and products of two tensors, which have
several kernels, are in `elementwise`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.backends.sums import centred
from qcompile.quant.params import Quantizer

Codes = NDArray[np.uint8]
Array = NDArray[Any]


def requantize(accumulator: Array, scale: Array, output: Quantizer) -> Array:
    """Return rint(float32(accumulator) * float32(scale / output.scale)) + zero_point; `scale` broadcasts."""
    multiplier = (np.asarray(scale, np.float32) / np.float32(output.scale)).astype(np.float32)
    codes: Array = np.rint(accumulator.astype(np.float32) * multiplier) + output.zero_point
    return codes


def global_average_pool(codes: Codes, quantizer: Quantizer, output: Quantizer) -> Array:
    """QLinearGlobalAveragePool: an int32 sum and one multiplier."""
    axes = tuple(range(2, codes.ndim))
    count = np.float32(np.prod(codes.shape[2:]))
    total = centred(codes, quantizer).sum(axes, keepdims=True).astype(np.float32)
    multiplier = np.float32(quantizer.scale) / (np.float32(output.scale) * count)
    result: Array = np.rint(total * multiplier) + output.zero_point
    return result
