"""ONNX Runtime on a CPU: which nodes its integer kernels do not take, and what they dictate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from qcompile.ir import Node, constant_value
from qcompile.quant.grid import unsigned
from qcompile.quant.params import Quantizer

BYTES: Final = unsigned(8)
HARD_SIGMOID: Final = Quantizer(BYTES, scale=1 / 256, zero_point=0)


def _pool(node: Node) -> str:
    return "dilated or ceil_mode" if node.attrs.get("ceil_mode", 0) or max(node.attrs.get("dilations", [1])) > 1 else ""


def _resize(node: Node) -> str:
    return "" if node.attrs.get("mode", "nearest") == "nearest" else "linear Resize truncates on uint8"


def _hard_sigmoid(node: Node) -> str:
    """An integer product whose zero point is beta and whose saturation is the clip (see `DICTATED`)."""
    return "" if node.attrs.get("beta", 0.5) == 0.5 else "the integer form needs beta = 0.5"


def _prelu(node: Node) -> str:
    """Slopes are rounded to 8 bits, together."""
    values = constant_value(node.inputs[1])
    return "" if values is not None and np.isfinite(values).all() and np.any(values) else "its slopes are not constant"


CHECKS: Final[Mapping[str, Callable[[Node], str]]] = {
    "AveragePool": _pool,
    "Resize": _resize,
    "HardSigmoid": _hard_sigmoid,
    "PRelu": _prelu,
}

# HardSigmoid clip(alpha*x + 1/2, 0, 1) is a product with the constant alpha, written with scale 1/256 and zero point
# 128 and read with zero point 0: the 128 is the half, the saturation of uint8 is the clip.
DICTATED: Final[Mapping[str, Quantizer]] = {"HardSigmoid": HARD_SIGMOID}
