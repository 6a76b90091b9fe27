"""Both models on the same samples: agreement of outputs, speed, and the layers that err most where they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.data.inputs import Arrays
from qcompile.errors import EmissionError, InputError, QCompileError
from qcompile.ir import Graph
from qcompile.ir.load import weight_bytes
from qcompile.outcomes import Compared, LayerError, Speed
from qcompile.progress import track
from qcompile.quant.plan import Plan
from qcompile.runtime.agreement import Agreement, differs, kept_positions
from qcompile.runtime.outputs import Output
from qcompile.runtime.session import Session
from qcompile.runtime.timing import Timing, compare, compare_apart
from qcompile.simulation.layers import layer_errors

SAMPLES = 64  # compared with the float model, at most
FEW = 8  # held-back samples: below, one that happens to be easy would stand for all
ELEMENTS = 32 * 3 * 224 * 224  # of all inputs together that are compared: keeps the cost of large images in bounds
BATCH_ELEMENTS = 3 * 224 * 224  # of one batch: keeps memory in bounds
UNOPTIMIZED_BATCHES = 2  # five times slower
LAYER_SAMPLES, WORST = 4, 3  # that layers are measured on, and the layers that are named
TIMING_SECONDS = 0.4
SIDE_BY_SIDE = 1 << 30  # bytes of weights: of larger models, memory holds one at a time


@dataclass(frozen=True)
class Comparison:
    """The emitted file beside the float model on `data`, and beside itself without optimizations.

    `unlike` counts, by output, the batches in which both models give other shapes. `speed` is None if none was timed.
    """

    agreement: Compared
    data: Dataset
    unoptimized: Compared
    speed: Speed | None
    unlike: Mapping[str, int]


def compared(
    source: onnx.ModelProto,
    emitted: onnx.ModelProto,
    data: Dataset,
    described: Mapping[str, Output],
    *,
    loaded: onnx.ModelProto | None = None,
    on_integers: bool = True,
) -> Comparison:
    """Run both models on the same samples, some of `data`: agreement, speed, and what optimizations change.

    The emitted one runs `on_integers`, or in float between its quantizers: that is slower than float, so not timed.
    `loaded` is `emitted` with its packed weights taken apart, where that was done before.
    """
    loaded, apart = loaded or emitted, weight_bytes(source) >= SIDE_BY_SIDE
    reference = Session(source, threads=1, fault=InputError, packed=not apart)
    optimized = Session(loaded, threads=1, fuse_qdq=on_integers)
    data, size = some(data)
    agreement = Outputs("the emitted model", described)
    unoptimized = Outputs("the emitted model without optimizations", described)
    first: list[tuple[Arrays, Arrays]] = []
    for feeds in track(data.batches(size), "validate"):
        expected, outputs = reference.run_all(feeds), optimized.run_all(feeds)
        agreement.add(feeds, expected, outputs, data.samples_in(feeds))
        if len(first) < UNOPTIMIZED_BATCHES:
            first.append((feeds, outputs))
    one = data.first_of(first[0][0])
    timing = compare(reference, optimized, one, seconds=TIMING_SECONDS) if on_integers and not apart else None
    del reference, optimized  # before the next one is loaded
    if on_integers and apart:
        timing = compare_apart(source, loaded, one, seconds=TIMING_SECONDS)
    plain = Session(emitted, level="off", threads=1)
    for feeds, outputs in first:
        unoptimized.add(feeds, outputs, plain.run_all(feeds), data.samples_in(feeds))
    speed = speed_of(timing, data.samples_in(one)) if timing else None
    return Comparison(agreement.summary(), data, unoptimized.summary(), speed, agreement.unlike)


def judging(data: Dataset | None, held_back: Dataset | None) -> Dataset | None:
    """Return the samples that judge: those that are held back; where these are few, the others as well."""
    return data if held_back is None else held_back if held_back.count >= FEW else held_back.joined(data)


def some(data: Dataset) -> tuple[Dataset, int]:
    """Return samples that are few enough, and how many to run at once: by their size alone, never by the time."""
    elements = sum(array.size for array in next(data.take(0, data.fixed_batch or 1).batches(1)).values())
    step = data.fixed_batch or 1
    count = min(SAMPLES, max(ELEMENTS // max(elements // step, 1), 1))
    return data.spread(count), max(min(BATCH_ELEMENTS // max(elements, 1), SAMPLES), 1)


def unfitted(judged: Dataset, data: Dataset | None, held_back: Dataset | None) -> int:
    """Return how many of the samples no number was fitted to."""
    if held_back is None:
        return 0
    spared = np.isin(judged.numbers, held_back.numbers)
    return int((spared if data is None else spared & ~np.isin(judged.numbers, data.numbers)).sum())


class Outputs:
    """Agreement of every output of `subject` with a reference.

    How many rows a detector's output has depends on its values; `unlike` counts the batches in which both differ there.
    """

    def __init__(self, subject: str, described: Mapping[str, Output]) -> None:
        self.subject, self.described = subject, described
        self.outputs: dict[str, Agreement] = {}
        self.unlike: Counter[str] = Counter()
        self.samples = 0

    def add(self, feeds: Arrays, reference: Arrays, outputs: Arrays, samples: int) -> None:
        """Add the outputs that `feeds` of so many samples gave, those of equal shape; raise where one holds NaN."""
        self.samples += samples
        for name, values in outputs.items():
            if has_nan(reference[name]):
                raise InputError(f"output {name!r} of the float model holds NaN", remedy="check the model and its data")
            if has_nan(values):
                what = f"output {name!r} of {self.subject} holds NaN where the float model does not"
                raise EmissionError(what, remedy="please report it")
            if values.shape == reference[name].shape:
                output = self.described.get(name, Output())
                found = self.outputs.setdefault(name, Agreement(output))
                found.add(reference[name], values, samples, kept_positions(output, feeds))
            else:
                self.unlike[name] += 1

    def summary(self) -> Compared:
        """Return the number of samples and the figures of each output."""
        return Compared(self.samples, {name: found.summary() for name, found in self.outputs.items()})


def worst_layers(
    graph: Graph, plan: Plan, data: Dataset | None, outputs: Iterable[Mapping[str, Any]], *, threads: int
) -> list[LayerError]:
    """Return the layers that err most by themselves, where one of the `outputs` differs much from the float model's.

    They serve a warning: where they cannot be measured, it comes without them.
    """
    if data is None or not any(map(differs, outputs)):
        return []
    step = data.fixed_batch or 1
    few = data.take(0, min(LAYER_SAMPLES // step * step or step, data.count)).batches(1)
    errors: dict[str, float] = {}
    with suppress(QCompileError):
        errors = layer_errors(graph, plan, few, threads=threads)
    return [LayerError(node, error) for node, error in list(errors.items())[:WORST] if math.isfinite(error)]


def has_nan(values: NDArray[Any]) -> bool:
    """Say whether a float array holds NaN."""
    return values.dtype.kind == "f" and bool(np.isnan(values).any())


def speed_of(found: Timing, batch: int) -> Speed:
    """Return the times of one inference of both models, on one thread, of `batch` samples."""
    return Speed(found.first, found.second, found.speedup, found.low, found.high, found.rounds, batch, 1)
