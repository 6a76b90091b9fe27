"""The way of raw arrays into the model's inputs: found by name, preprocessed or cast, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.images import ImageInput
from qcompile.data.inputs import Arrays, Indices, InputInfo, bind, common_rows, fit
from qcompile.data.preprocess import Preprocess


@dataclass(frozen=True)
class Intake:
    """What every source needs to know: the model's inputs, the preprocessing for images, and a name for messages.

    Where `alone` says why, what is accepted at once is one feed of the model: its arrays need not have as many rows.
    Where the samples are not `labelled`, an array `labels` may hold anything: only class numbers are kept.
    """

    inputs: Sequence[InputInfo]
    preprocess: Preprocess | None
    where: str
    alone: str = ""
    labelled: bool = False

    def accept(self, arrays: Mapping[str, NDArray[Any]], samples: Indices | None = None) -> Arrays:
        """Return {input name: new array}; `samples` are the rows' numbers in the source (of a feed one), for messages.

        uint8 arrays for a float input are images and pass the preprocessing; everything else has to be ready.
        """
        bound = bind(arrays, self.inputs, self.where)
        chosen = {name: np.asarray(arrays[source]) for name, source in bound.items()}
        rows = 1 if self.alone else common_rows(chosen, self.where)
        numbers = np.arange(rows) if samples is None else samples
        return {info.name: self._accept_one(chosen[info.name], info, numbers) for info in self.inputs}

    def _accept_one(self, array: NDArray[Any], info: InputInfo, samples: Indices) -> NDArray[Any]:
        if is_image(array, info):
            return ImageInput.of(info, self.preprocess, self.where).from_array(array)
        return fit(array, info, samples, self.where, whole=bool(self.alone))


def is_image(array: NDArray[Any], info: InputInfo) -> bool:
    """Say whether an array holds pixels that have to become floats."""
    return array.dtype == np.uint8 and info.dtype.kind == "f"
