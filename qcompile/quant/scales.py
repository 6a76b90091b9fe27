"""Weight grids: scale per channel, and below 4 bits also where the levels lie, by squared error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError
from qcompile.quant.params import Scalar, WeightQuantizer, WeightSpec, largest_code, plain_offset
from qcompile.quant.powers import power_above

Floats = NDArray[np.float32]
FREE: Final = WeightSpec()

# Offsets from the plain levels, -2**(bits-1) .. 2**(bits-1)-1, in quarters of a step, the plain grid first; other bits
# have that one only. Measured with reconstruction at W2A4: +0.6 points of top-1, ResNet-20, +16 on EfficientNet-Lite0.
QUARTERS: Final[dict[int, tuple[int, ...]]] = {2: (0, -2, -1, 1, 2, 3, 4), 3: (0, -2, -1, 1, 2, 3, 4)}

# Candidates for the step, as a share of max|w| / (largest code / 2). The error of a long row is smooth in the step.
# Worth it at 8 bits too: against max|w| / 127 EfficientNet-Lite0's squared error falls by 9 %, depthwise by 31 %.
SHARES = np.arange(20, 121, dtype=np.float32) / 100
POWERS = np.array([1, 0.5, 0.25], np.float32)  # the same, where only powers of two may be: of the next one above it
LONG_ROW, LONG_ROW_STRIDE = 256, 5
HUGE, SHRINK = 2.0**60, np.float32(2.0**-70)  # no network has such weights, but damaged ones may
FINE = np.array([-0.025, -0.0125, 0.0125, 0.025], np.float32)
LEAST_SQUARES_ROUNDS = 4
TIE = np.float32(1 + 1e-5)  # the plain grid wins unless another is better by more than rounding errors
ROUNDED = np.float32(1 + 1e-3)  # more than rounding errors may be of a bound
BLOCK = 1 << 16  # weights at a time: the temporary arrays stay in the second-level cache
LEAST_SCALE = np.float32(1e-8)


def quantize_weight(
    weight: Floats, *, bits: int, axis: int, search: bool = True, spec: WeightSpec = FREE
) -> WeightQuantizer:
    """Quantize a weight to the nearest levels of the best grid of each channel.

    Parameters
    ----------
    weight : float32, any shape of at least one dimension
    bits : int
        2 to 8.
    axis : int
        The output-channel axis.
    search : bool
        False takes the plain grid over all weights, which at 8 bits is nearly as good.
    spec : WeightSpec
        What is asked of the scales. Channels that have one scale have one grid. A weight in blocks is a matrix that
        falls into such.

    Returns
    -------
    WeightQuantizer
        A channel of zeros has scale 1 and the plain grid, whose codes mean exactly 0.

    Raises
    ------
    InputError
        The weight holds NaN or infinity.
    """
    rows = np.moveaxis(weight, axis, 0)
    if spec.block:
        blocks, alone = rows.reshape(-1, spec.block), replace(spec, block=0)
        return _in_blocks(quantize_weight(blocks, bits=bits, axis=0, search=search, spec=alone), spec, len(rows), axis)
    channels = rows.shape[0]
    codes = np.empty(rows.shape, np.uint8)
    scale = np.empty(channels, np.float32)
    step, offset = np.empty(channels, np.int8), np.empty(channels, np.int8)
    if spec.per_tensor:
        scale[:], step[:], offset[:] = least_error(rows.reshape(1, -1), bits, search, powers=spec.power_of_two)
    at_once = max(1, BLOCK * channels // max(1, weight.size))
    for start in range(0, channels, at_once):
        some = slice(start, start + at_once)
        part = np.ascontiguousarray(rows[some]).reshape(len(rows[some]), -1)
        if not spec.per_tensor:
            scale[some], step[some], offset[some] = least_error(part, bits, search, powers=spec.power_of_two)
        lattice = part / scale[some, None] - offset[some, None]
        lattice /= step[some, None]
        np.clip(np.rint(lattice, out=lattice), 0, largest_code(bits), out=lattice)
        codes[some] = lattice.reshape(codes[some].shape)
    return WeightQuantizer(bits, axis, np.ascontiguousarray(np.moveaxis(codes, 0, axis)), scale, step, offset, spec)


def _in_blocks(blocks: WeightQuantizer, spec: WeightSpec, channels: int, axis: int) -> WeightQuantizer:
    """Return the quantizer of a matrix whose blocks, channel by channel, are the rows of `blocks`."""

    def laid(array: NDArray[Scalar]) -> NDArray[Scalar]:
        return np.ascontiguousarray(np.moveaxis(array.reshape(channels, -1), 0, axis))

    scale, step, offset = laid(blocks.scale).ravel(), laid(blocks.step).ravel(), laid(blocks.offset).ravel()
    return WeightQuantizer(blocks.bits, axis, laid(blocks.codes), scale, step, offset, spec)


def grids(bits: int) -> list[tuple[int, int]]:
    """Return (step, offset) of the grids a channel may choose: levels step * code + offset on the int8 lattice."""
    result = []
    for quarters in QUARTERS.get(bits, (0,)):
        common = math.gcd(quarters, 4)
        result.append((4 // common, (quarters + 4 * plain_offset(bits)) // common))
    return result


def peaks(block: Floats) -> Floats:
    """Return the largest |w| of each row of [rows, weights]; raises InputError if it is not finite."""
    result: Floats = np.maximum(block.max(axis=1, initial=0), -block.min(axis=1, initial=0))
    if not np.isfinite(result).all():
        raise InputError("a weight holds NaN or infinity", remedy="repair the model or keep the node in float")
    return result


def least_error(
    block: Floats, bits: int, search: bool = True, *, powers: bool = False
) -> tuple[Floats, NDArray[np.int8], NDArray[np.int8]]:
    """Return scale, step and offset [rows] with the least squared error over [rows, weights].

    A coarse search over all grids, a finer one on the best grid, then least squares for the scale given the codes,
    which can only lower the error. With `powers` of two as scales there are few candidates, and the best of them is it.
    """
    peak = peaks(block)
    if (huge := peak > HUGE).any():  # else squares leave float32
        shrink: Floats = np.where(huge, SHRINK, np.float32(1))
        scale, step, offset = least_error(block * shrink[:, None], bits, search, powers=powers)
        return scale / shrink, step, offset
    unit = np.maximum(peak / np.float32(largest_code(bits) / 2), LEAST_SCALE)
    tables = np.array(grids(bits))
    if powers:
        unit = power_above(unit).astype(np.float32)
    if not search:
        step, offset = tables[np.zeros(len(block), np.intp)].astype(np.int8).T
        return np.where(peak > 0, unit, np.float32(1)), step, offset
    shifts = (tables[:, 1] / tables[:, 0] - plain_offset(bits)).astype(np.float32)  # of the levels, in steps
    candidates = POWERS if powers else SHARES[:: LONG_ROW_STRIDE if block.shape[1] >= LONG_ROW else 1]
    if not powers:
        candidates = candidates[candidates >= least_share(block, peak, unit, bits)]
    coarse = np.array([[squared_error(block, unit * k, shift, bits) for k in candidates] for shift in shifts])
    coarse[1:] *= TIE
    grid, nearest = np.divmod(coarse.transpose(2, 0, 1).reshape(len(block), -1).argmin(axis=1), len(candidates))
    share, shift = candidates[nearest], shifts[grid]
    scale = unit * share if powers else _refined(block, unit, share, shift, bits)
    step, offset = tables[grid].astype(np.int8).T
    return np.where(peak > 0, scale / step, np.float32(1)), step, offset


def _refined(block: Floats, unit: Floats, share: NDArray[Any], shift: Floats, bits: int) -> Floats:
    """Return the step [rows] of least error near `unit` * `share`."""
    shares = share + np.concatenate([[np.float32(0)], FINE])[:, None]
    fine = np.array([squared_error(block, unit * k, shift, bits) for k in shares])
    step: Floats = unit * np.take_along_axis(shares, fine.argmin(axis=0)[None], 0)[0]
    for _ in range(LEAST_SQUARES_ROUNDS):
        step = fitted(block, step, shift, bits)
    return step


def least_share(block: Floats, peak: Floats, unit: Floats, bits: int) -> float:
    """Return the share below which no grid is the best: clipping the largest weight alone costs more than a share of 1.

    At 8 bits most shares are below it.
    """
    alive = unit > LEAST_SCALE
    root = np.sqrt(squared_error(block, unit, np.float32(0), bits))[alive]
    most = max(abs(code + offset / step) for step, offset in grids(bits) for code in (0, largest_code(bits)))
    shares = (peak[alive] - ROUNDED * root) / (unit[alive] * np.float32(most))
    return float(shares.min(initial=1))


def nearest_levels(block: Floats, step: Floats, shift: Floats | np.float32, bits: int) -> tuple[Floats, Floats]:
    """Return the weights and their nearest levels, both in steps from the level 0 + shift."""
    shift = np.broadcast_to(shift, step.shape)[:, None]
    position = block * (np.float32(1) / step)[:, None]
    position -= shift
    low = plain_offset(bits)
    return position, np.rint(np.clip(position, np.float32(low), np.float32(low + largest_code(bits))))


def squared_error(block: Floats, step: Floats, shift: Floats | np.float32, bits: int) -> Floats:
    """Return the squared error [rows] of rounding each row to its levels step * (plain grid + shift)."""
    position, level = nearest_levels(block, step, shift, bits)
    position -= level
    error: Floats = np.einsum("ij,ij->i", position, position) * step * step
    return error


def fitted(block: Floats, step: Floats, shift: Floats, bits: int) -> Floats:
    """Return the step that fits best when every weight keeps its present level: least squares, in closed form."""
    _, level = nearest_levels(block, step, shift, bits)
    level += shift[:, None]
    power = np.einsum("ij,ij->i", level, level)
    best = np.einsum("ij,ij->i", block, level) / np.maximum(power, 1)
    return np.where((power >= 1) & (best > LEAST_SCALE), best, step)
