"""From what a user names to a Dataset: files, folders, functions and arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.arrays import array_dataset, load_file
from qcompile.data.dataset import Dataset
from qcompile.data.feeds import Feeds
from qcompile.data.functions import NamedFunction, function_dataset, iterable_dataset
from qcompile.data.images import ImageInput, ImageReader, check_images, find_images
from qcompile.data.inputs import NOT_STACKED, Indices, InputInfo, as_array, fixed_batch, stackable, with_ranks
from qcompile.data.intake import Intake
from qcompile.data.labels import classes_of, places_of_labels
from qcompile.data.onnx_sets import find_test_data, test_data_dataset
from qcompile.data.preprocess import parse_preprocess
from qcompile.errors import InputError
from qcompile.files import kind_of_place

Source = str | Path | Mapping[str, NDArray[Any]] | NDArray[Any] | Dataset | Feeds | Iterable[Any]
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
CHECKED_ROWS = 64
FORMS = "give an .npz or .npy file, a folder of images or of test_data_set_*, or module:function"


def open_dataset(
    source: Source,
    inputs: Sequence[InputInfo],
    preprocess: str | None,
    samples: int | None = None,
    seed: int = 0,
    *,
    alone: str = "",
    labelled: bool = False,
) -> Dataset:
    """Open samples for a model, and check all that can be checked before the model runs.

    `source` is
    - an .npz or mapping with one array per input under its name; where there is one array for one input, an .npy, an
      array, or any name will do. uint8 arrays for a float input are images, NHWC or NCHW, and pass `preprocess`;
      `labels` [N] are kept. The .npy is memory-mapped, the .npz is held once as it is stored;
    - a folder of images, read recursively in the order of their names and decoded batch by batch;
    - a folder of ONNX test data (test_data_set_*/input_*.pb);
    - `module:function`, or a function, that yields {input name: array}, one dict per batch; or in Python a list, a
      generator or a data loader of such dicts, of arrays, or of pairs of an array and labels.

    `samples` keeps that many: drawn at random with `seed` (Dataset.sample), of a function the first ones. Where samples
    cannot be stacked along axis 0 of every input, or `alone` says why not, each is all that the model takes in one run.
    Everything wrong with the data is an InputError.
    """
    if isinstance(source, Dataset):
        return limited(source.one_by_one(alone) if alone else source, samples, seed)
    intake = Intake(inputs, parse_preprocess(preprocess) if preprocess else None, place(source), alone, labelled)
    if isinstance(source, str | Path):
        return open_place(str(source), intake, samples, seed)
    if isinstance(source, Mapping):
        return open_arrays(source, intake, samples, seed)
    if hasattr(source, "__array__"):
        return open_arrays({"array": source}, intake, samples, seed)
    if callable(source):
        return function_dataset(source, intake, samples)
    if not isinstance(source, bytes) and (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        return iterable_dataset(source, intake, samples)
    raise InputError(f"cannot read data from {type(source).__name__}", remedy=FORMS)


def open_evaluation(source: Source, inputs: Sequence[InputInfo], preprocess: str | None, *, alone: str = "") -> Dataset:
    """Open samples with labels, all of them: as `open_dataset`, but `labels` are never None.

    Arrays bring theirs under the name `labels`, data loaders behind the inputs. A folder of images has labels.csv (file
    name, class number) in it or beside it, or the source is the text `folder,labels.csv`, or every class has a folder.
    """
    if isinstance(source, str | Path):
        folder, table = split_labels(str(source))
        if kind_of_place(folder, "evaluation data") == "folder" and not find_test_data(folder):
            intake = Intake(inputs, parse_preprocess(preprocess) if preprocess else None, str(folder), alone)
            return open_images(folder, intake, None, 0, lambda files: classes_of(files, folder, table))
    dataset = open_dataset(source, inputs, preprocess, alone=alone, labelled=True)
    if dataset.labels is None:
        raise InputError(
            "the evaluation data has no labels",
            where=dataset.source,
            remedy="add an array `labels` [N] of class numbers to the .npz, or give a folder of images and labels.csv",
        )
    return dataset


def open_place(text: str, intake: Intake, samples: int | None, seed: int) -> Dataset:
    """Open a path or `module:function`."""
    path = Path(text)
    kind = kind_of_place(path, "data") if text else ""
    if kind == "folder":
        if folders := find_test_data(path):
            return limited(test_data_dataset(folders, intake), samples, seed)
        return open_images(path, intake, samples, seed)
    if kind == "file":
        if path.suffix.lower() not in (".npz", ".npy"):
            raise InputError(f"cannot read data from a {path.suffix or 'nameless'} file", where=text, remedy=FORMS)
        return open_arrays(load_file(path, intake), intake, samples, seed)
    if FUNCTION.fullmatch(text):
        return function_dataset(NamedFunction(text), intake, samples)
    raise InputError("the data does not exist", where=text, remedy=FORMS)


def open_arrays(arrays: Mapping[str, Any], intake: Intake, samples: int | None, seed: int) -> Dataset:
    """Open arrays, or what is like them; where they are not images, every value is looked at once."""
    arrays = {name: as_array(array, intake.where) for name, array in arrays.items()}
    dataset = limited(array_dataset(arrays, intake), samples, seed)
    if any(array.dtype.kind == "f" for array in arrays.values()):
        for _ in dataset.batches(CHECKED_ROWS):
            pass
    return dataset


def open_images(
    folder: Path,
    intake: Intake,
    samples: int | None,
    seed: int,
    label: Callable[[Sequence[Path]], Indices] | None = None,
) -> Dataset:
    """Open a folder of images, `label` gives their classes; the head of every file is looked at once."""
    if len(intake.inputs) != 1:
        raise InputError(
            f"the model has {len(intake.inputs)} inputs, a folder of images feeds one",
            where=intake.where,
            remedy="give an .npz with one array per input, or module:function",
        )
    files = find_images(folder)
    intake = replace(intake, inputs=with_ranks(intake.inputs, {intake.inputs[0].name: 4}))
    target = ImageInput.of(intake.inputs[0], intake.preprocess, intake.where)
    classes = label(files) if label else None
    alone = intake.alone or ("" if stackable(intake.inputs) else NOT_STACKED)
    dataset = Dataset.over(intake.where, ImageReader(files, target), len(files), fixed_batch(intake.inputs), classes)
    dataset = limited(dataset.one_by_one(alone) if alone else dataset, samples, seed)
    check_images([files[number] for number in dataset.numbers], target)
    return dataset


def limited(dataset: Dataset, samples: int | None, seed: int) -> Dataset:
    """Return `samples` samples of a dataset, or all if that is None."""
    return dataset if samples is None else dataset.sample(samples, seed)


def split_labels(text: str) -> tuple[Path, Path | None]:
    """Split `folder,labels.csv`: the table is looked for as written, then as seen from the folder."""
    folder, comma, table = text.rpartition(",")
    if not comma or not table.lower().endswith(".csv"):
        return Path(text), None
    inside = Path(folder) / table
    return Path(folder), inside if inside.is_file() and not Path(table).is_file() else Path(table)


def files_behind(text: str) -> list[Path]:
    """Return the files that samples of that name, and their labels, are read from: no output may take their place."""
    path, module = Path(text), Path(*text.partition(":")[0].split("."))
    if FUNCTION.fullmatch(text) and not path.exists():
        return [module.with_suffix(".py"), module / "__init__.py"]
    if not path.is_dir():
        return [path]
    if folders := find_test_data(path):
        return [file for folder in folders for file in folder.glob("*.pb")]
    with suppress(InputError):  # whoever reads them says that there are none
        return [*find_images(path), *places_of_labels(path)]
    return []


def place(source: Any) -> str:
    """Return a source as messages name it."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Mapping | np.ndarray):
        return "data given as arrays"
    name = getattr(source, "__qualname__", "")
    return f"function {name}" if name else f"data given as {type(source).__name__}"
