"""Int32 biases: their scale is the float32 product that the kernel itself uses; what corrections do to them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompile.quant.params import WeightQuantizer, largest_code
from qcompile.quant.plan import Plan

LARGEST = 2**30  # leaves the accumulator half of int32


def integer_bias(
    bias: NDArray[np.float32], input_scale: float, weight_scale: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return (codes int32 [C], scale float32 [C]) of a float bias; `with_room_for_bias` keeps them in range."""
    scale = np.float32(input_scale) * weight_scale
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32), scale


def take_up(plan: Plan, name: str, input_scale: float, slope: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    """Make a layer W x + bias of the plan slope * (W x + bias) + shift; both [C], slopes of 1 but for free scales."""
    weight = plan.weights[name]
    old = plan.biases.get(name, np.zeros(len(slope), np.float32))
    plan.biases[name] = new = (slope * old + shift).astype(np.float32)
    scaled = replace(weight, scale=(weight.scale * weight.of_channels(slope)).astype(np.float32))
    plan.weights[name] = with_room_for_bias(scaled, new, input_scale)


def with_room_for_bias(weight: WeightQuantizer, bias: NDArray[np.float32], input_scale: float) -> WeightQuantizer:
    """Return `weight` with the scale of a channel raised where its int32 bias would not fit beside the accumulator.

    That happens in channels of tiny weights and a large bias (dead ones after BatchNorm folding), whose weights matter
    little beside the bias: they are rounded to the wider grid.
    """
    if math.isinf(input_scale):
        return weight
    least = np.abs(bias).astype(np.float64) / (np.float64(np.float32(input_scale)) * LARGEST)
    if (least <= weight.scale).all():
        return weight
    scale = np.where(least > weight.scale, np.nextafter(least.astype(np.float32), np.float32(np.inf)), weight.scale)
    scale = weight.spec.raised(scale)
    lattice = weight.dequantize() / weight.along(scale)
    codes = np.rint((lattice - weight.along(weight.offset)) / weight.along(weight.step))
    return replace(weight, scale=scale, codes=np.clip(codes, 0, largest_code(weight.bits)).astype(np.uint8))
