"""Short filters, such as those of depthwise convolutions: grid and codes by the error of what the layer computes.

A filter of nine weights has few codes to choose, and its inputs, neighbouring pixels, are alike: rounding errors of one
sign add up, those of opposite signs cancel. So codes that lie near the weights are far from the best ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcompile.quant.params import WeightQuantizer, largest_code
from qcompile.quant.powers import nearest_power, power_above
from qcompile.quant.scales import LEAST_SCALE, POWERS, TIE

LONGEST: Final = 64  # weights of a filter: the search takes time as the square of it
MOST_BITS: Final = 4  # above them rounding to nearest does as well
SHARES: Final = np.arange(5, 25, dtype=np.float64) / 20  # of max|w| / ((2**bits - 1) / 2): candidates for the step
TRIED: Final = 32  # candidates for step and offset of which descent starts
ROUNDS: Final = 3  # of descent over all weights
AT_ONCE: Final = 256  # filters: bounds memory
RIDGE: Final = 1e-3  # of the mean variance of an input, added to each
Array = NDArray[Any]


def fit_filters(weight: Array, covariance: Array, quantized: WeightQuantizer) -> WeightQuantizer:
    """Return `quantized` with scale, step, offset and codes of each channel where the layer's output errs least.

    Parameters
    ----------
    weight : float32 [C, ...]
        The output channels come first.
    covariance : float64 [C, K, K] or [1, K, K]
        That of the K inputs that a filter weighs, by channel or for all.
    quantized
        The present choice, which wins a tie; at most 4 bits.

    Notes
    -----
    The error of a channel is (s q - w)' V (s q - w), V the covariance: its mean is the business of the bias, its slope
    that of the scale s. All integer offsets in quarters of a step are candidates; from the best of them, with codes
    rounded to nearest, coordinate descent goes on (as QuantEase, Behdin et al., 2023, does with one grid).
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    fitted = replace(
        quantized,
        codes=quantized.codes.copy(),
        scale=quantized.scale.copy(),
        step=quantized.step.copy(),
        offset=quantized.offset.copy(),
    )
    codes = fitted.codes.reshape(rows.shape)
    for start in range(0, len(rows), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        form = np.broadcast_to(
            covariance if len(covariance) == 1 else covariance[some], (len(rows[some]), *covariance.shape[1:])
        )
        _Search(rows[some], _with_ridge(form), quantized.bits, quantized.spec.power_of_two).improve(
            codes[some], fitted.scale[some], fitted.step[some], fitted.offset[some]
        )
    return fitted


def better_filters(
    weight: Array, covariance: Array, one: WeightQuantizer, other: WeightQuantizer
) -> tuple[WeightQuantizer, int]:
    """Return `one`, with the filters of `other` where these err less, and how many they are.

    The shapes are those of `fit_filters`; `covariance` is that of other samples, which judge. Both are compared with
    the scales that suit them best.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    form = np.broadcast_to(_with_ridge(covariance), (len(rows), *covariance.shape[1:]))
    search = _Search(rows, form, one.bits, one.spec.power_of_two)
    errors = [search.error(item.integers().reshape(rows.shape).astype(np.float64))[0] for item in (one, other)]
    better = errors[1] < errors[0]
    codes = np.where(better.reshape(-1, *[1] * (weight.ndim - 1)), other.codes, one.codes)
    scale, step, offset = (
        np.where(better, new, old)
        for new, old in ((other.scale, one.scale), (other.step, one.step), (other.offset, one.offset))
    )
    return replace(one, codes=codes, scale=scale, step=step, offset=offset), int(better.sum())


@dataclass
class _Search:
    """Some filters: `rows` [R, K] and `form` [R, K, K], of which the error of a filter e is e' form e.

    `powers`: their scales are powers of two.
    """

    rows: Array
    form: Array
    bits: int
    powers: bool = False

    def __post_init__(self) -> None:
        half = 1 << self.bits - 1
        self.most = largest_code(self.bits)
        self.unit = np.maximum(np.abs(self.rows).max(1) / (half - 0.5), LEAST_SCALE)
        if self.powers:
            self.unit = power_above(self.unit)
        self.wanted = np.einsum("rij,rj->ri", self.form, self.rows)
        self.power = np.einsum("ri,ri->r", self.rows, self.wanted)

    def improve(self, codes: Array, scale: Array, step: Array, offset: Array) -> None:
        """Replace in place what a candidate does better."""
        best = self.error(step[:, None] * codes.astype(np.float64) + offset[:, None])[0] / float(TIE)
        steps, shifts = self.candidates()
        for size, shift in zip(steps, shifts):
            found = self.descend(self.nearest(size, shift), size, shift)
            quarters = np.rint(4 * shift).astype(int)
            common = np.gcd(quarters, 4)
            new_step, new_offset = 4 // common, quarters // common
            error, fit = self.error(new_step[:, None] * found + new_offset[:, None])
            better = (error < best) & (fit > LEAST_SCALE)
            best[better], scale[better] = error[better], fit[better]
            codes[better], step[better], offset[better] = found[better], new_step[better], new_offset[better]

    def error(self, lattice: Array) -> tuple[Array, Array]:
        """Return the error of the integers `lattice` [R, K] with the scale that suits them best, and that scale."""
        power = np.einsum("ri,ri->r", lattice, np.einsum("rij,rj->ri", self.form, lattice))
        match = np.einsum("ri,ri->r", lattice, self.wanted)
        scale = np.where(power > 0, match / np.where(power > 0, power, 1), 0)
        if self.powers:
            scale = np.where(scale > 0, nearest_power(np.where(scale > 0, scale, 1)), 0)
        return np.where(match > 0, self.power - scale * (2 * match - scale * power), self.power), scale

    def candidates(self) -> tuple[Array, Array]:
        """Return (steps, shifts), both [TRIED, R]: the grids step * (code + shift) on which nearest codes err least."""
        half = 1 << self.bits - 1
        grids = [
            (share, quarters / 4) for quarters in range(-8 * half, 1) for share in (POWERS if self.powers else SHARES)
        ]
        errors = np.empty((len(grids), len(self.rows)))
        for number, (share, shift) in enumerate(grids):
            size, shifts = self.unit * share, np.full(len(self.rows), shift)
            lattice = (self.nearest(size, shifts) + shift) * size[:, None] - self.rows
            errors[number] = np.einsum("ri,ri->r", lattice, np.einsum("rij,rj->ri", self.form, lattice))
        chosen = np.argsort(errors, axis=0, kind="stable")[:TRIED]
        table = np.array(grids)
        return self.unit * table[chosen, 0], table[chosen, 1]

    def nearest(self, size: Array, shift: Array) -> Array:
        """Return the codes [R, K] nearest to the filters."""
        return np.clip(np.rint(self.rows / size[:, None] - shift[:, None]), 0, self.most)

    def descend(self, codes: Array, size: Array, shift: Array) -> Array:
        """Return codes of which none can be changed alone to lower the error, or after so many rounds."""
        variance = np.einsum("rii->ri", self.form)
        slope = np.einsum("rij,rj->ri", self.form, (codes + shift[:, None]) * size[:, None] - self.rows)
        for _ in range(ROUNDS):
            before = codes.copy()
            for k in range(codes.shape[1]):
                best = codes[:, k] - slope[:, k] / (variance[:, k] * size)
                new = np.clip(np.rint(best), 0, self.most)
                slope += self.form[:, k] * ((new - codes[:, k]) * size)[:, None]
                codes[:, k] = new
            if (codes == before).all():
                break
        return codes


def _with_ridge(form: Array) -> Array:
    mean = np.einsum("rii->r", form) / form.shape[1]
    ridge: Array = np.maximum(RIDGE * mean, 1e-12)
    return form + np.eye(form.shape[1]) * ridge[:, None, None]


def is_short(weight: Array) -> bool:
    """Say whether the weight of a two-dimensional convolution has short filters."""
    return weight.ndim == 4 and math.prod(weight.shape[1:]) <= LONGEST
