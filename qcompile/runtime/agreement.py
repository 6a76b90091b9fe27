"""How well an output of one model agrees with that of another on the same samples, added up batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError
from qcompile.runtime.outputs import Output, OutputKind

Array = NDArray[Any]
LEAST_SAME = 0.9  # share of equal decisions, or of equal integers
LEAST_SQNR, LEAST_COSINE = 20.0, 0.95  # of values: dB, and the mean over samples
PREVAILS = 0.5  # share of the float model's decisions from which on a class is the background
FEWEST_FOREGROUND = 10  # decisions beside the background, for a share of them to mean something
SURE, VARIED = 0.5, 3  # a head scores classes where half of its samples are so sure of one, and say so many,
TOGETHER = 1.0  # and where its values do not rise and fall together: 1 is the variance of a mean of independent ones
ELEMENTS = 1 << 22  # that are compared at once: bounds the memory
MARKER = 1e30  # what is larger marks a place (masked scores) and is no value


@dataclass
class Agreement:
    """Sums over all values of one output seen so far; `add` takes the batches, `summary` gives the figures."""

    output: Output = field(default_factory=Output)
    samples: int = 0
    signal: float = 0.0  # sum of squares of the reference
    noise: float = 0.0  # sum of squared differences
    size: float = 0.0  # sum of absolute values of the reference
    error: float = 0.0  # sum of absolute differences
    largest: float = 0.0  # difference
    cosines: list[float] = field(default_factory=list)  # by sample
    head: list[Array] = field(default_factory=list)  # the reference [N, C] of a head, in parts
    decisions: int = 0
    equal: int = 0
    said: Counter[int] = field(default_factory=Counter)  # by class: how often the reference decides for it
    agreed: Counter[int] = field(default_factory=Counter)  # and how often both do

    def add(self, reference: Array, values: Array, samples: int | None = None, keep: Array | None = None) -> None:
        """Add one batch: two arrays of the same shape, of `samples` samples along axis 0 (None: as many as it is long).

        `keep` [N, T] says which positions count; those that do not are left out.
        """
        rows = samples if samples is not None else len(reference) if reference.ndim else 1
        self.samples += rows
        if keep is not None and (keep.shape != reference.shape[:2] or keep.all()):
            keep = None
        if not reference.ndim or len(reference) != rows:  # the batch is not the first axis
            self._add(reference, values, keep, rows=1)
            return
        step = max(1, ELEMENTS * rows // max(reference.size, 1))
        for place in (slice(start, start + step) for start in range(0, rows, step)):
            part = reference[place]
            self._add(part, values[place], keep[place] if keep is not None else None, rows=len(part))

    def _add(self, reference: Array, values: Array, keep: Array | None, *, rows: int) -> None:
        """Add some samples: `rows`, along axis 0."""
        kind, axis = self.output.kind, self.output.axis
        if axis is not None and reference.size:
            self._decide(*decisions(reference, values, axis, keep))
            if kind is OutputKind.HEAD:
                self.head.append(reference.astype(np.float32))
        elif axis is None and kind is not OutputKind.VALUES:
            self._decide(*(array[keep] if keep is not None else array for array in (reference, values)))
        if kind is not OutputKind.DECISIONS:
            self._measure(reference.astype(np.float64), values.astype(np.float64), keep, rows)

    def _decide(self, reference: Array, values: Array) -> None:
        """Count equal decisions, by class."""
        hits = reference == values
        self.decisions += hits.size
        self.equal += int(hits.sum())
        if self.output.kind is OutputKind.WHOLE:
            return
        for counts, decided in ((self.said, reference), (self.agreed, reference[hits])):
            counts.update(dict(zip(*(part.tolist() for part in np.unique(decided, return_counts=True)), strict=True)))

    def _measure(self, one: Array, two: Array, keep: Array | None, rows: int) -> None:
        """Add up sizes and differences, and the cosine of each sample."""
        usable = np.maximum(np.abs(one), np.abs(two)) < MARKER
        if keep is not None:
            usable &= keep.reshape(keep.shape + (1,) * (one.ndim - 2))
        one, two = (np.where(usable, array, 0.0).reshape(rows, -1) for array in (one, two))
        difference = np.abs(one - two)
        self.noise += float(np.vdot(difference, difference))
        self.size += float(np.abs(one).sum())
        self.error += float(difference.sum())
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        squares, others = (one * one).sum(1), (two * two).sum(1)
        self.signal += float(squares.sum())
        some = squares > 0  # a sample of zeros has no direction
        products = (one * two).sum(1)[some]
        norms = np.sqrt(squares[some] * others[some])
        self.cosines += np.divide(products, norms, out=np.zeros_like(products), where=norms > 0).tolist()

    @property
    def kind(self) -> OutputKind:
        """What the output is, now that its values are known."""
        if self.output.kind is not OutputKind.HEAD:
            return self.output.kind
        return OutputKind.CLASSES if self.head and looks_like_scores(np.concatenate(self.head)) else OutputKind.VALUES

    def foreground(self) -> tuple[float, int] | None:
        """Return the share of equal decisions among those where not both models say the class that prevails, and how
        many these are.

        None where no class prevails, where there are too few others, or where a sample has one decision only. Blank
        steps of a recogniser and the background of a segmentation are easy, and would hide what is lost beside them.
        """
        background, times = self.said.most_common(1)[0] if self.said else (0, 0)
        others = self.decisions - self.agreed[background]
        if self.decisions <= self.samples or times <= PREVAILS * self.decisions or others < FEWEST_FOREGROUND:
            return None
        return (self.equal - self.agreed[background]) / others, others

    def summary(self) -> dict[str, Any]:
        """Return the figures; None where one means nothing for this kind of output.

        kind                what was compared: classes, decisions, whole (integers, booleans) or values
        same, foreground    shares in 0..1 of equal decisions (or integers), and of those beside the prevailing class
        standard_error      of the share of equal decisions that counts: `foreground` where there is one, else `same`
        sqnr_db             10 log10(sum reference^2 / sum (reference - value)^2); None: no difference
        cosine, least_cosine  mean and least over the samples
        relative_error      sum |reference - value| / sum |reference|
        largest_difference
        """
        kind, smallest = self.kind, np.finfo(np.float64).tiny
        figures: dict[str, Any] = dict.fromkeys(FIGURES) | {"kind": str(kind)}
        if kind is not OutputKind.VALUES and self.decisions:
            figures["same"] = self.equal / self.decisions
        if kind in (OutputKind.CLASSES, OutputKind.DECISIONS) and self.decisions:
            share, count = self.foreground() or (figures["same"], self.decisions)
            figures["foreground"] = share if count < self.decisions else None
            figures["standard_error"] = float(np.sqrt(share * (1 - share) / count))
        if kind is not OutputKind.DECISIONS:
            figures["sqnr_db"] = 10 * float(np.log10(max(self.signal, smallest) / self.noise)) if self.noise else None
            figures["relative_error"] = self.error / self.size if self.size else float(self.error > 0)
            figures["largest_difference"] = self.largest
        if kind in (OutputKind.CLASSES, OutputKind.VALUES) and self.cosines:
            figures |= {"cosine": float(np.mean(self.cosines)), "least_cosine": min(self.cosines)}
        return figures


FIGURES = (
    "same", "foreground", "standard_error", "sqnr_db", "cosine", "least_cosine", "relative_error", "largest_difference"
)  # fmt: skip


def decisions(reference: Array, values: Array, axis: int, keep: Array | None) -> tuple[Array, Array]:
    """Return what two arrays of scores decide along `axis`, at the positions that count."""
    if keep is not None and reference.ndim == 2:  # the classes are positions
        reference, values = (np.where(keep, array, array.min()) for array in (reference, values))
        keep = None
    decided = reference.argmax(axis), values.argmax(axis)
    if keep is None or reference.ndim == 2 or axis % reference.ndim < 2:
        return decided
    return decided[0][keep], decided[1][keep]


def looks_like_scores(values: Array) -> bool:
    """Say whether outputs [N, C] are scores that a Softmax makes probabilities of, rather than an embedding or numbers.

    Then most samples are sure of one class, they say several, and since training by cross-entropy moves scores against
    each other, their mean varies less than that of independent values, while coordinates and the like move together.
    """
    probabilities = 1 / np.exp(values - values.max(1, keepdims=True)).sum(1)
    varied = len(np.unique(values.argmax(1))) >= VARIED
    together = values.mean(1).var() * values.shape[1] / max(values.var(0).mean(), np.finfo(np.float32).tiny)
    return bool(varied and np.median(probabilities) >= SURE and together < TOGETHER)


def kept_positions(output: Output, feeds: Mapping[str, Array]) -> Array | None:
    """Return the positions [N, T] that count, or None: all."""
    if output.mask not in feeds:
        return None
    ones = feeds[output.mask].astype(bool)
    return ~ones if output.mask_is_padding else ones


def scores_classes(values: Array) -> bool:
    """Say whether labels can be compared with an output: scores [samples, classes]."""
    return values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind == "f"


def labelled_classes(outputs: Mapping[str, Array]) -> NDArray[np.int64]:
    """Return the class [N] of each sample, by the first output that labels can be compared with."""
    for values in outputs.values():
        if scores_classes(values):
            return np.asarray(values.argmax(1), np.int64)
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in outputs.items())
    raise InputError(f"the labels cannot be compared with the outputs {shapes}", remedy="leave --eval out")


def differs(figures: Mapping[str, Any]) -> bool:
    """Say whether an output is too far from the float model's to be of use without a look at it.

    Decisions are judged beside the class that prevails, where there is one, and with one standard error to spare: a few
    samples prove little. Values are judged by SQNR and the mean cosine.
    """
    same, sqnr, cosine = figures["same"], figures["sqnr_db"], figures["cosine"]
    if figures["kind"] in (OutputKind.CLASSES, OutputKind.DECISIONS):
        judged = same if figures["foreground"] is None else figures["foreground"]
        return judged is not None and judged + figures["standard_error"] < LEAST_SAME
    if figures["kind"] == OutputKind.WHOLE:
        return same is not None and same < LEAST_SAME
    return (sqnr is not None and sqnr < LEAST_SQNR) or (cosine is not None and cosine < LEAST_COSINE)
