"""Move scales by units of float32 until all processors round sums and products alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Constant
from qcompile.program.forms import HARD_SIGMOID, slope_codes
from qcompile.program.lower import Kind, Step, lower
from qcompile.qmodel import QModel
from qcompile.quant.arithmetic import quantize
from qcompile.quant.elementwise import Operation, SigmoidTable, scales_from
from qcompile.quant.params import ActivationSpec, Quantizer

ROUNDS = 8  # over all quantizers; a second one finds work only where an output shares its quantizer with an operand
GATE, SLOPES = "(gate of a HardSwish)", "(slopes of a PRelu)"  # keys of their quantizers

Quantizers = Mapping[str, Quantizer]


@dataclass(frozen=True)
class Doubt:
    """A node that processors could round differently: keys of the quantizers of operands and output, output last.

    `fixed` are quantizers that no plan holds: they do not move.
    """

    node: str
    keys: tuple[str, ...]
    operation: Operation | SigmoidTable
    fixed: Quantizers = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The key of the quantizer that may move."""
        return self.keys[-1]

    def narrowed(self, quantizers: Quantizers) -> Doubt:
        """Return the doubt about those codes alone that could be rounded differently."""
        return replace(self, operation=self.operation.doubtful(self._of(quantizers)))

    def is_settled(self, quantizers: Quantizers) -> bool:
        """Say whether all processors make the same codes."""
        return self.operation.is_settled(self._of(quantizers))

    def _of(self, quantizers: Quantizers) -> list[Quantizer]:
        return [self.fixed.get(key) or quantizers[key] for key in self.keys]


@dataclass(frozen=True)
class SettleScales:
    """Settle the output scale of every Add, Mul, HardSwish, PRelu and Sigmoid: a file gives the same codes everywhere.

    ONNX Runtime's kernels of x86-64, Arm and WebAssembly compute these differently (`qcompile.quant.elementwise`), and
    what lies next to a half they round differently. All pairs of codes are tried, in milliseconds; a scale moves by
    some ten units in the last place. No number of a plan changes after it: biases are rounded to the scales found here.
    """

    name: ClassVar[str] = "settle-scales"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        """Change `plan.quantizers`; return how many moved."""
        plan = model.plan
        found = list(doubts(model))
        settled = dict(plan.quantizers)
        for _ in range(ROUNDS):
            before = dict(settled)
            for key in dict.fromkeys(doubt.output for doubt in found):
                settled[key] = settle(key, [doubt for doubt in found if doubt.output == key], settled, plan.specs[key])
            if settled == before:
                break
        for doubt in found:
            if not doubt.narrowed(settled).is_settled(settled):
                model.journal.note(self.name, "processors round some codes differently", node=doubt.node)
        moved = sum(settled[key] != quantizer for key, quantizer in plan.quantizers.items())
        plan.quantizers = settled
        return moved


def doubts(model: QModel) -> Iterator[Doubt]:
    """Yield the nodes whose kernels differ between processors, in executable order."""
    program = lower(model.graph, model.plan)
    for step in program.steps:
        if step.kind is not Kind.ARITHMETIC or step.node is None:
            continue
        keys = [value.key for value in (*step.inputs, *step.outputs)]
        name, op = step.node.name, step.node.op
        if op == "Sigmoid":
            yield Doubt(name, tuple(keys), SigmoidTable())
        elif op in ("Add", "Mul"):
            yield Doubt(name, tuple(keys), Operation.of_all_pairs(op, *codes_of(step)))
        elif op == "HardSwish":  # x times its gate
            gate = np.arange(HARD_SIGMOID.levels + 1, dtype=np.uint8)
            product = Operation.of_all_pairs("Mul", codes_of(step)[0], gate)
            yield Doubt(name, (keys[0], GATE, keys[1]), product, {GATE: HARD_SIGMOID})
        elif op == "PRelu":
            yield from doubts_of_prelu(step, *keys)


def doubts_of_prelu(step: Step, source: str, target: str) -> Iterator[Doubt]:
    """Yield the product of what is below 0 with the slopes, and the sum of that with what is above 0."""
    node, given, made = step.node, step.inputs[0].quantizer, step.outputs[0].quantizer
    assert node is not None and given is not None and made is not None
    slopes, quantizer = slope_codes(node)
    below = np.arange(given.zero_point + 1, dtype=np.uint8)
    above = np.arange(given.zero_point, given.levels + 1, dtype=np.uint8)
    product = Operation.of_all_pairs("Mul", below, np.unique(slopes))
    yield Doubt(node.name, (source, SLOPES, target), product, {SLOPES: quantizer})
    nothing = Operation("Add", above, np.full(above.size, made.zero_point, np.uint8))
    yield Doubt(node.name, (source, target, target), nothing)


def codes_of(step: Step) -> list[NDArray[Any]]:
    """Return the codes that each operand of a step can take: those of its grid, or of a constant."""
    assert step.node is not None
    found = []
    for tensor, value in zip(step.node.inputs, step.inputs):
        assert value.quantizer is not None
        grid = np.arange(value.quantizer.levels + 1, dtype=np.uint8)
        constant = isinstance(tensor, Constant)
        found.append(np.unique(quantize(tensor.values, value.quantizer)) if constant else grid)
    return found


def settle(key: str, group: list[Doubt], quantizers: Quantizers, spec: ActivationSpec) -> Quantizer:
    """Return the quantizer `key` with the nearest scale on which all of a group agree, or as it is if there is none."""
    present = quantizers[key]
    narrowed = [doubt.narrowed(quantizers) for doubt in group]
    for scale in candidates(present, spec):
        moved = replace(present, scale=scale)
        if all(doubt.is_settled({**quantizers, key: moved}) for doubt in narrowed):
            return moved
    return present


def candidates(quantizer: Quantizer, spec: ActivationSpec) -> Iterator[float]:
    """Yield scales from the present one upwards, as far as the grid stays within its bounds, then downwards."""
    for scale in scales_from(quantizer.scale):
        grid = replace(quantizer, scale=scale)
        if grid.low < spec.lower or grid.high > spec.upper:
            break
        yield scale
    yield from scales_from(quantizer.scale, towards=0)
