"""Keep float what integer kernels make slower: whole stretches, by times of whole files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import ClassVar

import numpy as np
import onnx

from qcompile.backends import backend_of
from qcompile.config import Placement
from qcompile.errors import InputError, QCompileError
from qcompile.outcomes import Speed
from qcompile.passmanager import Pass
from qcompile.program.lower import lower
from qcompile.program.stretches import Costs, fastest
from qcompile.progress import track
from qcompile.qmodel import Arrays, Journal, QModel
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.plan import WIDE, Edge, Form
from qcompile.runtime.session import Session
from qcompile.runtime.timing import take_turns

CLEARLY_SLOWER = 0.97  # speed against float below which a file is changed unasked
PIECES = 16  # that are float or not as a whole; two files are timed for each
LEAST_SECONDS = 2e-4  # of one run of the float model: below it the cost of starting kernels is measured
SECONDS, ROUNDS = 0.25, 60  # at most, to time one of them
LEAST_GAIN = 0.01  # of the float model's time, for each border of a float stretch
QUARTILE = 25
SOLITARY = 3  # files that are float but for one piece, among the best ones
REASON = "faster in float"
REDONE = ("plan", "emitted", "audit", "journal", "kept_float", "corrected")  # what a second file leaves in a model

Choice = tuple[bool, ...]  # for each piece whether it is float


@dataclass(frozen=True)
class FloatWhereFaster:
    """Where the file is slower than the float model, keep those stretches float that lose more than they gain.

    Units are joined to at most `PIECES` pieces in a row. For each place between two of them two files are made and
    timed against the float model, with all float in front of it and all float behind it: so kernels, fusions, layouts
    and borders are in the numbers. Then `place` and `again` place, calibrate and emit anew. The file is changed
    if that makes it faster.

    Looks only where `placement` is "fast", or by default where all bits are 8 and the file was measured to be
    slower than float: below 8 bits files are asked for that are small.
    """

    place: Sequence[Pass]
    again: Sequence[Pass]
    placement: Placement = "auto"
    name: ClassVar[str] = "float-where-faster"
    requires: ClassVar[tuple[str, ...]] = ("validate",)

    def run(self, model: QModel) -> int:
        """Change plan and emitted model; return the number of nodes that are float now and were not before."""
        speed = measured(model)
        if speed is None or not self._wanted(model, speed):
            return 0
        choice, pieces = Trials(model, self.place).best()
        names = [name for keep, piece in zip(choice, pieces) if keep for name in piece]
        kept = {name: REASON for name in names if model.plan.form(name) is not Form.FLOAT}
        if not kept:
            model.journal.note(self.name, "nothing is faster in float")
            return 0
        before = {name: getattr(model, name) for name in REDONE}
        faster = self._redo(model, kept)
        if faster is None or faster.speedup <= speed.speedup:
            for name, value in before.items():
                setattr(model, name, value)
            model.journal.note(self.name, "nothing is faster in float")
            return 0
        for stretch in stretches(choice, pieces):
            model.journal.note(self.name, "kept float", nodes=stretch, reason=REASON)
        model.journal.note(self.name, "speed against float", before=speed.speedup, after=faster.speedup)
        return len(kept)

    def _wanted(self, model: QModel, speed: Speed) -> bool:
        """Say whether to look for stretches that are faster in float."""
        if self.placement != "auto":
            return self.placement == "fast"
        bits = {weight.bits for weight in model.plan.weights.values()}
        bits |= {quantizer.bits for quantizer in model.plan.quantizers.values()}
        return bits == {WIDE} and speed.speedup < CLEARLY_SLOWER and speed.float > LEAST_SECONDS

    def _redo(self, model: QModel, kept: dict[str, str]) -> Speed | None:
        """Place, calibrate and emit anew; return the speed, or None where that failed: there is a good file already."""
        passes = (*self.place, *self.again)
        names = {item.name for item in passes}
        model.journal = model.journal.without(names)
        model.kept_float, model.plan, model.audit = model.kept_float | kept, model.plan.unplaced(), None
        try:
            for item in passes:
                item.run(model)
        except QCompileError:
            return None
        return measured(model)


def measured(model: QModel) -> Speed | None:
    """Return the speed of the emitted file; None where it was not timed."""
    return model.audit.speed if model.audit else None


def stretches(choice: Choice, pieces: list[list[str]]) -> list[list[str]]:
    """Return the nodes of each stretch of neighbouring float pieces."""
    return [[name for place in run for name in pieces[place]] for run in runs(choice) if choice[run[0]]]


def runs(choice: Choice) -> list[list[int]]:
    """Return the places of neighbouring pieces that are float, or not, alike."""
    return [[place for place, _ in group] for _, group in groupby(enumerate(choice), key=itemgetter(1))]


class Trials:
    """Files of one model that differ in what is float, timed against the float model."""

    def __init__(self, model: QModel, place: Sequence[Pass]) -> None:
        self.model, self.place = model, place
        self.pieces = joined([list(unit.nodes) for unit in model.plan.units], PIECES)
        data = model.held_back or model.data
        assert data is not None  # the file was timed before
        self.feeds: Arrays = data.first_of(next(data.batches(data.fixed_batch or 1)))
        self.reference = Session(model.source, threads=1, fault=InputError)

    def best(self) -> tuple[Choice, list[list[str]]]:
        """Return the fastest choice found, and the pieces it is about."""
        count = len(self.pieces)
        fronts = [tuple(place < k for place in range(count)) for k in range(count + 1)]
        backs = [tuple(place >= k for place in range(count)) for k in range(count + 1)]
        times = [self.times([choice], SECONDS)[0] for choice in track([*fronts, *backs], "placement", 2 * count + 2)]
        costs = Costs(times[: count + 1], times[count + 1 :])
        alone = sorted(range(count), key=lambda place: sum(costs.borders[place : place + 2]) - costs.losses[place])
        found = [fastest(costs, LEAST_GAIN), *(tuple(k != place for k in range(count)) for place in alone[:SOLITARY])]
        best = self.fastest_of(found)
        for stretch in runs(best):  # times of single files are rough: is each stretch as it should be?
            turned = tuple(keep != (place in stretch) for place, keep in enumerate(best))
            best = self.fastest_of([best, turned])
        return best, self.pieces

    def fastest_of(self, choices: Sequence[Choice]) -> Choice:
        """Return the fastest of those that leave a layer on integers, timed against each other."""
        some = [choice for choice in dict.fromkeys(choices) if self.has_layer(choice)]
        return some[int(np.argmin(self.times(some, SECONDS * (1 + len(some)))))]

    def has_layer(self, choice: Choice) -> bool:
        """Say whether a layer is left on integers."""
        names = {name for keep, piece in zip(choice, self.pieces) if not keep for name in piece}
        return any(self.model.plan.form(name) is Form.COMPUTE for name in names)

    def times(self, choices: Sequence[Choice], seconds: float) -> list[float]:
        """Return the times of some files as shares of the float model's; files that do not run take forever."""
        sessions = [self.session(choice) for choice in choices]
        running = [session for session in sessions if session is not None]
        table = take_turns([self.reference, *running], self.feeds, rounds=ROUNDS, seconds=seconds)
        taken = np.percentile(table, QUARTILE, axis=0)  # what disturbs a run makes it longer
        shares = iter(taken[1:] / taken[0])
        return [np.inf if session is None else float(next(shares)) for session in sessions]

    def session(self, choice: Choice) -> Session | None:
        """Load the file in which the pieces of `choice` are float."""
        try:
            session = Session(self.file(choice), threads=1)
            session.run(self.feeds)
        except QCompileError:  # a scale that is none of calibration's does not suit a kernel
            return None
        return session

    def file(self, choice: Choice) -> onnx.ModelProto:
        """Return that file: its times are right, its values are not."""
        model, done = self.model, self.model.plan
        kept = {name: REASON for keep, piece in zip(choice, self.pieces) if keep for name in piece} | model.kept_float
        trial = replace(model, plan=done.unplaced(), journal=Journal(), kept_float=kept)
        with suppress(InputError):  # nothing is left on integers, as it should be
            for item in self.place:
                item.run(trial)
        plan = trial.plan
        plan.quantizers = {key: self.quantizer(key, spec) for key, spec in plan.specs.items()}
        placed = {name for name, node in plan.nodes.items() if node.form is Form.COMPUTE}
        plan.weights = {name: weight for name, weight in done.weights.items() if name in placed}
        plan.biases = {name: bias for name, bias in done.biases.items() if name in placed}
        return backend_of(model.target).writer(model.graph, plan, lower(model.graph, plan), ()).model()

    def quantizer(self, key: Edge, spec: ActivationSpec) -> Quantizer:
        """Return the quantizer that a tensor had, or any other."""
        plan = self.model.plan
        named = plan.reads.get(key) if key.reader else Edge(plan.groups.get(key.tensor, ""))
        before = spec.fixed or (plan.quantizers.get(named) if named else None)
        if before is not None and before.grid == spec.grid:
            return before
        scale = float(np.median([quantizer.scale for quantizer in plan.quantizers.values()]))
        lowest = spec.grid.low if spec.lower >= 0 else (spec.grid.low + spec.grid.high + 1) // 2
        return Quantizer(spec.grid, scale, lowest)


def joined(units: list[list[str]], most: int) -> list[list[str]]:
    """Join neighbours to at most `most` pieces of about as many units each."""
    bounds = np.linspace(0, len(units), min(len(units), most) + 1).round().astype(int)
    return [[name for unit in units[low:high] for name in unit] for low, high in pairwise(bounds)]
