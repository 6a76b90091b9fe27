"""Write the emitted model from graph and plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.backends import backend_of
from qcompile.config import Packing
from qcompile.emission.origin import tell_origin
from qcompile.program.lower import lower
from qcompile.qmodel import QModel
from qcompile.quant.plan import WIDE


@dataclass(frozen=True)
class InsertQDQ:
    """Lower the plan to a program and emit it: QuantizeLinear, Clip, DequantizeLinear where the target wants them."""

    pack: Packing = "auto"
    name: ClassVar[str] = "insert-qdq"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        """Write `model.emitted`; return the number of steps."""
        program = lower(model.graph, model.plan)
        target, write = model.target, backend_of(model.target).writer
        forms = (target.forms_of_weights(self.pack), target.bias, target.movement, target.costly_zero_points)
        model.emitted = write(model.graph, model.plan, program, *forms, store=model.store).model()
        tell_origin(model.emitted, model)
        weights = model.plan.weights.values()
        if self.pack in ("int4", "planes") and all(weight.bits == WIDE for weight in weights):
            text = f"--pack {self.pack} has no effect: all weights have {WIDE} bits"
            model.journal.warn(self.name, text)
        return len(program.steps)
