"""Move scales by units of float32 until all processors round sums and products alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.backends import backend_of
from qcompile.emission.doubts import Doubt, Quantizers, scales_from
from qcompile.program.lower import lower
from qcompile.qmodel import QModel
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.plan import Edge

ROUNDS = 8  # over all quantizers; a second one finds work only where an output shares its quantizer with an operand


@dataclass(frozen=True)
class SettleScales:
    """Settle the output scale of every Add, Mul, HardSwish, PRelu and Sigmoid: a file gives the same codes everywhere.

    ONNX Runtime's kernels of x86-64, Arm and WebAssembly compute these differently, and what lies next to a half they
    round differently (`qcompile.backends.ort_cpu.elementwise`). All pairs of codes are tried, in milliseconds; a scale
    moves by some ten units in the last place. No number of a plan changes after it: biases are rounded to the scales
    found here.
    """

    name: ClassVar[str] = "settle-scales"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        """Change `plan.quantizers`; return how many moved."""
        plan = model.plan
        found = list(backend_of(model.target).doubts(lower(model.graph, plan)))
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


def settle(key: Edge, group: list[Doubt], quantizers: Quantizers, spec: ActivationSpec) -> Quantizer:
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
    if spec.power_of_two:
        yield quantizer.scale
        return
    for scale in scales_from(quantizer.scale):
        grid = replace(quantizer, scale=scale)
        if grid.low < spec.lower or grid.high > spec.upper:
            break
        yield scale
    yield from scales_from(quantizer.scale, towards=0)
