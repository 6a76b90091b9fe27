"""Take a plan that was made before instead of making one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.errors import InputError
from qcompile.qmodel import QModel
from qcompile.quant.params import WEIGHT_MAX, WEIGHT_MIN
from qcompile.quant.plan import Form, Plan


@dataclass(frozen=True)
class UsePlan:
    """Use `plan` in place of placement, calibration and correction; it must fit the model's nodes and shapes."""

    plan: Plan

    name: ClassVar[str] = "use-plan"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    def run(self, model: QModel) -> int:
        """Put the plan into `model`; raise InputError where it does not fit."""
        if problem := misfit(self.plan, model):
            raise InputError(f"the plan does not fit the model: {problem}", remedy="make it again with --save-plan")
        model.plan = replace(self.plan, units=self.plan.units or model.plan.units)
        return len(self.plan.nodes)


def misfit(plan: Plan, model: QModel) -> str:
    """Say why `plan` is not one for `model`'s graph, or return ""."""
    nodes = {node.name: node for node in model.graph.nodes}
    if unknown := sorted(plan.nodes.keys() ^ nodes.keys()):
        return f"node {unknown[0]!r} is in only one of them"
    tensors = model.graph.tensors()
    if unknown := sorted(plan.groups.keys() - tensors.keys()):
        return f"the model has no tensor {unknown[0]!r}"
    if missing := sorted((set(plan.groups.values()) | plan.specs.keys()) - plan.quantizers.keys()):
        return f"it has no quantizer for {missing[0]!r}"
    for name, node in plan.nodes.items():
        if node.form is not Form.COMPUTE or not node.weight_bits:
            continue
        if name not in plan.weights:
            return f"it has no weight for {name!r}"
        wanted, found = tuple(nodes[name].inputs[1].shape), plan.weights[name].codes.shape
        if wanted != found:
            return f"the weight of {name!r} has shape {found}, not {wanted}"
        lattice = plan.weights[name].lattice()
        if lattice.size and (lattice.min() < WEIGHT_MIN or lattice.max() > WEIGHT_MAX):
            return f"the weight of {name!r} has integers beyond {WEIGHT_MIN} .. {WEIGHT_MAX}"
    return ""
