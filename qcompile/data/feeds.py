"""Sources of feeds, each of one or several samples: ONNX test data, Python functions, and what can be iterated."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import (
    NOT_STACKED,
    Arrays,
    Indices,
    InputInfo,
    RaggedError,
    as_array,
    bind,
    fixed_batch,
    stackable,
    with_ranks,
)
from qcompile.data.intake import Intake
from qcompile.errors import InputError, nearest
from qcompile.files import here, read_bytes, staying

Feed = Mapping[str, NDArray[Any]]
Feeds = Callable[[], Iterable[Feed]]


def find_test_data(folder: Path) -> list[Path]:
    """Return the test_data_set_* folders in a folder, by number; or the folder itself if it is one."""
    if (folder / "input_0.pb").exists():
        return [folder]
    return sorted((path for path in folder.glob("test_data_set_*") if path.is_dir()), key=last_number)


def last_number(path: Path) -> tuple[int, str]:
    """Return the number that a path's stem ends in, so that 10 comes after 9."""
    digits = re.search(r"\d+$", path.stem)
    return (int(digits[0]) if digits else -1, path.name)


def read_test_data(folder: Path, inputs: Sequence[InputInfo]) -> dict[str, NDArray[Any]]:
    """Return the feed in input_0.pb, input_1.pb ...: by the tensor's name if an input has it, else by its number."""
    feed = {}
    for number, path in enumerate(sorted(folder.glob("input_*.pb"), key=last_number)):
        data = read_bytes(path, "tensor")
        try:
            tensor = onnx.load_tensor_from_string(data)
            array = numpy_helper.to_array(tensor)
        except Exception as error:  # protobuf, onnx and numpy each raise their own
            raise InputError(
                f"cannot read the tensor: {error}", where=str(path), remedy="write it with onnx.save_tensor"
            ) from error
        known = {info.name for info in inputs}
        by_number = inputs[number].name if number < len(inputs) else path.stem
        feed[tensor.name if tensor.name in known else by_number] = array
    return feed


def test_data_dataset(folders: Sequence[Path], intake: Intake) -> Dataset:
    """Return the samples of test_data_set_* folders, one folder in memory at a time."""
    return feed_dataset(TestData(folders, intake.inputs), intake, None)


@dataclass(frozen=True, eq=False)
class TestData:
    """The feeds in test_data_set_* folders."""

    __test__ = False  # pytest takes it for tests
    folders: Sequence[Path]
    inputs: Sequence[InputInfo]

    def __call__(self) -> Iterator[Feed]:
        """Yield one feed for each folder."""
        return (read_test_data(folder, self.inputs) for folder in self.folders)


def function_dataset(function: Feeds, intake: Intake, samples: int | None) -> Dataset:
    """Return the samples that `function()` yields, each item a batch (`as_feed`); the first `samples`, if given.

    A mapping or an array that it returns is one batch. It is called without arguments for every pass over the data, has
    to give the same each time, and has to end unless `samples` is given.
    """
    dataset = feed_dataset(FunctionFeeds(function, intake), intake, samples)
    one, other = (next(dataset.batches(1)) for _ in range(2))
    if any(not np.array_equal(one[name], other[name]) for name in one):
        raise InputError(
            "the data gives other samples when it is read again",
            where=intake.where,
            remedy="seed the random generator inside the function; give a data loader shuffle=False",
        )
    return dataset


def many(found: Any, where: str) -> Iterable[Any]:
    """Return what can be iterated; InputError where a data function returned something else."""
    if isinstance(found, str | bytes) or not (hasattr(found, "__iter__") or hasattr(found, "__getitem__")):
        raise not_data(found, "returns", where)
    items: Iterable[Any] = found
    return items


@contextmanager
def blaming_function(where: str) -> Iterator[None]:
    """Turn whatever the user's code raises into an InputError; an interruption stays one.

    As its module is, what it imports while it runs is looked for in our folder first.
    """
    try:
        with folder_on_path(here()):
            yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        what = f"the data function failed: {type(error).__name__}: {error}"
        raise InputError(what, where=where, remedy="correct what it does") from error


