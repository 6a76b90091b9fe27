"""Between soft and hard rounding of a weight on its own grid (AdaRound, Nagel et al., 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.quant.filters import MOST_BITS, is_short
from qcompile.quant.params import WeightQuantizer, largest_code
from qcompile.training.recipe import FIRST_STRETCH

EDGE = 1e-6  # a code that starts so far from the next one still has a gradient; one that is cut off has none
LEANING = 0.7  # of the start of short filters, from the float weight to the code
Floats = NDArray[np.float32]


def soft_start(exact: Floats, weight: WeightQuantizer) -> tuple[Floats, Floats, Floats]:
    """Return (scale, variable, base) such that scale * (base + h(variable)) is the float weight, where the grid has it.

    h = clip(1.2 (sigmoid(variable) - 1/2) + 1/2, 0, 1). `variable` has the weight's shape, `scale` and `base` broadcast
    to it. Where correction has stretched the channels of `weight`, the start is the float weight stretched as much.
    Short filters, whose codes are near the best already, start closer to these.
    """
    low, part = _grid(exact, weight)
    part = np.clip(part, 0, 1)
    if is_short(exact) and weight.bits <= MOST_BITS:
        part += LEANING * (weight.codes - low - part)
    sigmoid = (np.clip(part, EDGE, 1 - EDGE) - 0.5) / FIRST_STRETCH + 0.5
    variable = np.log(sigmoid / (1 - sigmoid))
    step = weight.along((weight.scale * weight.step).astype(np.float32))
    return step, variable.astype(np.float32), (low + _offset(weight)).astype(np.float32)


def soft_code(variable: Floats) -> Floats:
    """Return h(variable) as training starts, in 0..1."""
    return np.clip(FIRST_STRETCH * (1 / (1 + np.exp(-variable)) - 0.5) + 0.5, 0, 1).astype(np.float32)


def hardened(exact: Floats, weight: WeightQuantizer, variable: NDArray[Any]) -> WeightQuantizer:
    """Return `weight` with every code at the end of its interval that `variable`, of as many elements, points to."""
    low, _ = _grid(exact, weight)
    return replace(weight, codes=(low + (variable.reshape(low.shape) >= 0)).astype(np.uint8))


def _grid(exact: Floats, weight: WeightQuantizer) -> tuple[Floats, Floats]:
    """Return the code below each float weight, at most the last but one, and how far above it the weight lies.

    Where the present code is not next to the float weight, the interval is the one that leads from it there.
    """
    place = exact / weight.along(own_scale(exact, weight) * weight.step) - _offset(weight)
    codes = weight.codes.astype(np.float32)
    low = np.clip(np.clip(np.floor(place), codes - 1, codes), 0, largest_code(weight.bits) - 1).astype(np.float32)
    return low, place - low


def own_scale(exact: Floats, weight: WeightQuantizer) -> Floats:
    """Return the scale at which the codes come closest to the float weight, before anybody stretched it.

    It is that of each channel or block; nobody stretches scales that are not free.
    """
    if not weight.spec.is_free:
        return weight.scale
    lattice, others = weight.integers().astype(np.float32), tuple(set(range(exact.ndim)) - {weight.axis})
    if weight.spec.block:
        exact, lattice, others = weight.rows(exact), weight.rows(lattice), (1,)
    fitted = (exact * lattice).sum(others) / np.maximum(np.square(lattice).sum(others), 1)
    return np.where(fitted > 0, fitted, weight.scale).astype(np.float32)


def _offset(weight: WeightQuantizer) -> Floats:
    return weight.along((weight.offset / weight.step.astype(np.float32)).astype(np.float32))
