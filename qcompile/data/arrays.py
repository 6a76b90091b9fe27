"""Arrays that are held or memory-mapped as a whole: .npz, .npy, a mapping."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import (
    NOT_STACKED,
    Arrays,
    Indices,
    InputInfo,
    bind,
    common_rows,
    fixed_batch,
    stackable,
    with_ranks,
)
from qcompile.data.intake import Intake, is_image
from qcompile.errors import InputError

NPY, ZIP = b"\x93NUMPY", b"PK"  # what such files begin with
REMEDY = "write the file with numpy.savez"
READY = "ready input: no preprocessing applied"  # in `source` of arrays that are no images


def load_file(path: Path, intake: Intake) -> Mapping[str, NDArray[Any]]:
    """Read the arrays in an .npz that are needed (held once, as stored), or map an .npy into memory."""
    try:
        with path.open("rb") as file:
            start = file.read(len(NPY))
        if not start.startswith((NPY, ZIP)):
            raise InputError("the file is neither .npy nor .npz inside", where=str(path), remedy=REMEDY)
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"array": loaded}
        with loaded as archive:
            needed = {*bind(archive.files, intake.inputs, intake.where).values(), "labels"}
            arrays = {name: archive[name] for name in archive.files if name in needed}
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and tokenize each raise their own
        told = isinstance(error, OSError | ValueError | EOFError | MemoryError | RuntimeError | BadZipFile | zlib.error)
        why = str(error) if told else "the file is damaged"
        raise InputError(f"cannot read the arrays: {why}", where=str(path), remedy=REMEDY) from error
    if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise InputError(f"the member {others[0]!r} is no array", where=str(path), remedy=REMEDY)
    return arrays


def array_dataset(arrays: Mapping[str, NDArray[Any]], intake: Intake) -> Dataset:
    """Return the samples along axis 0 of arrays, with `labels` if there are any. Values are not checked yet.

    Where axis 0 does not count samples in every input, the arrays hold one feed for each run of the model (`per_run`).
    """
    bound = bind(arrays, intake.inputs, intake.where)
    chosen = {info.name: arrays[bound[info.name]] for info in intake.inputs}
    labels = None if "labels" in bound.values() else arrays.get("labels")
    ranks = {name: array.ndim for name, array in chosen.items()}
    intake, source = replace(intake, inputs=with_ranks(intake.inputs, ranks)), intake.where
    if intake.preprocess and not any(is_image(chosen[info.name], info) for info in intake.inputs):
        source += f" ({READY})"
    if intake.alone or not are_stacked(chosen, intake.inputs):
        return feeds_of(chosen, labels, replace(intake, alone=intake.alone or NOT_STACKED), source)
    count = common_rows(chosen, intake.where)
    intake.accept({name: array[:1] for name, array in chosen.items()})  # names, shapes and dtypes
    classes = class_numbers(labels, count, intake)
    return Dataset.over(source, RowReader(chosen, intake), count, fixed_batch(intake.inputs), classes)


def are_stacked(arrays: Arrays, inputs: Sequence[InputInfo]) -> bool:
    """Say whether axis 0 counts samples in every array."""
    if not stackable(inputs) or len({array.shape[:1] for array in arrays.values()}) > 1:
        return False
    return not any(has_runs(arrays[info.name], info) for info in inputs)


def has_runs(array: NDArray[Any], info: InputInfo) -> bool:
    """Say whether an array has an axis in front of those of its input: it counts runs of the model."""
    return array.ndim == len(info.shape) + 1 and not is_image(array, info)


def feeds_of(arrays: Arrays, labels: NDArray[Any] | None, intake: Intake, source: str) -> Dataset:
    """Return the feeds in arrays, one for each run; an array that holds one feed only is fed in every run."""
    runs = {info.name: per_run(arrays[info.name], info, intake.where) for info in intake.inputs}
    count = common_rows({name: array for name, array in runs.items() if len(array) != 1} or runs, intake.where)

    read = RunReader(runs, intake)
    next(read(np.arange(1), 1))  # shapes and dtypes
    classes = class_numbers(labels, count, intake)
    return Dataset.of_feeds(source, read, count, intake.alone, classes)


def per_run(array: NDArray[Any], info: InputInfo, where: str) -> NDArray[Any]:
    """Return an array as [runs, the shape of the input]: it has such an axis, or the rows of all runs along axis 0.

    A run takes as many rows as the first dimension of the input says, one where it is dynamic.
    """
    if has_runs(array, info):
        return array
    if array.ndim == 0 or (info.shape[:1] == (0,) and not len(array)):
        return array[None]
    rows = max(info.shape[0], 1) if info.shape and isinstance(info.shape[0], int) else 1
    if len(array) % rows:
        raise InputError(
            f"the model's input {info.name!r} takes {rows} rows in a run, the data has {len(array)}",
            where=where,
            remedy="give as many for every run, or an array with one more axis in front that counts the runs",
        )
    return array.reshape(len(array) // rows, rows, *array.shape[1:])


@dataclass(frozen=True, eq=False)
class RunReader:
    """A reader of arrays [runs, ...] that yields one run after the other; an array of one run is fed in every run."""

    arrays: Arrays
    intake: Intake

    def __call__(self, numbers: Indices, batch: int) -> Iterator[Arrays]:
        """Yield the feeds of these numbers."""
        for number in numbers:
            feed = {name: array[number if len(array) > 1 else 0] for name, array in self.arrays.items()}
            yield self.intake.accept(feed, np.array([number]))


@dataclass(frozen=True, eq=False)
class RowReader:
    """A reader of arrays [samples, ...] that converts `batch` rows at a time."""

    arrays: Arrays
    intake: Intake

    def __call__(self, numbers: Indices, batch: int) -> Iterator[Arrays]:
        """Yield the rows of these numbers."""
        for start in range(0, len(numbers), batch):
            rows = numbers[start : start + batch]
            run = len(rows) == rows[-1] - rows[0] + 1
            places = slice(rows[0], rows[-1] + 1) if run else rows  # a slice is a view, indices are a copy
            yield self.intake.accept({name: array[places] for name, array in self.arrays.items()}, rows)


def class_numbers(labels: NDArray[Any] | None, count: int, intake: Intake) -> NDArray[np.int64] | None:
    """Return the classes [N] in an array, or None: there are none, or nobody asks for them and these are others."""
    if labels is None:
        return None
    try:
        return check_labels(labels, count, intake.where)
    except InputError:
        if intake.labelled:
            raise
        return None


def check_labels(labels: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Return labels [N] or [N, 1] as int64 [N]; other shapes, floats and negative numbers are InputErrors."""
    if labels.size != count or labels.shape not in ((count,), (count, 1)):
        raise InputError(
            f"labels of shape {list(labels.shape)} do not fit {count} samples",
            where=where,
            remedy="give one class number per sample",
        )
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise InputError("the labels are not class numbers", where=where, remedy="give integers from 0 on")
    return labels.reshape(count).astype(np.int64)
