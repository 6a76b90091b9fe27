"""Sources of whole feeds, each {input name: array} of one or several samples: ONNX test data and Python functions."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import Arrays, Indices, InputInfo, fixed_batch
from qcompile.data.intake import Intake
from qcompile.errors import InputError, nearest

Feeds = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]


def find_test_data(folder: Path) -> list[Path]:
    """Return the test_data_set_* folders in a folder, by number; or the folder itself if it is one."""
    if (folder / "input_0.pb").is_file():
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
        try:
            tensor = onnx.load_tensor(str(path))
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

    def feeds() -> Iterator[Mapping[str, NDArray[Any]]]:
        return (read_test_data(folder, intake.inputs) for folder in folders)

    return feed_dataset(feeds, intake, None)


def function_dataset(function: Feeds, intake: Intake, samples: int | None) -> Dataset:
    """Return the samples that `function()` yields as dicts of arrays, each dict a batch; the first `samples`, if given.

    It is called without arguments for every pass over the data, has to give the same each time, and has to end unless
    `samples` is given.
    """

    def feeds() -> Iterator[Mapping[str, NDArray[Any]]]:
        try:
            for feed in function():
                yield as_feed(feed, intake.where)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the data function failed: {type(error).__name__}: {error}", where=intake.where
            ) from error

    dataset = feed_dataset(feeds, intake, samples)
    one, other = (next(dataset.batches(1)) for _ in range(2))
    if any(not np.array_equal(one[name], other[name]) for name in one):
        raise InputError(
            "the data function gives other data on the second call",
            where=intake.where,
            remedy="seed its random generator inside the function",
        )
    return dataset


def as_feed(feed: Any, where: str) -> Mapping[str, NDArray[Any]]:
    """Return what a function yielded if it is {name: array}, else raise InputError."""
    if not isinstance(feed, Mapping):
        raise InputError(
            f"the data function gives {type(feed).__name__}",
            where=where,
            remedy="yield {input name: array}, one dict per batch",
        )
    return {name: np.asarray(array) for name, array in feed.items()}


def feed_dataset(feeds: Feeds, intake: Intake, samples: int | None) -> Dataset:
    """Return the samples of feeds as a stream; all (or the first `samples`) are read once, checked and counted."""
    rows = 0
    for piece in accepted(feeds, intake):
        rows += rows_of(piece)
        if samples is not None and rows >= samples:
            break
    if rows == 0:
        raise InputError("the data is empty: it has no sample", where=intake.where, remedy="give at least one sample")
    return Dataset.over(
        intake.where, feed_reader(feeds, intake), min(rows, samples or rows), fixed_batch(intake.inputs)
    )


def accepted(feeds: Feeds, intake: Intake) -> Iterator[Arrays]:
    """Yield the feeds as the model takes them."""
    first = 0
    for feed in feeds():
        counts = {len(array) for array in feed.values() if array.ndim}
        piece = intake.accept(feed, np.arange(first, first + max(counts, default=0)))
        first += rows_of(piece)
        yield piece


def rows_of(piece: Arrays) -> int:
    """Return the number of samples in a piece."""
    return len(next(iter(piece.values())))


def feed_reader(feeds: Feeds, intake: Intake) -> Callable[[Indices, int], Iterator[Arrays]]:
    """Return a reader that runs through the feeds up to the last sample it needs."""

    def read(numbers: Indices, batch: int) -> Iterator[Arrays]:
        first = taken = 0
        for piece in accepted(feeds, intake):
            end = first + rows_of(piece)
            chosen = numbers[taken : np.searchsorted(numbers, end)] - first
            if len(chosen):
                yield {name: array[chosen] for name, array in piece.items()}
            first, taken = end, taken + len(chosen)
            if taken == len(numbers):
                return
        raise InputError(
            f"the data gave {taken} of {len(numbers)} samples when it was read again",
            where=intake.where,
            remedy="make a new iterator on every call of the data function",
        )

    return read


def load_function(text: str) -> Feeds:
    """Import `module:function`, the current folder first on the import path."""
    name, _, attribute = text.partition(":")
    with folder_on_path(Path.cwd()):
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"cannot import {name!r}: {type(error).__name__}: {error}", where=text, remedy="give module:function"
            ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"module {name!r} has no function {attribute!r}", where=text, remedy=nearest(attribute, known))
    found: Feeds = function
    return found


@contextmanager
def folder_on_path(folder: Path) -> Iterator[None]:
    """Let imports look into `folder` first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
