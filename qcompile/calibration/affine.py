"""Affine correction of one layer: the slope and shift per channel that bring its quantized output back to float.

For pre-activations f (float) and q (quantized), per output channel: slope a = cov(f, q) / var(q), clamped; the
corrected output is a*q + b with b such that the means agree. In a layer y = conv(x) + bias that is scale *= a and a new
bias.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx.parser
from numpy.typing import NDArray

from qcompile.quant.params import Quantizer
from qcompile.runtime.session import Session

SLOPES = (0.5, 2.0)
Array = NDArray[Any]
Means = NDArray[np.float64]

# Both run inside ONNX Runtime: numpy takes five to ten times as long for the same passes over memory.
_MOMENTS = """<ir_version: 8, opset_import: ["": 18]>
moments (float[n, c, l] f, float[n, c, l] q) => (float[c] mf, float[c] mq, float[c] mfq, float[c] mqq)
<int64[2] axes = {0, 2}> {
    mf = ReduceMean<keepdims = 0>(f, axes)   mq = ReduceMean<keepdims = 0>(q, axes)
    fq = Mul(f, q)   mfq = ReduceMean<keepdims = 0>(fq, axes)
    qq = Mul(q, q)   mqq = ReduceMean<keepdims = 0>(qq, axes)
}"""
_APPLY = """<ir_version: 8, opset_import: ["": 18]>
apply (float[n, c, l] q, float[c, 1] a, float[c, 1] b, float scale, uint8 zero, uint8 most)
=> (uint8[n, c, l] codes, float[n, c, l] y)
<uint8 least = {0}> {
    aq = Mul(q, a)   y = Add(aq, b)   wide = QuantizeLinear(y, scale, zero)   codes = Clip(wide, least, most)
}"""


def by_channel(array: Array) -> Array:
    """View [N, C, ...] as [N, C, L]."""
    return array.reshape(*array.shape[:2], prod(array.shape[2:]))


def mean_error(f: Array, codes: Array, quantizer: Quantizer) -> Means:
    """Return how far the means [C] of float values lie above those of their codes; both [N, C, ...]."""
    mean = by_channel(codes).mean((0, 2), dtype=np.float64)
    error: Means = by_channel(f).mean((0, 2), dtype=np.float64) - (mean - quantizer.zero_point) * quantizer.scale
    return error


@dataclass
class Fit:
    """Running means of f, q, f*q and q*q per channel."""

    sums: Means | None = None
    weight: float = 0.0

    def add(self, means: list[Array], weight: float) -> None:
        """Add the means of one batch, of `weight` values per channel."""
        batch = np.stack(means).astype(np.float64) * weight
        self.sums = batch if self.sums is None else self.sums + batch
        self.weight += weight

    def solve(self) -> tuple[Means, Means]:
        """Return slope and shift, each [C]; a channel without variance has slope 1."""
        assert self.sums is not None
        mf, mq, mfq, mqq = self.sums / self.weight
        covariance, variance = mfq - mf * mq, mqq - mq * mq
        flat = variance <= 1e-6 * mqq + 1e-30
        slope = np.clip(np.where(flat, 1.0, covariance / np.where(flat, 1.0, variance)), *SLOPES)
        return slope, mf - slope * mq


@dataclass
class AffineKernels:
    """The two small sessions that every layer shares."""

    threads: int
    _moments: Session = field(init=False)
    _apply: Session = field(init=False)

    def __post_init__(self) -> None:
        self._moments = Session(onnx.parser.parse_model(_MOMENTS), threads=self.threads)
        self._apply = Session(onnx.parser.parse_model(_APPLY), threads=self.threads)

    def moments(self, f: Array, q: Array, into: Fit) -> None:
        """Add the moments of one batch; f and q are [N, C, L]."""
        means = self._moments.run({"f": f, "q": q})
        into.add([means[name] for name in ("mf", "mq", "mfq", "mqq")], f.size / f.shape[1])

    def apply(self, q: Array, slope: Means, shift: Means, quantizer: Quantizer | None) -> Array:
        """Return a*q + b, as codes of `quantizer` or (without one) as float32; q is [N, C, L]."""
        known = quantizer or Quantizer(8, 1.0, 0)
        feeds = {
            "q": q,
            "a": slope.astype(np.float32)[:, None],
            "b": shift.astype(np.float32)[:, None],
            "scale": np.array(known.scale, np.float32),
            "zero": np.array(known.zero_point, np.uint8),
            "most": np.array(known.levels, np.uint8),
        }
        name = "codes" if quantizer else "y"
        return self._apply.run(feeds, [name])[name]
