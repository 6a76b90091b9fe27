"""How many boundaries of the authors' schemes (MRECG) the change of module capacity finds, without data or weights.

    python tools/check_capacity.py

The networks are those of tests/classic_networks.py: 4-bit weights, first and last layer of 8 bits.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import assets  # noqa: F401  (puts the checkout and its tests on the path)
from classic_networks import CLASSICS, Classic, fused
from rich.console import Console
from rich.table import Table

from qcompile.quant.plan import Plan

COLUMNS = ("network", "units", "regions", "published", "found by top k")


def row(name: str, classic: Classic) -> list[str]:
    """Return the line of one network."""
    published = classic.boundaries()
    top = joined(fused(classic.graph(), fuse_top_k=len(published)).plan)
    scheme = fused(classic.graph(), fuse=classic.scheme).plan
    return [name, *map(str, (len(scheme.units), len(scheme.regions), len(published), len(top & published)))]


def joined(plan: Plan) -> set[tuple[str, str]]:
    """Return the boundaries inside regions."""
    return {pair for region in plan.regions for pair in pairwise(region)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, classic in CLASSICS.items():
        table.add_row(*row(name, classic))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
