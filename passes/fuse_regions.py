"""Choose which neighbouring units are trained together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompile.capacity.boundaries import Pair, chains
from qcompile.capacity.fusion import CRITERIA, scheme_boundaries, top_boundaries
from qcompile.capacity.modules import weight_count
from qcompile.config import FuseBy
from qcompile.ir.shapes import sizes_for, static_dims
from qcompile.qmodel import QModel
from qcompile.training.recipe import VALUES_PER_WEIGHT

SAMPLES = 1024  # are assumed where there are none yet


@dataclass(frozen=True)
class FuseRegions:
    """Fill `plan.regions`: adjacent units that are trained jointly, for the error at the output of the last alone.

    Training unit by unit, the loss oscillates along the depth of the network; where it breaks out, the two units around
    the boundary become one region. Boundaries are chosen by the change of module capacity (`data-free`), by the change
    of measured relative losses (`data-dependent`), or by the growth of the loss (`loss`); or the scheme `fuse`
    names them. By default as many are fused as the samples can determine: a region has ten target values, samples times
    the size of its output, for each of its weights. Where a number is given, the first and last layers are left out, as
    their bits are others. A region has at most `max_fused` units. Units without weights stay alone, and those without
    a loss where losses decide.

    References
    ----------
    Ma et al., "Solving Oscillation Problem in Post-Training Quantization Through a Theoretical Perspective", CVPR 2023.
    """

    by: FuseBy = "data-free"
    top_k: int | None = None
    max_fused: int = 3
    fuse: Sequence[Sequence[str]] = ()
    name: ClassVar[str] = "fuse-regions"
    requires: ClassVar[tuple[str, ...]] = ("score-capacity",)

    def run(self, model: QModel) -> int:
        """Write the regions into the plan, those of one unit too; return how many boundaries were fused."""
        plan = model.plan
        names = [unit.name for unit in plan.units]
        pairs = [(item.first, item.second) for item in plan.boundaries]
        if self.fuse:
            joined = scheme_boundaries(self.fuse, names, pairs, self.max_fused)
        else:
            joined = self._chosen(model)
        plan.regions = chains(names, joined)
        for region in plan.regions:
            if len(region) > 1:
                model.journal.note(self.name, "fused", units=list(region))
        return len(joined)

    def _chosen(self, model: QModel) -> list[Pair]:
        """Return the boundaries that the criterion finds."""
        plan = model.plan
        if self.top_k == 0:
            return []
        values = plan.capacities if self.by == "data-free" else plan.losses
        pairs = [
            (item.first, item.second)
            for item in plan.boundaries
            if (item.inner or self.top_k is None)
            and all(plan.capacities[name] and name in values for name in (item.first, item.second))
        ]
        return top_boundaries(pairs, values, CRITERIA[self.by], self.top_k, self._fits(model))

    def _fits(self, model: QModel) -> Callable[[Sequence[str]], bool]:
        """Return what says whether a region is small enough and, without `top_k`, whether the samples determine it."""
        units = {unit.name: unit for unit in model.plan.units}
        nodes, tensors = {node.name: node for node in model.graph.nodes}, model.graph.tensors()
        samples = SAMPLES if model.data is None else model.data.count
        sizes = _sizes(model) if self.top_k is None else {}

        def fits(region: Sequence[str]) -> bool:
            weights = sum(weight_count(nodes[node]) for name in region for node in units[name].nodes)
            shapes = [sizes.get(name, tensors[name].shape) for name in units[region[-1]].outputs]
            targets = sum(map(_values_per_sample, shapes))
            determined = weights * VALUES_PER_WEIGHT <= samples * targets
            return len(region) <= self.max_fused and (determined or self.top_k is not None)

        return fits


def _sizes(model: QModel) -> Mapping[str, Sequence[int]]:
    """Return the shapes that the first sample gives tensors, where the model leaves those of its inputs open."""
    is_open = any(static_dims(tensor, 1) is None for tensor in model.graph.inputs)
    if model.data is None or not is_open:
        return {}
    first = next(model.data.batches(1))
    return sizes_for(model.graph, {name: array.shape for name, array in first.items()})


def _values_per_sample(shape: Sequence[int | str | None] | None) -> int:
    known = [size for size in (shape or ())[1:] if isinstance(size, int)]
    return math.prod(known)
