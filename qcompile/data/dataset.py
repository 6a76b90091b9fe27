"""Dataset: samples as a stream of batches that can be read again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from qcompile.data.inputs import TEXT, Arrays, Indices, type_name
from qcompile.errors import InputError

Reader = Callable[[Indices, int], Iterator[Arrays]]
"""Yields the samples of ascending numbers, in order, in pieces of any number of rows (best: the second argument)."""


def new_origin() -> str:
    """Return what no other source of samples is known by, in any process."""
    return uuid4().hex


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples for a model with one or several named inputs: lazy, and the same arrays on every iteration.

    `source` says where they come from, for messages. `numbers` [count] are the samples' numbers in the source,
    ascending; `labels` [count] their classes, or None. `fixed_batch` is the batch that the model insists on, or None.
    Where `alone` says why, nothing is stacked: a sample is then a feed, all that the model takes in one run, whatever
    its axes mean; the reader yields feed after feed, and `fixed_batch` is 1.
    Parts of one source have the same `origin`; in another process too, where a dataset can go if its reader can.
    """

    source: str
    read: Reader
    numbers: Indices
    labels: NDArray[np.int64] | None = None
    fixed_batch: int | None = None
    alone: str = ""
    origin: str = field(default_factory=new_origin)

    @classmethod
    def over(
        cls, source: str, read: Reader, count: int, fixed_batch: int | None, labels: Indices | None = None
    ) -> Dataset:
        """Return samples 0 .. `count` - 1 of a reader; the last that do not fill a fixed batch are left out."""
        if count == 0:
            raise InputError("the data is empty: it has no sample", where=source, remedy="give at least one sample")
        step = fixed_batch or 1
        if count < step:
            raise InputError(
                f"the data has {count} samples, the model takes {step} at a time",
                where=source,
                remedy="give more data, or export the model with a dynamic batch",
            )
        if rest := count % step:
            source = f"{source} (without the last {rest}: the model takes {step} at a time)"
        numbers = np.arange(count - rest, dtype=np.int64)
        return cls(source, read, numbers, None if labels is None else labels[numbers], fixed_batch)

    @classmethod
    def of_feeds(cls, source: str, read: Reader, count: int, alone: str, labels: Indices | None = None) -> Dataset:
        """Return feeds 0 .. `count` - 1 of a reader that yields them one by one."""
        return replace(cls.over(source, read, count, 1, labels), alone=alone)

    def one_by_one(self, alone: str) -> Dataset:
        """Return the same samples, each as a feed of its own: for a model that does not take several at a time."""
        return self if self.alone else replace(self, read=OneByOne(self.read), fixed_batch=1, alone=alone)

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.numbers)

    def samples_in(self, feeds: Arrays) -> int:
        """Return the number of samples in what `batches` yielded."""
        return 1 if self.alone else len(next(iter(feeds.values())))

    def first_of(self, feeds: Arrays) -> Arrays:
        """Return the first sample of what `batches` yielded, or as many as the model insists on."""
        return feeds if self.alone else {name: array[: self.fixed_batch or 1] for name, array in feeds.items()}

    def batches(self, batch: int) -> Iterator[Arrays]:
        """Yield {input name: array [n, ...]}, each a new array that the caller may change, samples in order.

        n is `batch`, or what the model insists on; fewer in the last batch and before a sample of another shape, since
        only samples of equal shape are stacked. Whole feeds come one by one.
        """
        if self.alone:
            return self.read(self.numbers, 1)
        size = self.fixed_batch or batch
        return rebatch(self.read(self.numbers, size), size)

    def take(self, start: int, stop: int) -> Dataset:
        """Return samples `start` .. `stop` - 1, without reading any.

        Both ends are rounded down to a multiple of what the model insists on, so that pieces still make up the whole.
        """
        step = self.fixed_batch or 1
        return self.select(slice(start // step * step, stop // step * step))

    def sample(self, count: int, seed: int) -> Dataset:
        """Return `count` samples drawn at random without replacement, in their old order; all, if there are no more.

        Random, not the first ones: folders and arrays are often sorted by class.
        """
        if count >= self.count:
            return self
        step = self.fixed_batch or 1
        drawn = np.random.default_rng(seed).choice(self.count, max(count // step, 1) * step, replace=False)
        return self.select(np.sort(drawn))

    def spread(self, count: int) -> Dataset:
        """Return `count` samples evenly from all, which may be sorted by class: whole batches, at least one."""
        step = self.fixed_batch or 1
        pieces = self.count // step
        chosen = np.zeros(pieces, bool)
        chosen[np.linspace(0, pieces - 1, min(max(count // step, 1), pieces)).astype(int)] = True
        return self.select(np.flatnonzero(np.repeat(chosen, step)))

    def joined(self, other: Dataset | None) -> Dataset:
        """Return the samples of this and of another part of the same source, in its order; those alone without one."""
        if other is None or other.origin != self.origin:
            return self
        return replace(self, numbers=np.union1d(self.numbers, other.numbers), labels=None)

    def select(self, places: slice | Indices) -> Dataset:
        """Return the samples at ascending `places`, without reading any."""
        labels = None if self.labels is None else self.labels[places]
        return replace(self, numbers=self.numbers[places], labels=labels)


@dataclass(frozen=True, eq=False)
class OneByOne:
    """A reader that yields one row at a time of another one."""

    read: Reader

    def __call__(self, numbers: Indices, batch: int) -> Iterator[Arrays]:
        """Yield the samples of these numbers."""
        return rebatch(self.read(numbers, 1), 1)


def rebatch(pieces: Iterable[Arrays], size: int) -> Iterator[Arrays]:
    """Cut and join pieces to `size` rows each, fewer only at the end and where the shape of the samples changes."""
    held: list[Arrays] = []
    room = size
    for piece in pieces:
        if held and sample_shapes(piece) != sample_shapes(held[0]):
            yield join(held)
            held, room = [], size
        start, rows = 0, len(next(iter(piece.values())))
        while start < rows:
            stop = min(start + room, rows)
            held.append({name: array[start:stop] for name, array in piece.items()})
            room -= stop - start
            start = stop
            if room == 0:
                yield join(held)
                held, room = [], size
    if held:
        yield join(held)


def sample_shapes(piece: Arrays) -> dict[str, tuple[int, ...]]:
    """Return the shape of one sample of every input."""
    return {name: array.shape[1:] for name, array in piece.items()}


def join(pieces: list[Arrays]) -> Arrays:
    """Return the rows of all pieces in one."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def first_batch_summary(batch: Arrays) -> list[str]:
    """Return one line per input with shape, range, mean and standard deviation: wrong preprocessing shows there."""
    return [f"{name}: {describe(array)}" for name, array in batch.items()]


def describe(array: NDArray[Any]) -> str:
    """Return shape, dtype and statistics of an array as text."""
    if not array.size or array.dtype.kind in TEXT:
        return f"{list(array.shape)} {type_name(array.dtype)}{'' if array.size else ', no values'}"
    mean, std = array.mean(dtype=np.float64), array.std(dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    return f"{list(array.shape)} {array.dtype}, range {low:.4g} .. {high:.4g}, mean {mean:.4g}, std {std:.4g}"
