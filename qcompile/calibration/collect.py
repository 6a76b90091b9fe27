"""Run the float model over the samples and show inner tensors to observers, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.progress import track
from qcompile.runtime.session import Session

TAP_BYTES = 48 << 20  # of tapped activations at a time: bounds memory whatever the number of samples
LARGEST_BATCH = 64


class Observer(Protocol):
    """Sees every value of one tensor, in parts."""

    def update(self, values: NDArray[np.float32]) -> None:
        """Take the values of one batch."""


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of `model` (sharing no state) that also gives out the tensors `names`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output} | {item.name for item in copy.graph.input}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return copy


def collect(
    session: Session, data: Dataset, observers: Mapping[str, Observer], *, batch: int | None, label: str
) -> None:
    """Show `observers` their tensors (inputs or outputs of `session`) over all of `data`."""
    size = batch or batch_size(session, data)
    wanted = [name for name in observers if name not in session.inputs]
    for feeds in track(data.batches(size), label, -(-data.count // size)):
        values: dict[str, NDArray[Any]] = {**feeds, **session.run(feeds, wanted)}
        for name, observer in observers.items():
            observer.update(values[name])


def batch_size(session: Session, data: Dataset) -> int:
    """Return how many samples to run at once: by the bytes that one sample's outputs take."""
    first = next(iter(data.batches(1)))
    one = sum(value.nbytes for value in session.run(first).values()) + sum(value.nbytes for value in first.values())
    return int(np.clip(TAP_BYTES // max(one, 1), 1, min(LARGEST_BATCH, data.count)))
