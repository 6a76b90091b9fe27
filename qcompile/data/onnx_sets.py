"""ONNX test data: folders test_data_set_* with one feed each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qcompile.data.dataset import Dataset
from qcompile.data.feeds import Feed, feed_dataset
from qcompile.data.inputs import InputInfo
from qcompile.data.intake import Intake
from qcompile.errors import InputError
from qcompile.files import read_bytes


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
