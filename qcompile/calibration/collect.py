"""Run the float model over the samples and show inner tensors to observers, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from qcompile.calibration.observers import Largest, MinMax
from qcompile.data.dataset import Dataset
from qcompile.memory import release_freed_memory
from qcompile.progress import track
from qcompile.runtime.session import Session

# At a time; they bound memory whatever the number of samples. Activations inside the model grow with its inputs.
TAP_BYTES = 32 << 20
INPUT_BYTES = 1 << 20
LARGEST_BATCH = 64
# What observers of ranges are shown; the mean comes along because NaN always shows in it.
REDUCTIONS = {MinMax: ("ReduceMin", "ReduceMax", "ReduceMean"), Largest: ("ReduceMax", "ReduceMean")}
POOLS = {"ReduceMax": "GlobalMaxPool", "ReduceMean": "GlobalAveragePool"}  # these read the blocked layout as it is


class Observer(Protocol):
    """What is shown the values of a tensor, batch by batch."""

    def update(self, values: NDArray[Any]) -> None:
        """Take in the values of one batch."""


def observe(
    model: onnx.ModelProto,
    observers: Iterable[tuple[str, Observer]],
    data: Dataset,
    *,
    batch: int | None,
    threads: int,
    label: str,
) -> None:
    """Show every observer all values that its tensor (of `model`, which is changed) takes over `data`.

    A tensor of which only the range is wanted is reduced inside the graph: its values never leave it.
    """
    pairs = list(observers)
    kinds = {name: type(observer) for name, observer in pairs}
    whole = [name for name, kind in kinds.items() if kind not in REDUCTIONS]
    reduced = {name: REDUCTIONS[kind] for name, kind in kinds.items() if kind in REDUCTIONS}
    tap(model, whole, reduced)
    taps = [name for name in whole if name not in {item.name for item in model.graph.input}]
    wanted = [*taps, *(reduction_name(name, op) for name, ops in reduced.items() for op in ops)]
    session = Session(model, threads=threads) if wanted else None  # inputs alone are seen without a run
    del model  # the session has its own weights
    release_freed_memory()
    size = batch or batch_size(session, data, wanted)
    for feeds in track(data.batches(size), label, -(-data.count // size)):
        values = session.run(feeds, wanted) if session is not None else {}
        for name, observer in pairs:
            if name in reduced:
                found = np.array([values[reduction_name(name, op)] for op in reduced[name]])
                if found[-2] > -np.inf or not np.isfinite(found[-1]):  # else the tensor has no values
                    observer.update(found)
            else:
                observer.update(values[name] if name in values else feeds[name])


def tap(model: onnx.ModelProto, whole: Iterable[str], reduced: Mapping[str, Iterable[str]] | None = None) -> None:
    """Let `model` also give out the tensors `whole`, and those reductions of tensors that `reduced` names."""
    names = list(whole)
    maps = {info.name for info in model.graph.value_info if is_map(info)}
    for name, ops in (reduced or {}).items():
        for op in ops:
            source = name
            if name in maps and "ReduceMin" not in ops:
                source = reduction_name(name, POOLS[op])
                model.graph.node.append(helper.make_node(POOLS[op], [name], [source]))
            names.append(reduction_name(name, op))
            model.graph.node.append(helper.make_node(op, [source], [names[-1]], keepdims=0))
    present = {item.name for item in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)


def is_map(info: onnx.ValueInfoProto) -> bool:
    """Say whether a tensor is a map [N, C, H, W] of known size, which is never empty inside."""
    dims = info.type.tensor_type.shape.dim
    return len(dims) == 4 and all(dim.dim_value > 0 for dim in dims[1:])


def reduction_name(tensor: str, op: str) -> str:
    """Return the name of the output that gives a reduction of `tensor`: one that no exporter writes."""
    return f"{op}({tensor})"


def batch_size(session: Session | None, data: Dataset, wanted: list[str]) -> int:
    """Return how many samples to run at once: by the bytes of one sample's inputs and tapped outputs."""
    if data.alone:
        return 1
    first: dict[str, NDArray[Any]] = next(iter(data.batches(1)))
    given = sum(value.nbytes for value in first.values())
    most = min(INPUT_BYTES // max(given, 1), LARGEST_BATCH, data.count)
    if most <= 1 or session is None:
        return max(1, most)
    taken = sum(value.nbytes for value in session.run(first, wanted).values())
    return max(1, min(most, TAP_BYTES // max(taken, 1)))
