"""Affine correction of one layer: the slope and shift per channel that bring its quantized output back to float.

For pre-activations f (float) and q (quantized), per output channel: slope a = cov(f, q) / var(q), clamped; the
corrected output is a*q + b with b such that the means agree. In a layer y = conv(x) + bias that is scale *= a and a new
bias. Some samples are held back from the fit; what does not lower the error of the layer on them is not done to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx.parser
from numpy.typing import NDArray

from qcompile.quant.grid import Container, unsigned
from qcompile.quant.params import Quantizer
from qcompile.runtime.session import Session

SLOPES = (0.5, 2.0)
PLACES = 4096  # positions of all samples together that are kept at most, to judge a correction and to refine it
FEW = 32  # positions inside the range say too little
ROUNDS = 3  # of refining
LEAST_NOISE = 1e-3  # of the variance: where less is left (30 dB) there is nothing to refine
JUDGES = 4  # one sample in so many is held back from the fit, to judge it
USUAL = 8.0  # times the median: energies of a position up to there are nothing unusual
Array = NDArray[Any]
Means = NDArray[np.float64]
NO_CODES = Quantizer(unsigned(8), 1.0, 0)  # where codes are made and not read

# Inside ONNX Runtime: numpy takes five to ten times as long for the same passes over memory.
_APPLY = """<ir_version: 8, opset_import: ["": 18]>
apply (float[n, c, l] q, float[c, 1] a, float[c, 1] b, float scale, CODE zero, CODE least, CODE most)
=> (CODE[n, c, l] codes, float[n, c, l] y) {
    aq = Mul(q, a)   y = Add(aq, b)   wide = QuantizeLinear(y, scale, zero)   codes = Clip(wide, least, most)
}"""


def by_channel(array: Array) -> Array:
    """View [N, C, ...] as [N, C, L]."""
    return array.reshape(*array.shape[:2], prod(array.shape[2:]))


def dots(a: Array, b: Array) -> Array:
    """Return the scalar products [..., C] of the rows of two arrays [..., C, L]; one may be the same for all N or C.

    By BLAS: one pass over memory and no products in between, a third of what ONNX Runtime's operators take.
    """
    found: Array = np.matmul(a[..., None, :], b[..., :, None])[..., 0, 0]
    return found


def moments(f: Array, q: Array) -> Means:
    """Return the means [4, N, C] of d = f - q, q, d*q and q*q of each sample [C, L].

    Those of d and not of f: at 8 bits d is small, and f*q - q*q would be mostly rounding.
    """
    d, ones = f - q, np.ones((1, 1, f.shape[2]), np.float32)
    found = [dots(d, ones), dots(q, ones), dots(d, q), dots(q, q)]
    return np.asarray(np.stack(found) / np.float64(max(f.shape[2], 1)))


@dataclass
class Fit:
    """Running means of d = f - q, q, d*q and q*q per channel."""

    sums: Means | None = None
    weight: float = 0.0

    def add(self, means: Means, weight: float) -> None:
        """Add means [4, C] of values per channel of this weight, which is usually their number."""
        self.sums = weight * means + (0.0 if self.sums is None else self.sums)
        self.weight += weight

    @property
    def means(self) -> Means:
        """The four means, each [C]."""
        assert self.sums is not None
        return np.asarray(self.sums / self.weight, np.float64)

    def solve(self) -> tuple[Means, Means]:
        """Return slope and shift, each [C]; a channel without variance has slope 1."""
        md, mq, mdq, mqq = self.means
        covariance, variance = mdq - md * mq, mqq - mq * mq
        flat = variance <= 1e-6 * mqq + 1e-30
        slope = np.clip(np.where(flat, 1.0, 1 + covariance / np.where(flat, 1.0, variance)), *SLOPES)
        return slope, md - (slope - 1) * mq

    def shift_alone(self) -> tuple[Means, Means]:
        """Return a slope of 1 and the shift, each [C]."""
        md = self.means[0]
        return np.ones_like(md), md


@dataclass(frozen=True)
class Correction:
    """Slope and shift, each [C], and the judged error with them: as a share of that without, 1 if they are refused, and
    as a share of the variance of the float values.
    """

    slope: Means
    shift: Means
    error: float = 1.0
    noise: float = 0.0


@dataclass(frozen=True)
class Places:
    """Some positions, float and quantized, both [C, P], with the weight [P] of each, and what they go through.

    What a quantizer cuts off is the same to all that follows: only what it gives of f and of the corrected q counts.
    """

    f: Array
    q: Array
    weights: Array
    quantizer: Quantizer | None = None

    @classmethod
    def of(cls, parts: Sequence[Places]) -> Places:
        """Join positions."""
        f, q, weights = (np.concatenate([getattr(part, name) for part in parts], -1) for name in ("f", "q", "weights"))
        return cls(f, q, weights, parts[0].quantizer)

    def halved(self) -> Places:
        """Return every other position."""
        return replace(self, f=self.f[:, ::2].copy(), q=self.q[:, ::2].copy(), weights=self.weights[::2])

    def cut(self, values: Array) -> Array:
        """Return what the quantizer gives of values, but for rounding."""
        return values if self.quantizer is None else np.clip(values, self.quantizer.low, self.quantizer.high)

    def corrected(self, slope: Means, shift: Means) -> Array:
        """Return slope * q + shift, [C, P]."""
        return slope.astype(np.float32)[:, None] * self.q + shift.astype(np.float32)[:, None]

    def errors(self, slope: Means, shift: Means) -> Means:
        """Return the mean square [C] of f - slope * q - shift behind the quantizer."""
        left = self.cut(self.f) - self.cut(self.corrected(slope, shift))
        return np.asarray(np.square(left, out=left) @ self.weights / self.weights.sum(), np.float64)

    def variance(self) -> float:
        """Return the variance of f behind the quantizer over all channels, about their one mean, summed over them."""
        f = self.cut(self.f)
        mean = (f @ self.weights).sum() / self.weights.sum() / len(f)
        return float((np.square(f - mean) @ self.weights).sum() / self.weights.sum())

    def refined(self, slope: Means, shift: Means) -> tuple[Means, Means]:
        """Return the slope and shift, each [C], with which each channel errs less behind the quantizer.

        By steps of Gauss and Newton: where the corrected q is cut off, a small change is not seen, so they are least
        squares over the other positions, towards f cut off.
        """
        errors = self.errors(slope, shift)
        for _ in range(ROUNDS):
            tried = self._step(slope, shift)
            found = self.errors(*tried)
            better = found < errors
            slope, shift, errors = (np.where(better, *pair) for pair in zip((*tried, found), (slope, shift, errors)))
        return slope, shift

    def _step(self, slope: Means, shift: Means) -> tuple[Means, Means]:
        assert self.quantizer is not None
        y, target = self.corrected(slope, shift), self.cut(self.f)
        inside = ((y > self.quantizer.low) & (y < self.quantizer.high)).astype(np.float32)
        count = inside.sum(1, dtype=np.float64)
        n = np.maximum(count, 1)
        mean, wanted = dots(inside, self.q) / n, dots(inside, target) / n
        q = inside * (self.q - mean.astype(np.float32)[:, None])
        variance, covariance = dots(q, q) / n, dots(q, target) / n
        steady = (count >= FEW) & (variance > 1e-6 * mean**2 + 1e-30)
        new = np.clip(np.where(steady, covariance / np.where(steady, variance, 1), slope), *SLOPES)
        return new, np.where(steady, wanted - new * mean, shift)


@dataclass
class JudgedFit:
    """Moments of all samples and of those that a trial fit sees; of these and of the others, which judge, some places.

    To the judge, a position (a pixel, a token) counts less the further its energy lies above the `usual` one: or a few
    tokens whose huge values are clipped would outweigh what a shift does to all the others.
    """

    quantizer: Quantizer | None = None
    each: int = 256  # positions of a sample that are kept: fewer, the more samples there are
    whole: Fit = field(default_factory=Fit)
    trial: Fit = field(default_factory=Fit)
    fitted: list[Places] = field(default_factory=list)
    judging: list[Places] = field(default_factory=list)
    samples: int = 0
    usual: float = 0.0

    def judges(self, samples: int, rows: int) -> NDArray[np.bool_]:
        """Say which rows of the next `samples` samples are held back from the trial."""
        numbers = self.samples + np.arange(rows) * samples // max(rows, 1)
        self.samples += samples
        return np.asarray(numbers % JUDGES == JUDGES - 1)

    def keep(self, f: Array, q: Array, rows: int = 1, *, judge: bool) -> None:
        """Keep some positions of values [N, C, L]; `rows` of N are positions of one sample too, such as its tokens."""
        if not len(f):
            return
        _, channels, length = f.shape
        some = np.unique(np.linspace(0, rows * length - 1, min(self.each, rows * length)).astype(int))
        samples = (array.reshape(-1, rows, channels, length) for array in (f, q))
        f, q = (array[:, some // length, :, some % length].T.reshape(channels, -1) for array in samples)
        (self.judging if judge else self.fitted).append(Places(f, q, self.weights(f), self.quantizer))
        if sum(part.f.shape[1] for part in (*self.fitted, *self.judging)) > PLACES:
            self.each = max(1, self.each // 2)
            self.fitted, self.judging = ([part.halved() for part in parts] for parts in (self.fitted, self.judging))

    def weights(self, f: Array) -> Array:
        """Return the weight [P] of each position of float values [C, P]."""
        energy = np.einsum("cp,cp->p", f, f)
        self.usual = self.usual or USUAL * float(np.median(energy)) or 1.0
        return np.asarray(self.usual / (self.usual + energy), np.float32)

    def solve(self, channels: int, *, slopes: bool = True) -> Correction:
        """Return what errs least on the samples that judge: slope and shift (with `slopes`), shift alone, or nothing.

        The trial decides; the numbers are then those of all samples. A single sample judges itself.
        """
        found = Correction(np.ones(channels), np.zeros(channels))
        if not self.whole.weight:
            return found
        everything = Places.of(self.fitted + self.judging)
        trial, seen, judge = self.whole, everything, everything
        if self.fitted and self.judging:
            trial, seen, judge = self.trial, Places.of(self.fitted), Places.of(self.judging)
        before, variance = judge.errors(found.slope, found.shift).sum(), max(judge.variance(), 1e-30)
        for solve in (Fit.shift_alone, Fit.solve) if slopes else (Fit.shift_alone,):
            error = judge.errors(*solve(trial)).sum()
            if error < found.error * before:
                found = Correction(*solve(self.whole), error / before)
        if slopes and self.quantizer is not None and found.error * before > LEAST_NOISE * variance:
            error = judge.errors(*seen.refined(*trial.solve())).sum()
            if error < found.error * before:
                found = Correction(*everything.refined(*self.whole.solve()), error / before)
        return replace(found, noise=float(found.error * before / variance))


@dataclass
class AffineKernels:
    """Moments, and the small session that all layers with codes of one type share."""

    threads: int
    _sessions: dict[Container, Session] = field(default_factory=dict)

    def look(self, f: Array, q: Array, samples: int, into: JudgedFit) -> None:
        """Take in one batch of `samples`, float and quantized, both [N, C, ...].

        Which rows a data-dependent operator keeps may differ between the two, or be none: these are passed over.
        """
        if f.shape != q.shape or f.ndim < 2 or not f.size:
            return
        f, q = by_channel(f), by_channel(q)
        judges, means = into.judges(samples, len(f)), moments(f, q)
        into.whole.add(means.mean(1), f.size / f.shape[1])
        if not judges.all():
            into.trial.add(means[:, ~judges].mean(1), f.shape[2] * (~judges).sum())
        rows = 1 if len(f) % samples else len(f) // samples
        into.keep(f[judges], q[judges], rows, judge=True)
        into.keep(f[~judges], q[~judges], rows, judge=False)

    def apply(self, q: Array, slope: Means, shift: Means, quantizer: Quantizer | None) -> Array:
        """Return a*q + b, as codes of `quantizer` or (without one) as float32; q is [N, C, L]."""
        known = quantizer or NO_CODES
        grid = known.grid
        feeds = {
            "q": q,
            "a": slope.astype(np.float32)[:, None],
            "b": shift.astype(np.float32)[:, None],
            "scale": np.array(known.scale, np.float32),
            "zero": np.array(known.zero_point, grid.dtype),
            "least": np.array(grid.low, grid.dtype),
            "most": np.array(grid.high, grid.dtype),
        }
        name = "codes" if quantizer else "y"
        if grid.container not in self._sessions:
            model = onnx.parser.parse_model(_APPLY.replace("CODE", grid.container))
            self._sessions[grid.container] = Session(model, threads=self.threads)
        return self._sessions[grid.container].run(feeds, [name])[name]
