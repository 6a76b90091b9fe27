"""Move scales by units of float32 until all processors round sums and products alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Constant
from qcompile.program.forms import HARD_SIGMOID
from qcompile.program.lower import Kind, Step, lower
from qcompile.qmodel import QModel
from qcompile.quant.arithmetic import quantize
from qcompile.quant.elementwise import Operation, SigmoidTable, scales_from
from qcompile.quant.params import ActivationSpec, Quantizer

OPERATIONS = {"Add": "Add", "Mul": "Mul", "HardSwish": "Mul"}  # a HardSwish multiplies with its gate
ROUNDS = 8  # over all quantizers; a second one finds work only where an output shares its quantizer with an operand
GATE = "(gate of a HardSwish)"  # key of its quantizer

Quantizers = Mapping[str, Quantizer]


@dataclass(frozen=True)
class Doubt:
    """A node that processors could round differently: keys of the quantizers of operands and output, output last."""

    node: str
    keys: tuple[str, ...]
    operation: Operation | SigmoidTable

    @property
    def output(self) -> str:
        """The key of the quantizer that may move."""
        return self.keys[-1]

    def narrowed(self, quantizers: Quantizers) -> Doubt:
        """Return the doubt about those codes alone that could be rounded differently."""
        return replace(self, operation=self.operation.doubtful([quantizers[key] for key in self.keys]))

    def is_settled(self, quantizers: Quantizers) -> bool:
        """Say whether all processors make the same codes."""
        return self.operation.is_settled([quantizers[key] for key in self.keys])


@dataclass(frozen=True)
class SettleScales:
    """Settle the output scale of every Add, Mul, HardSwish and Sigmoid: the file gives the same codes everywhere.

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
        settled = {**plan.quantizers, GATE: HARD_SIGMOID}
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
        plan.quantizers = {key: settled[key] for key in plan.quantizers}
        return moved


def doubts(model: QModel) -> Iterator[Doubt]:
    """Yield the nodes whose kernels differ between processors, in executable order."""
    program = lower(model.graph, model.plan)
    for step in program.steps:
        if step.kind is not Kind.ARITHMETIC or step.node is None or step.node.op not in (*OPERATIONS, "Sigmoid"):
            continue
        keys = [model.plan.key(program.tensors[value.name]) for value in (*step.inputs, *step.outputs)]
        if step.node.op == "Sigmoid":
            yield Doubt(step.node.name, tuple(keys), SigmoidTable())
            continue
        codes = codes_of(step)
        if step.node.op == "HardSwish":
            keys.insert(1, GATE)
            codes.append(np.arange(HARD_SIGMOID.levels + 1, dtype=np.uint8))
        yield Doubt(step.node.name, tuple(keys), Operation.of_all_pairs(OPERATIONS[step.node.op], *codes))


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
