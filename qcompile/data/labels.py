"""The class of every image in a folder: from labels.csv, or from the folders of the classes."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError
from qcompile.files import read_bytes

DIGITS = 9  # of a class number


def classes_of(files: Sequence[Path], folder: Path, table: Path | None) -> NDArray[np.int64]:
    """Return the class [N] of every image: from `table`, from labels.csv in or beside `folder`, or by its folder."""
    if table is None:
        table = next((path for path in places_of_labels(folder) if path.is_file()), None)
    return folder_classes(files, folder) if table is None else labels_of(files, folder, table)


def places_of_labels(folder: Path) -> tuple[Path, Path]:
    """Return where labels.csv is looked for: in `folder` and beside it."""
    return folder / "labels.csv", folder.resolve().parent / "labels.csv"


def folder_classes(files: Sequence[Path], folder: Path) -> NDArray[np.int64]:
    """Return the class [N] of every image in CLASS/...: the place of CLASS among the folders, sorted by name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    inside = [file.relative_to(folder).parts for file in files]
    if len(names) < 2 or any(len(parts) < 2 for parts in inside):
        raise InputError(
            "the images have no labels",
            where=str(folder),
            remedy="put a labels.csv (file name, class number) into the folder or beside it, give folder,labels.csv, "
            "or put each class into a folder of its own",
        )
    return np.array([names.index(parts[0]) for parts in inside], np.int64)


def read_labels(path: Path) -> dict[str, int]:
    """Read {file name as written: class number}; a first row whose second column is no number is a heading."""
    labels: dict[str, int] = {}
    data = read_bytes(path, "labels")
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        rows = [(number, row) for number, row in enumerate(csv.reader(text), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        what, remedy = f"cannot read the labels: {error}", "write it as text in UTF-8"
        raise InputError(what, where=str(path), remedy=remedy) from error
    for place, (number, row) in enumerate(rows):
        if len(row) > 1 and row[1].strip().isdecimal() and len(row[1].strip()) <= DIGITS:
            name = PurePosixPath(row[0].strip().replace("\\", "/")).as_posix()
            if labels.setdefault(name, int(row[1])) != int(row[1]):
                what = f"{name} has two classes, {labels[name]} and {int(row[1])}"
                raise InputError(what, where=f"{path}, line {number}", remedy="leave one of the rows out")
        elif place > 0 or len(row) < 2:
            raise InputError(
                "a row is not: file name, class number", where=f"{path}, line {number}", remedy="correct the row"
            )
    return labels


def labels_of(files: Sequence[Path], folder: Path, path: Path) -> NDArray[np.int64]:
    """Return the class [N] of every file.

    A row of the table names a file as seen from the table, as seen from `folder`, or by its bare name where no other
    file has it.
    """
    table = read_labels(path)
    base, root = path.resolve().parent, folder.resolve()
    prefix = root.relative_to(base) if root.is_relative_to(base) else Path()
    found: list[int] = []
    times = Counter(file.name for file in files)
    for file in files:
        inside = file.relative_to(folder)
        names = ((prefix / inside).as_posix(), inside.as_posix(), *([file.name] if times[file.name] == 1 else []))
        label = next((table[name] for name in names if name in table), None)
        if label is None:
            raise InputError(
                f"the image {file.name} has no label", where=str(path), remedy="add a row for it, or remove the image"
            )
        found.append(label)
    return np.array(found, np.int64)
