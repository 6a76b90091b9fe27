"""Arrays that are held or memory-mapped as a whole: .npz, .npy, a mapping."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import Arrays, Indices, bind, common_rows, fixed_batch
from qcompile.data.intake import Intake, is_image
from qcompile.errors import InputError


def load_file(path: Path, intake: Intake) -> Mapping[str, NDArray[Any]]:
    """Read the arrays in an .npz that are needed (held once, as stored), or map an .npy into memory."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"array": loaded}
        with loaded as archive:
            needed = {*bind(archive.files, intake.inputs, intake.where).values(), "labels"}
            return {name: archive[name] for name in archive.files if name in needed}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read the arrays: {error}", where=str(path), remedy="write the file with numpy.savez"
        ) from error


def array_dataset(arrays: Mapping[str, NDArray[Any]], intake: Intake) -> Dataset:
    """Return the samples along axis 0 of arrays, with `labels` if there are any. Values are not checked yet."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    bound = bind(arrays, intake.inputs, intake.where)
    count = common_rows({name: arrays[source] for name, source in bound.items()}, intake.where)
    intake.accept({name: arrays[source][:1] for name, source in bound.items()})  # names, shapes and dtypes
    labels = (
        None
        if "labels" not in arrays or "labels" in bound.values()
        else check_labels(arrays["labels"], count, intake.where)
    )
    source = intake.where
    if intake.preprocess and not any(is_image(arrays[bound[info.name]], info) for info in intake.inputs):
        source += " (ready input: no preprocessing applied)"
    return Dataset.over(
        source,
        array_reader({name: arrays[bound[name]] for name in bound}, intake),
        count,
        fixed_batch(intake.inputs),
        labels,
    )


def array_reader(arrays: Mapping[str, NDArray[Any]], intake: Intake) -> Callable[[Indices, int], Iterator[Arrays]]:
    """Return a reader that converts `batch` rows at a time."""

    def read(numbers: Indices, batch: int) -> Iterator[Arrays]:
        for start in range(0, len(numbers), batch):
            rows = numbers[start : start + batch]
            run = len(rows) == rows[-1] - rows[0] + 1
            places = slice(rows[0], rows[-1] + 1) if run else rows  # a slice is a view, indices are a copy
            yield intake.accept({name: array[places] for name, array in arrays.items()}, rows)

    return read


def check_labels(labels: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Return labels [N] or [N, 1] as int64 [N]; other shapes, floats and negative numbers are InputErrors."""
    if labels.size != count or labels.shape not in ((count,), (count, 1)):
        raise InputError(
            f"labels of shape {list(labels.shape)} do not fit {count} samples",
            where=where,
            remedy="give one class number per sample",
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError("the labels are not class numbers", where=where, remedy="give integers from 0 on")
    return labels.reshape(count).astype(np.int64)
