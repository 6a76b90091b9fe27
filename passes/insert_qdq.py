"""Write the emitted model from graph and plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.emission.qdq import Emitter
from qcompile.program.lower import lower
from qcompile.qmodel import QModel


@dataclass(frozen=True)
class InsertQDQ:
    """Lower the plan to a program and emit it: QuantizeLinear, Clip, DequantizeLinear where the target wants them."""

    name: ClassVar[str] = "insert-qdq"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        """Write `model.emitted`; return the number of steps."""
        program = lower(model.graph, model.plan)
        packing = "planes" if model.config.pack == "auto" else model.config.pack
        model.emitted = Emitter(model.graph, model.plan, program, packing).model()
        return len(program.steps)
