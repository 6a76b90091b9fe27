"""Score how much each unit can hold, and how much that changes from unit to unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.capacity.boundaries import adjacent
from qcompile.capacity.modules import capacity, homogeneous, module
from qcompile.program.dag import activation_dag
from qcompile.qmodel import QModel
from qcompile.quant.plan import Boundary


@dataclass(frozen=True)
class ScoreCapacity:
    """Fill `plan.capacities` and `plan.boundaries`: data-free module capacity, and its change between adjacent units.

    The capacity of a unit is the sum over its compute nodes of weights * bits, times a factor where the stride is
    above 1 (`stride_factor`). Where it changes much from one unit to the next, the loss of
    training unit by unit jumps. Capacities of modules that are not built alike are compared too, as the authors'
    schemes do; `Boundary.homogeneous` says which are.

    References
    ----------
    Ma et al., "Solving Oscillation Problem in Post-Training Quantization Through a Theoretical Perspective", CVPR 2023.
    """

    stride_factor: float = 1.6
    name: ClassVar[str] = "score-capacity"
    requires: ClassVar[tuple[str, ...]] = ("partition-units", "place-quantizers")

    def run(self, model: QModel) -> int:
        """Write the scores into the plan; return the number of boundaries."""
        plan, dag = model.plan, activation_dag(model.graph)
        place = {node.name: index for index, node in enumerate(dag.nodes)}
        members = {unit.name: {place[node] for node in unit.nodes} for unit in plan.units}
        plan.capacities = {
            name: capacity((dag.nodes[index] for index in inside), plan.nodes, self.stride_factor)
            for name, inside in members.items()
        }
        modules = {name: module(dag, inside) for name, inside in members.items()}
        ends = dag.first_compute | dag.last_compute
        plan.boundaries = [
            Boundary(
                first,
                second,
                differential=plan.capacities[second] - plan.capacities[first],
                homogeneous=homogeneous(modules[first], modules[second]),
                inner=ends.isdisjoint(members[first] | members[second]),
            )
            for first, second in adjacent(plan.units, dag.outputs)
        ]
        return len(plan.boundaries)
