"""Keep float what 8 bits cannot serve: found by the error that each unit makes by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompile.calibration.ranges import BY_BITS, Ranges
from qcompile.errors import InputError
from qcompile.ir import Node, Tensor, producer
from qcompile.passmanager import Pass
from qcompile.program.operands import data_inputs
from qcompile.qmodel import QModel
from qcompile.quant.plan import Form, Unit
from qcompile.simulation.stretches import OutputError
from qcompile.simulation.trial import at_8_bits, trial

LARGEST = 0.15  # of the variance of what a unit gives (8 dB): units of usual networks have 0.05 at most
DOUBTFUL = 0.03  # of the variance of what a corrected layer gives: then all units are looked at
LEAST_VARIANCE = 0.01  # as a share of the power: values that are nearly constant are compared with what they are
ROUNDS = 4
TIMES = 8  # as many samples as other trials take
REASON = "8 bits lose what it computes"


@dataclass(frozen=True)
class FloatWhereInexact:
    """Keep those units float whose own error at 8 bits is about as large as what they compute, whatever their bits are.

    So it is with a logarithm behind a power, where the small values count and one scale serves the large ones, and with
    outputs of the model whose channels have ranges that differ by orders of magnitude. A trial at 8 bits
    (`qcompile.simulation.trial`) feeds each unit the float model's own values. It is made of all units only where
    correct-bias found a layer doubtful, or could not look; otherwise of those that give the model's outputs.

    Then `place` and `again` place and choose numbers anew. Nodes whose names match a regular expression of `forced`
    (those that `--bits` names) stay as they are.
    """

    place: Sequence[Pass]
    again: Sequence[Pass]
    forced: Sequence[str] = ()
    ranges: Ranges = BY_BITS
    name: ClassVar[str] = "float-where-inexact"
    requires: ClassVar[tuple[str, ...]] = ("partition-units", "correct-bias")

    def run(self, model: QModel) -> int:
        """Change `kept_float` and the plan; return the number of nodes that are float now and were not before."""
        if model.data is None:
            return 0
        kept: dict[str, str] = {}
        for _ in range(ROUNDS):
            found = {
                name: REASON
                for name in lost(model, self.forced, self.ranges)
                if model.plan.form(name) is not Form.FLOAT
            }
            if not found or not self._placed(model, found):
                break
            kept |= found
        if kept:
            model.journal.note(self.name, "kept float", nodes=sorted(kept), reason=REASON)
            for item in self.again:
                item.run(model)
        return len(kept)

    def _placed(self, model: QModel, found: dict[str, str]) -> bool:
        """Place quantizers with `found` kept float; False, and nothing changed, where nothing is left on integers."""
        before = (model.plan, model.journal, model.kept_float, model.corrected)
        names = {item.name for item in (*self.place, *self.again)}
        model.journal = model.journal.without(names)
        model.kept_float = model.kept_float | found
        model.plan, model.corrected = model.plan.unplaced(), None
        try:
            for item in self.place:
                item.run(model)
        except InputError:
            model.plan, model.journal, model.kept_float, model.corrected = before
            text = f"8 bits lose most of what the model computes, as in {min(found)!r}"
            model.journal.warn(self.name, text)
            return False
        return True


def lost(model: QModel, forced: Sequence[str] = (), ranges: Ranges = BY_BITS) -> set[str]:
    """Return the nodes of which integers of 8 bits lose what they compute, but for those that are `forced`."""
    units = list(doubtful(model))
    stretches, plan = [unit.nodes for unit in units], at_8_bits(model.plan, model.target)
    errors = trial(model, stretches, plan, by=FloatWhereInexact.name, ranges=ranges, times=TIMES)
    nodes, tensors = {node.name: node for node in model.graph.nodes}, model.graph.tensors()
    found: set[str] = set()
    for unit, outputs in zip(units, errors or []):
        if any(share(error) > LARGEST for error in outputs if error.axis < 0):
            found |= on_integers(model, unit) or set(makers(model, (t for n in unit.nodes for t in nodes[n].inputs)))
        ruined = {error.tensor for error in outputs if error.axis >= 0 and by_channel(error) > LARGEST}
        found |= set(makers(model, (tensors[name] for name in ruined if name in model.plan.groups)))
    return {name for name in found if not any(re.search(pattern, name) for pattern in forced)}


def doubtful(model: QModel) -> Iterator[Unit]:
    """Yield the units to look at."""
    outputs = {tensor.name for tensor in model.graph.outputs if not is_float_product(model, tensor)}
    found = model.corrected
    everywhere = found is None or found.worst > DOUBTFUL or found.unseen > 0
    for unit in model.plan.units:
        if everywhere or outputs & set(unit.outputs):
            yield unit


def is_float_product(model: QModel, tensor: Tensor) -> bool:
    """Say whether a layer gives `tensor` in float32 at once: every channel has a scale of its own."""
    node = producer(tensor)
    return node is not None and model.plan.form(node.name) is Form.COMPUTE and tensor.name not in model.plan.groups


def share(error: OutputError) -> float:
    """Return the error as a share of the variance, 0 where there is nothing to compare."""
    variance = max(error.variance, LEAST_VARIANCE * float(error.signal.sum()))
    return float(error.noise.sum() / variance) if variance > 0 and np.isfinite(variance) else 0.0


def by_channel(error: OutputError) -> float:
    """Return the mean over the channels that are not all zero of error by power, each at most 1."""
    alive = error.signal > 0
    if not alive.any() or not np.isfinite(error.signal).all():
        return 0.0
    return float(np.minimum(error.noise[alive] / error.signal[alive], 1).mean())


def on_integers(model: QModel, unit: Unit) -> set[str]:
    """Return the nodes of a unit that run on integers."""
    return {name for name in unit.nodes if model.plan.form(name) is not Form.FLOAT}


def makers(model: QModel, tensors: Iterable[Tensor]) -> Iterator[str]:
    """Yield the nodes on integers that make tensors, back to those that compute what others only move or clip."""
    queue: list[Tensor] = list(tensors)
    while queue:
        node: Node | None = producer(queue.pop())
        if node is None or model.plan.form(node.name) is Form.FLOAT:
            continue
        yield node.name
        if model.plan.form(node.name) in (Form.CODES, Form.ABSORBED):
            queue += data_inputs(node)