@dataclass
class Whereabouts:
    """The folder that the user's code is in: it may go to another one, and we stay in ours."""

    folder: Path

    @contextmanager
    def visited(self) -> Iterator[None]:
        """Be there inside the block."""
        with staying():
            with suppress(OSError):  # it is gone
                os.chdir(self.folder)
            try:
                yield
            finally:
                self.folder = here()


def not_data(value: Any, gives: str, where: str) -> InputError:
    """Return the error for something that is no feed."""
    remedy = "give {input name: array}, one dict per batch"
    return InputError(f"the data {gives} {type(value).__name__}", where=where, remedy=remedy)


def iterable_dataset(items: Iterable[Any], intake: Intake, samples: int | None) -> Dataset:
    """Return the samples of a list, a DataLoader or a generator, each item a batch; the first `samples`, if given.

    What can be iterated only once is read at once and kept.
    """
    if isinstance(items, Iterator):
        items = list(islice(items, samples))  # each has at least one
    return function_dataset(Items(items), intake, samples)


@dataclass(frozen=True, eq=False)
class FunctionFeeds:
    """The feeds that a function of the user gives."""

    function: Callable[[], Any]
    intake: Intake

    def __call__(self) -> Iterator[Feed]:
        """Call the function and yield what it gives; its failure is an InputError."""
        where, function = self.intake.where, self.function
        theirs = Whereabouts(function.folder if isinstance(function, NamedFunction) else here())
        with blaming_function(where), theirs.visited():
            found = function()
            items = iter([found] if isinstance(found, Mapping) or hasattr(found, "__array__") else many(found, where))
        while True:
            with blaming_function(where), theirs.visited():
                if (item := next(items, items)) is items:
                    return
                feed = as_feed(item, self.intake)
            yield feed  # outside: what ends this generator comes in here


@dataclass(frozen=True, eq=False)
class Items:
    """A function that gives the same items again and again."""

    items: Iterable[Any]

    def __call__(self) -> Iterable[Any]:
        """Return the items."""
        return self.items


def as_feed(item: Any, intake: Intake) -> Feed:
    """Return an item of a Python source as {name: array}.

    An item is such a mapping; an array for the model's one input; or a sequence of arrays in the order of the inputs,
    with labels behind them or not, as data loaders give it. Tensors of other libraries are arrays.
    """
    names = [info.name for info in intake.inputs]
    if isinstance(item, tuple | list) and len(item) in (len(names), len(names) + 1):
        item = dict(zip([*names, "labels"], item))
    elif len(names) == 1 and hasattr(item, "__array__"):
        item = {names[0]: item}
    if not isinstance(item, Mapping):
        raise not_data(item, "gives", intake.where)
    return {name: as_array(value, intake.where) for name, value in item.items()}


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


@dataclass(frozen=True)
class NamedFunction:
    """The function that `module:function` names, in whatever process; it has to be there now.

    `folder` is the one to call it in: where reading its module has gone.
    """

    text: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        theirs = Whereabouts(here())
        with theirs.visited():
            load_function(self.text)
        object.__setattr__(self, "folder", theirs.folder)

    def __call__(self) -> Any:
        """Call it."""
        return load_function(self.text)()


def load_function(text: str) -> Feeds:
    """Import `module:function`, the current folder first on the import path."""
    name, _, attribute = text.partition(":")
    with folder_on_path(here()):
        try:
            module = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            remedy = "correct it, or go to the folder that it is in"
            if name.endswith(".py"):
                remedy = f"give {name.removesuffix('.py')}:{attribute}"
            what = f"cannot import {name!r}: {type(error).__name__}: {error}"
            raise InputError(what, where=text, remedy=remedy) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        remedy = nearest(attribute, known) if known else f"write def {attribute}(): ..."
        where = ", ".join(filter(None, [text, getattr(module, "__file__", None)]))
        raise InputError(f"module {name!r} has no function {attribute!r}", where=where, remedy=remedy)
    found: Feeds = function
    return found


@contextmanager
def folder_on_path(folder: Path) -> Iterator[None]:
    """Let imports look into `folder` first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code took it away
            sys.path.remove(str(folder))
