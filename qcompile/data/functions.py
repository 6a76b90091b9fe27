"""Samples from Python: functions of the user, named or given, and what can be iterated."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.data.dataset import Dataset
from qcompile.data.feeds import Feed, Feeds, feed_dataset
from qcompile.data.inputs import as_array
from qcompile.data.intake import Intake
from qcompile.errors import InputError, nearest
from qcompile.files import here, staying


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
