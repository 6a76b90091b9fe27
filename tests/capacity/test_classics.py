"""What MRECG publishes about four networks: units, capacities, differentials and schemes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from classic_networks import CLASSICS, fused

from qcompile.quant.plan import Boundary

# Mbit by unit: 4-bit weights, 8-bit stem and classifier, strided convolutions * 1.6; computed by hand from the papers'
# definition and the networks' layers, and given to four digits.
CAPACITIES = {
    "ResNet-18": [0.1204, 0.2949, 0.2949, 1.114, 1.180, 4.456, 4.719, 17.83, 18.87, 4.096],
    "ResNet-50": [
        0.1204, 0.2949, 0.2785, 0.2785, 2.176, *[1.114] * 3, 8.703, *[4.456] * 5, 34.81, 17.83, 17.83, 16.38,
    ],
    "MobileNetV2": [
        0.01426, 0.02089, 0.03283, 0.04055, 0.05606, 0.05606, 0.08479, *[0.2104] * 3, 0.2596, 0.4631, 0.4631, 0.6230,
        1.263, 1.263, 1.878, 11.88,
    ],
    "RegNetX-600M": [
        0.01106, 0.09155, 0.2175, 0.1567, 0.1567, 0.8018, *[0.6682] * 4, 3.163, *[2.686] * 6, 4.224,
    ],
}  # fmt: skip
HEAD = "unit_17"  # MobileNetV2's last 1x1 convolution and its classifier
LARGEST = {
    "ResNet-18": [
        ("layer4.1", "fc"), ("layer3.1", "layer4.0"), ("layer2.1", "layer3.0"), ("layer4.0", "layer4.1"),
        ("layer1.1", "layer2.0"),
    ],
    "ResNet-50": [
        ("layer3.5", "layer4.0"), ("layer4.0", "layer4.1"), ("layer2.3", "layer3.0"), ("layer3.0", "layer3.1"),
        ("layer1.2", "layer2.0"),
    ],
    "MobileNetV2": [
        ("features.17", HEAD), ("features.14", "features.15"), ("features.16", "features.17"),
        ("features.11", "features.12"), ("features.13", "features.14"), ("features.7", "features.8"),
        ("features.10", "features.11"),
    ],
    "RegNetX-600M": [
        ("s3.b5", "s4.b1"), ("s4.b7", "fc"), ("s2.b3", "s3.b1"), ("s4.b1", "s4.b2"), ("s3.b1", "s3.b2"),
    ],
}  # fmt: skip
HITS = {"ResNet-18": 1, "ResNet-50": 3, "MobileNetV2": 4, "RegNetX-600M": 3}
named = pytest.mark.parametrize("name", CLASSICS)


@named
def test_capacities(name: str) -> None:
    plan = fused(CLASSICS[name].graph()).plan
    assert len(plan.units) == CLASSICS[name].units
    found = [capacity / 1e6 for capacity in plan.capacities.values()]
    assert found == pytest.approx(CAPACITIES[name], rel=6e-4)  # half a unit in the last of four digits


@named
def test_largest_differentials(name: str) -> None:
    boundaries = fused(CLASSICS[name].graph()).plan.boundaries
    largest = sorted(boundaries, key=lambda boundary: -abs(boundary.differential))
    assert [(boundary.first, boundary.second) for boundary in largest][: len(LARGEST[name])] == LARGEST[name]


@named
def test_every_unit_follows_the_one_before(name: str) -> None:
    plan = fused(CLASSICS[name].graph()).plan
    assert [(item.first, item.second) for item in plan.boundaries] == list(pairwise(unit.name for unit in plan.units))
    assert [item.inner for item in plan.boundaries] == [False, *[True] * (len(plan.units) - 3), False]


@named
def test_the_authors_schemes(name: str) -> None:
    classic = CLASSICS[name]
    plan = fused(classic.graph(), fuse=classic.scheme).plan
    assert len(plan.regions) == classic.groups
    assert set(classic.scheme) <= set(plan.regions)
    assert [unit for region in plan.regions for unit in region] == [unit.name for unit in plan.units]


@named
def test_boundaries_of_the_authors_that_capacity_finds(name: str) -> None:
    classic = CLASSICS[name]
    plan = fused(classic.graph(), fuse_top_k=len(classic.boundaries())).plan
    found = {pair for region in plan.regions for pair in pairwise(region)}
    assert len(found) == len(classic.boundaries())
    assert len(found & classic.boundaries()) == HITS[name]


def test_homogeneous_neighbours() -> None:
    def homogeneous(name: str) -> list[Boundary]:
        return [boundary for boundary in fused(CLASSICS[name].graph()).plan.boundaries if boundary.homogeneous]

    assert [item.first for item in homogeneous("ResNet-18")] == ["layer1.0"]  # the later stages begin with a stride
    assert ("s4.b6", "s4.b7") in {(item.first, item.second) for item in homogeneous("RegNetX-600M")}
    # Depthwise convolutions correspond whatever their channels are: expansion by 6 of 64 and of 96.
    assert ("features.10", "features.11") in {(item.first, item.second) for item in homogeneous("MobileNetV2")}
