"""Feeds, each of one or several samples, as a stream: cut into rows where every feed is made of such, else whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import (
    NOT_STACKED,
    Arrays,
    Indices,
    RaggedError,
    bind,
    fixed_batch,
    stackable,
    with_ranks,
)
from qcompile.data.intake import Intake
from qcompile.errors import InputError

Feed = Mapping[str, NDArray[Any]]
Feeds = Callable[[], Iterable[Feed]]


def feed_dataset(feeds: Feeds, intake: Intake, samples: int | None) -> Dataset:
    """Return the samples of feeds as a stream; all (or the first `samples`) are read once, checked and counted.

    A sample is a row of every array; where not every feed is made of such rows, it is a feed.
    """
    if not all(info.ranked for info in intake.inputs):
        first = next(iter(feeds()), {})
        ranks = {name: np.ndim(first[source]) for name, source in bind(first, intake.inputs, intake.where).items()}
        intake = replace(intake, inputs=with_ranks(intake.inputs, ranks))
    if not intake.alone and stackable(intake.inputs):
        try:
            return feed_rows(feeds, intake, samples)
        except RaggedError:
            pass
    return whole_feeds(feeds, replace(intake, alone=intake.alone or NOT_STACKED), samples)


def feed_rows(feeds: Feeds, intake: Intake, samples: int | None) -> Dataset:
    """Return the rows of feeds; RaggedError where a feed does not have as many in every array."""
    labels: list[NDArray[Any] | None] = []
    rows = 0
    for piece, given in accepted(feeds, intake):
        rows += rows_of(piece)
        labels.append(classes(given, rows_of(piece)))
        if samples is not None and rows >= samples:
            break
    count = min(rows, samples or rows)
    return Dataset.over(intake.where, FeedRows(feeds, intake), count, fixed_batch(intake.inputs), joined(labels, count))


def whole_feeds(feeds: Feeds, intake: Intake, samples: int | None) -> Dataset:
    """Return feeds, each as one sample."""
    labels: list[NDArray[Any] | None] = []
    for number, feed in enumerate(islice(feeds(), samples)):
        intake.accept(feed, np.array([number]))
        labels.append(classes(feed, 1))
    return Dataset.of_feeds(
        intake.where, WholeFeeds(feeds, intake), len(labels), intake.alone, joined(labels, len(labels))
    )


def accepted(feeds: Feeds, intake: Intake) -> Iterator[tuple[Arrays, Feed]]:
    """Yield the feeds as the model takes them, and as they came."""
    first = 0
    for feed in feeds():
        counts = {len(array) for array in feed.values() if array.ndim}
        piece = intake.accept(feed, np.arange(first, first + max(counts, default=0)))
        first += rows_of(piece)
        yield piece, feed


def rows_of(piece: Arrays) -> int:
    """Return the number of samples in a piece."""
    return len(next(iter(piece.values())))


def classes(feed: Feed, samples: int) -> NDArray[Any] | None:
    """Return the labels that come with a feed where they are class numbers, one for each sample; else None."""
    labels = feed.get("labels", np.empty(0))
    fits = labels.dtype.kind in "iu" and labels.size == samples and labels.min(initial=0) >= 0
    return labels.reshape(-1).astype(np.int64) if fits else None


def joined(labels: Sequence[NDArray[Any] | None], count: int) -> NDArray[Any] | None:
    """Return the labels of the first `count` samples, or None unless every feed has some."""
    found = [part for part in labels if part is not None]
    return np.concatenate(found)[:count] if found and len(found) == len(labels) else None


@dataclass(frozen=True, eq=False)
class WholeFeeds:
    """A reader for which every feed is a sample."""

    feeds: Feeds
    intake: Intake

    def __call__(self, numbers: Indices, batch: int) -> Iterator[Arrays]:
        """Run through the feeds up to the last that is wanted."""
        taken = 0
        for number, feed in enumerate(self.feeds()):
            if number == numbers[taken]:
                yield self.intake.accept(feed, np.array([number]))
                taken += 1
            if taken == len(numbers):
                return
        raise too_few(taken, len(numbers), self.intake)


@dataclass(frozen=True, eq=False)
class FeedRows:
    """A reader for which every row of a feed is a sample."""

    feeds: Feeds
    intake: Intake

    def __call__(self, numbers: Indices, batch: int) -> Iterator[Arrays]:
        """Run through the feeds up to the last sample that is wanted."""
        first = taken = 0
        for piece, _ in accepted(self.feeds, self.intake):
            end = first + rows_of(piece)
            chosen = numbers[taken : np.searchsorted(numbers, end)] - first
            if len(chosen):
                yield {name: array[chosen] for name, array in piece.items()}
            first, taken = end, taken + len(chosen)
            if taken == len(numbers):
                return
        raise too_few(taken, len(numbers), self.intake)


def too_few(found: int, wanted: int, intake: Intake) -> InputError:
    """Return the error for data that ended early when it was read again."""
    return InputError(
        f"the data gave {found} of {wanted} samples when it was read again",
        where=intake.where,
        remedy="make a new iterator on every call of the data function",
    )
