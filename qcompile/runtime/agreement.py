"""How well the outputs of one model agree with those of another on the same samples, added up batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Agreement:
    """Sums over all values of one output seen so far; `add` takes the batches, `summary` gives the figures."""

    samples: int = 0
    signal: float = 0.0  # sum of squares of the reference
    other: float = 0.0  # sum of squares of the values compared
    product: float = 0.0
    noise: float = 0.0  # sum of squared differences
    largest: float = 0.0  # difference
    decisions: int = 0
    equal_decisions: int = 0

    def add(self, reference: NDArray[Any], values: NDArray[Any]) -> None:
        """Add one batch: two arrays of the same shape, samples along axis 0."""
        one, two = reference.astype(np.float64).reshape(-1), values.astype(np.float64).reshape(-1)
        difference = one - two
        self.samples += len(reference) if reference.ndim else 1
        self.signal += float(one @ one)
        self.other += float(two @ two)
        self.product += float(one @ two)
        self.noise += float(difference @ difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        axis = class_axis(reference)
        if axis is not None:
            hits = reference.argmax(axis) == values.argmax(axis)
            self.decisions += hits.size
            self.equal_decisions += int(hits.sum())

    def summary(self) -> dict[str, float | None]:
        """Return `sqnr_db` (None: no difference), `cosine`, `largest_difference` and `argmax`.

        `argmax` is the share of equal decisions in 0..1; None where the output has no axis of classes.
        SQNR = 10 log10(sum reference^2 / sum (reference - value)^2).
        """
        norms = (self.signal * self.other) ** 0.5
        smallest = np.finfo(np.float64).tiny
        return {
            "sqnr_db": float(10 * np.log10(max(self.signal, smallest) / self.noise)) if self.noise else None,
            "cosine": self.product / norms if norms else float(self.signal == self.other),
            "largest_difference": self.largest,
            "argmax": self.equal_decisions / self.decisions if self.decisions else None,
        }


def class_axis(output: NDArray[Any]) -> int | None:
    """Return the axis along which an output scores classes: the last, of images [N, C, H, W] the second; or None."""
    if output.ndim < 2:
        return None
    axis = 1 if output.ndim == 4 else output.ndim - 1
    return axis if output.shape[axis] > 1 and output.dtype.kind == "f" else None
