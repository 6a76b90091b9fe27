"""Random data: for trying the tool on a model without samples. Its accuracy means nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import NOT_STACKED, Arrays, Indices, InputInfo, fixed_batch, stackable
from qcompile.errors import InputError

DYNAMIC_SIZE = 64  # a multiple of 32, as detectors and segmenters with five strides of 2 need


def random_dataset(inputs: Sequence[InputInfo], count: int, seed: int) -> Dataset:
    """Return `count` random samples, made when they are read (rounded up to what the model takes at a time).

    Floats are standard normal, integers and bools 0 or 1 (valid as token, mask and index alike), uint8 0 to 255.
    Every dynamic dimension is 64, but 1 where it is the first of an input: it counts samples.
    """
    if silent := [info.name for info in inputs if not info.ranked]:
        raise InputError(f"the model's input {silent[0]!r} has no shape: no random data fits", remedy="give data")
    stacked = stackable(inputs)
    shapes = {info.name: random_shape(info, inputs, stacked) for info in inputs}

    read = NoiseReader(inputs, shapes, seed)
    if not stacked:
        return Dataset.of_feeds("random data", read, count, NOT_STACKED)
    step = fixed_batch(inputs) or 1
    return Dataset.over("random data", read, -(-count // step) * step, fixed_batch(inputs))


@dataclass(frozen=True, eq=False)
class NoiseReader:
    """A reader that makes one random sample, or feed, after the other."""

    inputs: Sequence[InputInfo]
    shapes: Mapping[str, Sequence[int]]
    seed: int

    def __call__(self, numbers: Indices, batch: int) -> Iterator[Arrays]:
        """Yield the samples of these numbers."""
        for number in numbers:
            generator = np.random.default_rng([self.seed, int(number)])
            yield {info.name: random_array(info, self.shapes[info.name], generator) for info in self.inputs}


def random_shape(info: InputInfo, inputs: Sequence[InputInfo], stacked: bool) -> list[int]:
    """Return the shape of one sample of an input, or of one feed."""
    counts = {other.shape[0] for other in inputs if other.shape}
    shape = [dim if isinstance(dim, int) else 1 if dim and dim in counts else DYNAMIC_SIZE for dim in info.shape]
    return [1, *shape[1:]] if shape and (stacked or not isinstance(info.shape[0], int)) else shape


def random_array(info: InputInfo, shape: Sequence[int], generator: np.random.Generator) -> NDArray[Any]:
    """Return random values of `shape` for one input."""
    if info.dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape, np.float32)).astype(info.dtype)
    return np.asarray(generator.integers(0, 256 if info.dtype == np.uint8 else 2, shape)).astype(info.dtype)
