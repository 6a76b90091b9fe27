"""How many boundaries of the authors' schemes (MRECG) the change of module capacity finds, without data or weights.

    python tools/check_capacity.py
    python tools/check_capacity.py --losses

The networks are those of tests/classic_networks.py: 4-bit weights, first and last layer of 8 bits. With --losses also
how many the losses of a short training find. There are no trained weights of them: weights and images are random.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import assets  # noqa: F401  (puts the checkout and its tests on the path)
import numpy as np
import onnx
from classic_networks import CLASSICS, Classic, fused
from rich.console import Console
from rich.table import Table

from qcompile import Config, PassManager
from qcompile.api import open_model
from qcompile.ir.load import to_model
from qcompile.passes.fuse_regions import FuseRegions
from qcompile.passes.partition_units import PartitionUnits
from qcompile.passes.score_losses import ScoreLosses
from qcompile.pipeline import build
from qcompile.quant.plan import Plan

COLUMNS = ("network", "units", "regions", "published", "found by top k")
BY_LOSS = ("data-dependent", "loss")
IMAGE = 64  # pixels on each side
SAMPLES = 128
Boundaries = set[tuple[str, str]]


def row(name: str, classic: Classic, *, losses: bool) -> list[str]:
    """Return the line of one network."""
    published = classic.boundaries()
    top = joined(fused(classic.graph(), fuse_top_k=len(published)).plan)
    scheme = fused(classic.graph(), fuse=classic.scheme).plan
    found = [top, *(by_losses(classic) if losses else [])]
    counts = [len(scheme.units), len(scheme.regions), len(published), *(len(item & published) for item in found)]
    return [name, *map(str, counts)]


def joined(plan: Plan) -> Boundaries:
    """Return the boundaries inside regions."""
    return {pair for region in plan.regions for pair in pairwise(region)}


def by_losses(classic: Classic) -> list[Boundaries]:
    """Return the boundaries that each criterion of BY_LOSS finds in the losses of one short training."""
    top_k = len(classic.boundaries())
    config = Config(w=4, a=4, method="mrecg", fuse_by=BY_LOSS[0], fuse_top_k=top_k, samples=SAMPLES, random_data=True)
    passes = [PartitionUnits(ends="stack") if isinstance(item, PartitionUnits) else item for item in build(config)]
    model = open_model(with_weights(classic), config)
    PassManager(passes[: 1 + [item.name for item in passes].index(ScoreLosses.name)]).run(model)
    found = []
    for criterion in BY_LOSS:
        FuseRegions(criterion, top_k).run(model)
        found.append(joined(model.plan))
    return found


def with_weights(classic: Classic) -> onnx.ModelProto:
    """Return a network that can be run: normal weights of the variance that keeps the signal (He et al., 2015)."""
    graph, random = classic.graph(), np.random.default_rng(0)
    for node in graph.nodes:
        if node.op in {"Conv", "Gemm"}:
            shape = node.inputs[1].shape
            fan_in = np.prod(shape[1:]) if node.op == "Conv" else shape[0]
            node.inputs[1].values = random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
    for tensor, shape in zip([*graph.inputs, *graph.outputs], (["N", 3, IMAGE, IMAGE], ["N", 1000])):
        tensor.shape = shape
    return to_model(graph, ir_version=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", action="store_true", help="train random networks (minutes)")
    losses = parser.parse_args().losses
    table = Table(box=None)
    for column in [*COLUMNS, *(f"by {item}" for item in BY_LOSS if losses)]:
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, classic in CLASSICS.items():
        table.add_row(*row(name, classic, losses=losses))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
