"""Long filters: codes by the error of what the layer computes, each rounding error made good by the weights behind it.

As in GPTQ (Frantar et al., 2023, algorithm 1), on the grid that each filter has, for convolutions too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcompile.quant.params import WeightQuantizer, largest_code
from qcompile.quant.scales import LEAST_SCALE

LONGEST: Final = 4608  # weights of a filter: the search takes memory as the square of it
RIDGE: Final = 3e-2  # of the mean variance of an input, added to each: the samples are few, the inputs many
AT_ONCE: Final = 64  # weights whose errors are handed on together
Array = NDArray[Any]


def compensate(
    weight: Array, covariance: Array, judge: Array, quantized: WeightQuantizer
) -> tuple[WeightQuantizer, int]:
    """Return `quantized` with other codes and scales where a filter then errs less, and how many filters they are.

    Parameters
    ----------
    weight : float32
        Its output channels lie on the axis of `quantized`; the K others belong to one filter.
    covariance : float64 [K, K]
        That of the inputs that a filter weighs.
    judge : float64 [K, K]
        The same of other samples: what does not err less on them is not taken.
    quantized
        The present choice; steps and offsets stay, and scales that are not free.

    Notes
    -----
    The error of a filter is (s q - w)' V (s q - w), V the covariance: its mean is the business of the bias, its slope
    that of the scale s.
    """
    axis = quantized.axis
    codes = np.moveaxis(quantized.codes, axis, 0)
    rows = np.moveaxis(weight, axis, 0).reshape(len(codes), -1).astype(np.float64)
    step, offset, scale = (_by_row(quantized, values) for values in (quantized.step, quantized.offset, quantized.scale))
    found = _rounded(rows, _with_ridge(covariance), scale * step, offset / step, quantized.bits)
    unit = scale if quantized.spec.block else np.ones((1, 1))  # blocks keep their scales beside each other
    others = _with_ridge(judge)
    own = np.ones(len(rows)) if quantized.spec.block else quantized.scale.astype(np.float64)
    kept = None if quantized.spec.is_free else own
    before, _ = _error(rows, others, unit * (step * codes.reshape(rows.shape) + offset), kept)
    after, _ = _error(rows, others, unit * (step * found + offset), kept)
    fitted = _error(rows, _with_ridge(covariance), unit * (step * found + offset), kept)[1]
    better = (found != codes.reshape(rows.shape)).any(1) & (after < before) & (fitted > LEAST_SCALE)
    chosen = np.where(better[:, None], found, codes.reshape(rows.shape)).astype(np.uint8).reshape(codes.shape)
    scales = np.where(better, fitted, own)
    if quantized.spec.block:
        scales = quantized.scale * quantized.of_channels(scales)
    codes = np.ascontiguousarray(np.moveaxis(chosen, 0, axis))
    return replace(quantized, codes=codes, scale=scales.astype(np.float32)), int(better.sum())


def _by_row(quantized: WeightQuantizer, values: Array) -> Array:
    """Return [R, 1] of a vector of filters, [R, K] of one of blocks."""
    if not quantized.spec.block:
        return values.astype(np.float64)[:, None]
    return np.moveaxis(quantized.along(values), quantized.axis, 0).astype(np.float64)


def _rounded(rows: Array, form: Array, size: Array, shift: Array, bits: int) -> Array:
    """Return the codes [R, K], of which the weight of the largest variance is rounded first.

    `size` and `shift` are [R, 1] or, of blocks, [R, K].
    """
    order = np.argsort(-np.diag(form), kind="stable")
    size, shift = (array[:, order] if array.shape[1] > 1 else array for array in (size, shift))
    factor = np.linalg.cholesky(np.linalg.inv(form[np.ix_(order, order)])).T
    left, codes = rows[:, order], np.empty(rows.shape)
    for start in range(0, len(form), AT_ONCE):
        stop = min(start + AT_ONCE, len(form))
        errors = np.empty((len(rows), stop - start))
        for k in range(start, stop):
            own, low = (array[:, k] if array.shape[1] > 1 else array[:, 0] for array in (size, shift))
            codes[:, k] = np.clip(np.rint(left[:, k] / own - low), 0, largest_code(bits))
            error = (left[:, k] - (codes[:, k] + low) * own) / factor[k, k]
            left[:, k:stop] -= error[:, None] * factor[k, k:stop]
            errors[:, k - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    result = np.empty(rows.shape)
    result[:, order] = codes
    return result


def _error(rows: Array, form: Array, lattice: Array, scale: Array | None = None) -> tuple[Array, Array]:
    """Return the error [R] of the integers `lattice` [R, K] with `scale`, or the one that suits them best, and that."""
    seen = lattice @ form
    power, match = (np.einsum("rk,rk->r", seen, values) for values in (lattice, rows))
    own = np.einsum("rk,rk->r", rows @ form, rows)
    if scale is not None:
        return own - scale * (2 * match - scale * power), scale
    scale = np.where(power > 0, match / np.where(power > 0, power, 1), 0)
    return np.where(match > 0, own - scale * match, own), scale


def _with_ridge(form: Array) -> Array:
    ridged: Array = form + np.eye(len(form)) * max(RIDGE * np.trace(form) / len(form), 1e-12)
    return ridged
