"""Take a plan that was made before instead of making one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.errors import InputError
from qcompile.qmodel import QModel
from qcompile.quant.plan import Plan
from qcompile.targets.plan_fit import plan_misfit


@dataclass(frozen=True)
class UsePlan:
    """Use `plan` in place of placement, calibration and correction; it must fit the model's nodes and shapes."""

    plan: Plan

    name: ClassVar[str] = "use-plan"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    def run(self, model: QModel) -> int:
        """Put the plan into `model`; raise InputError where it does not fit."""
        if problem := plan_misfit(self.plan, model.graph, model.target):
            raise InputError(f"the plan does not fit the model: {problem}", remedy="make it again with --save-plan")
        model.plan = replace(self.plan, units=self.plan.units or model.plan.units)
        return len(self.plan.nodes)
