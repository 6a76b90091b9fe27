"""Choose which neighbouring units are trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.capacity.boundaries import Pair, chains
from qcompile.capacity.fusion import CRITERIA, scheme_boundaries, top_boundaries
from qcompile.config import Config
from qcompile.qmodel import QModel
from qcompile.quant.plan import Plan


@dataclass(frozen=True)
class FuseRegions:
    """Fill `plan.regions`: adjacent units that are trained jointly, for the error at the output of the last alone.

    Training unit by unit, the loss oscillates along the depth of the network; where it breaks out, the two units around
    the boundary become one region. Boundaries are chosen by the change of module capacity (`data-free`), by the change
    of measured relative losses (`data-dependent`), or by the growth of the loss (`loss`); or a scheme of the recipe
    names them. The first and last layers are left out of automatic choices: their bits are others, and so are units
    without weights, and those whose loss was to be measured and could not be.

    References
    ----------
    Ma et al., "Solving Oscillation Problem in Post-Training Quantization Through a Theoretical Perspective", CVPR 2023.
    """

    name: ClassVar[str] = "fuse-regions"
    requires: ClassVar[tuple[str, ...]] = ("score-capacity",)

    def run(self, model: QModel) -> int:
        """Write the regions into the plan, those of one unit too; return how many boundaries were fused."""
        plan, config = model.plan, model.config
        names = [unit.name for unit in plan.units]
        pairs = [(item.first, item.second) for item in plan.boundaries]
        if config.fuse:
            joined = scheme_boundaries(config.fuse, names, pairs, config.max_fused)
        else:
            joined = _chosen(plan, config)
        plan.regions = chains(names, joined)
        for region in plan.regions:
            if len(region) > 1:
                model.journal.note(self.name, "fused", units=list(region))
        return len(joined)


def _chosen(plan: Plan, config: Config) -> list[Pair]:
    """Return the boundaries that the criterion of the configuration finds."""
    if config.fuse_top_k == 0:
        return []
    values = plan.capacities if config.fuse_by == "data-free" else plan.losses
    pairs = [
        (item.first, item.second)
        for item in plan.boundaries
        if item.inner and all(plan.capacities[name] and name in values for name in (item.first, item.second))
    ]
    return top_boundaries(pairs, values, CRITERIA[config.fuse_by], config.fuse_top_k, config.max_fused)
