"""Random data: for trying the tool on a model without samples. Its accuracy means nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import Arrays, Indices, InputInfo, fixed_batch

DYNAMIC_SIZE = 64  # a multiple of 32, as detectors and segmenters with five strides of 2 need


def random_dataset(inputs: Sequence[InputInfo], count: int, seed: int) -> Dataset:
    """Return `count` random samples, made when they are read (rounded up to what the model takes at a time).

    Floats are standard normal, integers and bools 0 or 1 (valid as token, mask and index alike), uint8 0 to 255.
    Every dynamic dimension but the first is 64.
    """
    step = fixed_batch(inputs) or 1

    def read(numbers: Indices, batch: int) -> Iterator[Arrays]:
        for number in numbers:
            generator = np.random.default_rng([seed, int(number)])
            yield {info.name: random_sample(info, generator)[None] for info in inputs}

    return Dataset.over("random data", read, -(-count // step) * step, fixed_batch(inputs))


def random_sample(info: InputInfo, generator: np.random.Generator) -> NDArray[Any]:
    """Return one random sample, without the first axis."""
    shape = [dim if isinstance(dim, int) else DYNAMIC_SIZE for dim in info.shape[1:]]
    if info.dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(info.dtype)
    return generator.integers(0, 256 if info.dtype == np.uint8 else 2, shape).astype(info.dtype)
